"""Decoded images, or rows of activations, in arrays."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.source import Source, Version


class ArraySource(Source):
    """Decoded images `[N, H, W, 3 or 1]`, or rows of activations `[N, F]`, in memory or in a mapped file."""

    def __init__(self, root: Path, values: npt.NDArray[Any]) -> None:
        super().__init__(root, ())
        self.values: npt.NDArray[Any] = values

    def __len__(self) -> int:
        return len(self.values)

    def name(self, row: int) -> str:
        """See `Source.name`."""
        return f"row {row}"

    def stat(self, row: int) -> Version:
        """See `Source.stat`; arrays do not change."""
        return Version(self.values[row].nbytes, 0, 0)

    def read(self, row: int) -> bytes:
        """Return the values of a row."""
        return np.ascontiguousarray(self.values[row]).tobytes()

    def take(self, rows: npt.NDArray[np.int64]) -> ArraySource:
        """See `Source.take`; the values are copied."""
        return ArraySource(self.root, self.values[rows])

    def digest(self, row: int) -> bytes:
        """See `Source.digest`; of shape, type and values, and never that of an encoded image."""
        kind = f"{self.values.dtype.str} {self.values.shape[1:]}\n".encode()
        return hashlib.blake2b(kind + self.read(row), digest_size=32, person=b"fastclf array").digest()


def pixels_hint(dtype: np.dtype[Any]) -> str:
    """Describe how pixels of another type become those that are taken."""
    return f"Pass x / np.float32({np.iinfo(dtype).max})." if dtype == np.uint16 else "Pass e.g. x.astype(np.uint8)."
