"""Which implementation of the operations runs: the native module when it loads, else the plain twins."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import ModuleType

import torch

from fastclf.errors import BackendError


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
    """Names the implementation that runs now."""
    if _chosen is not None:
        return _chosen
    return Backend.REFERENCE if _native is None else Backend.NATIVE


@contextmanager
def use_backend(name: Backend | str) -> Iterator[None]:
    """Runs the operations with another implementation inside a `with` block (for the whole process).

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


def native_module() -> ModuleType:
    """Returns the processor's compiled module.

    Raises:
        BackendError: it is missing or was built for another Python.
    """
    if _native is None:
        raise BackendError(f"The native module did not load ({_failure}). Build it with `pip install .`.")
    return _native


def kernel_module(device: torch.device) -> ModuleType | None:
    """Returns the module whose CUDA kernels serve tensors on `device`; None where there are none.

    Raises:
        BackendError: the tensors are on a GPU and its module is missing.
    """
    if backend() is Backend.EMULATED and device.type == "cpu":
        return _kernels("_emulated")
    if backend() is Backend.NATIVE and device.type == "cuda":
        return _kernels("_cuda")
    return None


def has_kernels(device: torch.device) -> bool:
    """Whether CUDA kernels serve tensors on `device` now."""
    try:
        return kernel_module(device) is not None
    except BackendError:
        return False


def _kernels(name: str) -> ModuleType:
    module, failure = _load(name)
    if module is None:
        how = "cmake -DFASTCLF_EMULATE=ON" if name == "_emulated" else "`pip install .` where nvcc is on the PATH"
        raise BackendError(f"The module of CUDA kernels, {name}, did not load ({failure}). Build it with {how}.")
    return module


def describe() -> str:
    """Says which implementation and which vector code run here, in a few words."""
    if _native is None:
        return f"plain torch (the native module did not load: {_failure})"
    return f"native, {_native.isa()} vector code"
