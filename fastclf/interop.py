"""Values that a user hands over, as other libraries hold them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def numpy_of(values: Any) -> npt.NDArray[Any]:
    """Return an array, also of a tensor on any device, that requires gradients, or of bfloat16, which numpy lacks."""
    if not isinstance(values, Tensor):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())


def as_text(value: Any) -> Any:
    """Return a name that is bytes, as HDF5 has it, as text; other values as they are."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


def is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or pandas' NA or NaT."""
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or type(value).__name__ in ("NAType", "NaTType")
