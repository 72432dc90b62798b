"""Training whose float64 and float32 forms, or two orders of float32's sums, stay on the same side of every ReLU."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
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


def linear_relus(layers: nn.Sequential) -> None:
    """Raise a head's hidden biases so far that its ReLUs change nothing, whatever float32 makes of their inputs."""
    with torch.no_grad():
        for layer, after in pairwise(layers):
            if isinstance(layer, nn.Linear) and isinstance(after, nn.ReLU):
                layer.bias += 12
