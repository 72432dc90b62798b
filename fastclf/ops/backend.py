"""Which implementation of the operations runs: the native module when it loads, else the plain twins."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import ModuleType

from fastclf.errors import BackendError


class Backend(StrEnum):
    """One implementation of every operation."""

    REFERENCE = "reference"
    NATIVE = "native"


_native: ModuleType | None
_failure = ""
try:
    _native = importlib.import_module("fastclf._native")
except ImportError as e:
    _native, _failure = None, str(e)

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
        BackendError: the native module is asked for and did not load.
    """
    global _chosen
    if name not in list(Backend):
        raise ValueError(f"use_backend: name must be one of {', '.join(Backend)}, got {name!r}.")
    if name == Backend.NATIVE:
        native_module()
    before, _chosen = _chosen, Backend(name)
    try:
        yield
    finally:
        _chosen = before


def native_module() -> ModuleType:
    """Returns the compiled module.

    Raises:
        BackendError: it is missing or was built for another Python.
    """
    if _native is None:
        raise BackendError(f"The native module did not load ({_failure}). Build it with `pip install .`.")
    return _native


def describe() -> str:
    """Says which implementation and which vector code run here, in a few words."""
    if _native is None:
        return f"plain torch (the native module did not load: {_failure})"
    return f"native, {_native.isa()} vector code"
