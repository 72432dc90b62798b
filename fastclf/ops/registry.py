"""Operations, and which implementation of them runs.

An operation is declared by its reference implementation, plain torch, which defines what it computes and runs where
nothing else does. Compiled implementations are registered beside it:

    @operation
    def add_bias(z: Tensor, bias: Tensor) -> None:
        z.add_(bias)

    @add_bias.cuda
    def _(native: ModuleType, z: Tensor, bias: Tensor) -> None:
        native.add_bias(z=z.data_ptr(), ...)

`add_bias(z, bias)` then runs where its first argument is. A call costs 0.6 us more than that of a Python function;
through `torch.library` it would be 1.2 us (define and impl) or 5 us (custom_op), and tensors alone could be passed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from functools import update_wrapper
from types import ModuleType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch

from fastclf.errors import BackendError

P = ParamSpec("P")
R = TypeVar("R")
_CPU = torch.device("cpu")


class Backend(StrEnum):
    """One implementation of every operation.

    NATIVE stands for the compiled modules: the processor's for tensors on the CPU, the GPU's for tensors on a GPU.
    EMULATED runs the GPU's kernels on the CPU; only tests build it (`-DFASTCLF_EMULATE=ON`, csrc/emulate).
    """

    REFERENCE = "reference"
    NATIVE = "native"
    EMULATED = "emulated"


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"fastclf.{name}"), ""
    except ImportError as e:
        return None, str(e)


_native, _failure = _load("_native")
_chosen: Backend | None = None


def backend() -> Backend:
    """Return the implementation that runs now."""
    if _chosen is not None:
        return _chosen
    return Backend.REFERENCE if _native is None else Backend.NATIVE


@contextmanager
def use_backend(name: Backend | str) -> Iterator[None]:
    """Run the operations with another implementation inside a `with` block (for the whole process).

    Raises:
        ValueError: there is no such implementation.
        BackendError: a compiled module is asked for and did not load.
    """
    global _chosen
    if name not in list(Backend):
        raise ValueError(f"use_backend: name must be one of {', '.join(Backend)}, got {name!r}.")
    if name == Backend.NATIVE:
        native_module()
    elif name == Backend.EMULATED:
        _kernels("_emulated")
    before, _chosen = _chosen, Backend(name)
    try:
        yield
    finally:
        _chosen = before


class Operation(Generic[P, R]):
    """An operation, called like its reference implementation.

    A compiled implementation has the same arguments after the module that serves it.

    Attributes:
        reference: the reference implementation.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        update_wrapper(self, reference)
        self.reference = reference
        self._check: Callable[P, None] | None = None
        self._cpu: Callable[Concatenate[ModuleType, P], R] | None = None
        self._cuda: Callable[Concatenate[ModuleType, P], R] | None = None

    def check(self, function: Callable[P, None]) -> Callable[P, None]:
        """Register what raises an error unless the arguments are as the operation says; runs before each call."""
        self._check = function
        return function

    def cpu(self, function: Callable[Concatenate[ModuleType, P], R]) -> Callable[Concatenate[ModuleType, P], R]:
        """Register the implementation by the processor's module (csrc/cpu)."""
        self._cpu = function
        return function

    def cuda(self, function: Callable[Concatenate[ModuleType, P], R]) -> Callable[Concatenate[ModuleType, P], R]:
        """Register the implementation by the GPU's module, or its emulation (csrc/cuda)."""
        self._cuda = function
        return function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the operation where its first argument is; on the processor where that has no device."""
        if self._check is not None:
            self._check(*args, **kwargs)
        device: torch.device = getattr(args[0], "device", _CPU)
        if self._cuda is not None and (module := cuda_module(device)) is not None:
            return self._cuda(module, *args, **kwargs)
        if self._cpu is not None and device.type == "cpu" and backend() is not Backend.REFERENCE:
            return self._cpu(native_module(), *args, **kwargs)
        return self.reference(*args, **kwargs)


def operation(reference: Callable[P, R]) -> Operation[P, R]:
    """Declare an operation by its reference implementation."""
    return Operation(reference)


def native_module() -> ModuleType:
    """Return the processor's compiled module.

    Raises:
        BackendError: it is missing or was built for another Python.
    """
    if _native is None:
        raise BackendError(f"The native module did not load ({_failure}). Build it with `pip install .`.")
    return _native


def cuda_module(device: torch.device) -> ModuleType | None:
    """Return the module whose CUDA kernels serve tensors on `device`; None where there are none.

    Raises:
        BackendError: the tensors are on a GPU and its module is missing.
    """
    if device.type == "cuda" and backend() is Backend.NATIVE:
        return _kernels("_cuda")
    if device.type == "cpu" and backend() is Backend.EMULATED:
        return _kernels("_emulated")
    return None


def has_cuda_kernels(device: torch.device) -> bool:
    """Return whether CUDA kernels serve tensors on `device` now."""
    try:
        return cuda_module(device) is not None
    except BackendError:
        return False


def _kernels(name: str) -> ModuleType:
    module, failure = _load(name)
    if module is None:
        how = "cmake -DFASTCLF_EMULATE=ON" if name == "_emulated" else "`pip install .` where nvcc is on the PATH"
        raise BackendError(f"The module of CUDA kernels, {name}, did not load ({failure}). Build it with {how}.")
    return module


def describe() -> str:
    """Return which implementation and which vector code run here, in a few words."""
    if _native is None:
        return f"plain torch (the native module did not load: {_failure})"
    return f"native, {_native.isa()} vector code"


def address(tensor: Any) -> int:
    """Return where a tensor or an array is; 0 for None."""
    if tensor is None:
        return 0
    return int(tensor.data_ptr() if isinstance(tensor, torch.Tensor) else tensor.ctypes.data)


def stream_of(device: torch.device) -> int:
    """Return the handle of the current stream; 0 on the CPU, which has none."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def current(device: torch.device) -> AbstractContextManager[object]:
    """Make a GPU the current one, as launching kernels on its streams needs."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy values from main memory to a device; onto a GPU behind what was launched there before, without waiting.

    A plain `.to(device)` waits until the GPU has finished all of that.
    """
    if device.type != "cuda" or not values.numel():
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
