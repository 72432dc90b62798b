"""Runs whose float64 and float32 forms stay on the same side of every ReLU."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Drawn = TypeVar("Drawn")


class ReluInputs(TorchFunctionMode):
    """Notes how near the input of any ReLU comes to zero."""

    nearest = float("inf")

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.relu:
            self.nearest = min(self.nearest, float(args[0].detach().abs().min()))
        return func(*args, **(kwargs or {}))


def away_from_kinks(draw: Callable[[], Drawn]) -> Drawn:
    """The first of what `draw` trains in float64 that comes to no ReLU's kink.

    ReLU's gradient jumps at zero, and a row's whole share with it where float32 falls on the other side.
    """
    for _ in range(1000):
        with ReluInputs() as inputs:
            drawn = draw()
        if inputs.nearest > 1e-5:
            return drawn
    raise AssertionError("nothing that was drawn stays away from ReLU's kinks")
