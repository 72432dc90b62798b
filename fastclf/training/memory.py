"""A GPU's memory that is exhausted: an error that names the batch that would fit, and gives the memory back."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

from fastclf.errors import GpuMemoryError
from fastclf.models.freezing import LayerGroups
from fastclf.training.forward import Crit, Objective
from fastclf.training.snapshot import unchanged

P = ParamSpec("P")
R = TypeVar("R")


class _Data(Protocol):
    @property
    def bs(self) -> int: ...
    @property
    def sz(self) -> int | None: ...


class _Learner(Protocol):
    model: nn.Module
    groups: LayerGroups
    crit: Crit

    @property
    def data(self) -> Any: ...


L = TypeVar("L", bound=_Learner)


def explains_gpu_memory(*, trains: bool) -> Callable[[Callable[Concatenate[L, P], R]], Callable[Concatenate[L, P], R]]:
    """Make a learner's method raise `GpuMemoryError` for torch's OutOfMemoryError, with the memory given back.

    Args:
        trains: whether the method trains the learner's model; else it predicts.
    """

    def explained(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
        @wraps(method)
        def run(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return method(self, *args, **kwargs)
            except torch.OutOfMemoryError as error:
                reason = str(error).split(". ")[0]
            # Outside of `except`: torch's error leads to the frames that it passed, and they to every tensor of the
            # step.
            for parameter in self.model.parameters():
                parameter.grad = None
            _empty_cache()
            raise GpuMemoryError(_message(method.__name__.lstrip("_"), self.data, reason, _fitting(self, trains)))

        return run

    return explained


def _empty_cache() -> None:
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _fitting(learner: _Learner, trains: bool) -> int:
    """Return the largest batch that fits, to an eighth, found by trying; 0 where not even the smallest does."""
    data: _Data = learner.data
    if data.sz is None:
        return data.bs // 2
    least = 2 if trains else 1  # BatchNorm cannot be trained on one image
    fits, too_many = least - 1, data.bs
    while too_many - fits > max(1, fits // 8):
        tried = (fits + too_many) // 2
        if _runs(learner, (tried, 3, data.sz, data.sz), trains):
            fits = tried
        else:
            too_many = tried
        _empty_cache()
    return fits if fits >= least else 0


def _runs(learner: _Learner, shape: tuple[int, ...], trains: bool) -> bool:
    """Return whether memory holds a step with a batch of this shape; the learner stays as it is."""
    module = learner.model
    device = next(module.parameters()).device
    devices = [device] if device.type == "cuda" else []
    try:
        # The copies that `unchanged` makes stand for the optimizer's momenta.
        with torch.random.fork_rng(devices), unchanged(module), torch.inference_mode(not trains):
            learner.groups.set_modes() if trains else module.eval()
            scores = Objective(module, learner.crit).scores(torch.zeros(shape, dtype=torch.float32, device=device))
            if trains:
                scores.sum().backward()  # type: ignore[no-untyped-call]
    except torch.OutOfMemoryError:
        return False
    return True


def _message(what: str, data: _Data, reason: str, fits: int) -> str:
    size = "" if data.sz is None else f" of {data.sz} x {data.sz} pixels"
    if fits:
        advice = f"Make the data with bs={fits}, then learn.set_data(data); the learner can be used as before."
    else:
        advice = "Use smaller images (sz), or freeze more of the network."
    return f"{what}: the GPU's memory does not hold a batch of {data.bs}{size} ({reason}). {advice}"
