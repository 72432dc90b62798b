"""A GPU's memory that is exhausted: an error that says what would fit, and nothing that keeps the memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import nn

from fastclf.errors import GpuMemoryError

P = ParamSpec("P")
R = TypeVar("R")


class _Data(Protocol):
    @property
    def bs(self) -> int: ...
    @property
    def sz(self) -> int | None: ...


class _Learner(Protocol):
    model: nn.Module

    @property
    def data(self) -> Any: ...


L = TypeVar("L", bound=_Learner)


def explains_gpu_memory(method: Callable[Concatenate[L, P], R]) -> Callable[Concatenate[L, P], R]:
    """Makes a learner's method raise `GpuMemoryError` for torch's OutOfMemoryError, with the memory given back."""

    @wraps(method)
    def run(self: L, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(self, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
        # Outside of `except`: torch's error leads to the frames that it passed, and they to every tensor of the step.
        for parameter in self.model.parameters():
            parameter.grad = None
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()
        raise GpuMemoryError(_advice(method.__name__, self.data, reason))

    return run


def _advice(what: str, data: _Data, reason: str) -> str:
    size = "" if data.sz is None else f" of {data.sz} x {data.sz} pixels"
    if data.bs == 1:
        advice = "Use smaller pictures (sz), or freeze more of the network."
    else:
        advice = f"Make the data with bs={data.bs // 2}, then learn.set_data(data); the learner can be used as before."
    return f"{what}: the GPU's memory does not hold a batch of {data.bs}{size} ({reason}). {advice}"
