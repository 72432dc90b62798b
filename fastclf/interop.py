"""Other libraries: those that are needed at times, and values as they hold them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastclf.errors import BackendError


def needed(module: str, package: str | None = None) -> Any:
    """Import a module of a library that not everybody has.

    Args:
        module: its name.
        package: what installs it; by default the same.

    Raises:
        BackendError: it is not there; says how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        install = f"Install it: pip install {package or module}"
        raise BackendError(f"{module} cannot be imported ({error}). {install}") from error


def numpy_of(values: Any) -> npt.NDArray[Any]:
    """Return an array, also of a tensor on any device, that requires gradients, or of bfloat16, which numpy lacks.

    Raises:
        ValueError: values are masked, which an array would give as if they were there; or rows differ in shape.
    """
    if np.ma.is_masked(values):
        raise ValueError("values are masked, which are missing ones: leave these rows out, or fill them, x.filled(0)")
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def as_text(value: Any) -> Any:
    """Return a name that is bytes, as HDF5 has it, as text; other values as they are."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")
