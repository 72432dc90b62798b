"""What callers may pass as rows of activations and as row numbers, checked and made into tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, eq=False)
class IndexedRows:
    """Rows that lie anywhere in a matrix: row ``i`` is ``matrix[index[i]]``. Nothing is copied until it is asked for.

    Attributes:
        matrix: `[S, F] float16 | float32`, such as a mapped file.
        index: `[N] int64`, 0 <= index < S.
    """

    matrix: npt.NDArray[Any]
    index: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        as_index("IndexedRows", self.index, len(self.matrix))

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, F)`."""
        return len(self.index), self.matrix.shape[1]

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return self.matrix.dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> npt.NDArray[Any]:
        """Return a copy of the rows that numpy would choose."""
        chosen: npt.NDArray[Any] = self.matrix[self.index[rows]]
        return chosen

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: npt.NDArray[np.int64], axis: int = 0) -> IndexedRows:
        """Return some of the rows, as `numpy.ndarray.take` does along the first axis."""
        return IndexedRows(self.matrix, self.index[rows])


RowMatrix = npt.NDArray[np.float16] | npt.NDArray[np.float32] | torch.Tensor | IndexedRows
Index = npt.NDArray[np.int64] | torch.Tensor
DTYPES = {torch.float16: 0, torch.float32: 1, torch.bfloat16: 2}  # csrc/api.h: DType


@dataclass(frozen=True, eq=False)
class RowSource:
    """Checked rows of activations: row ``i`` is ``matrix[index[i]]``, or ``matrix[i]`` without an index.

    Attributes:
        matrix: ``[S, F] float16 | float32``.
        index: ``[N] int64``, or None.
        owner: the caller's object where nobody can write to it: a copy of its rows holds for as long as it lives.
    """

    matrix: torch.Tensor
    index: torch.Tensor | None = None
    owner: object = None

    def __len__(self) -> int:
        return len(self.matrix if self.index is None else self.index)

    @property
    def columns(self) -> int:
        """F."""
        return self.matrix.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the rows, gathered."""
        return len(self) * self.columns * self.matrix.element_size()

    def places(self, rows: torch.Tensor) -> torch.Tensor:
        """Return which rows of the matrix the given rows are, `[B] int64`."""
        return rows if self.index is None else self.index[rows]


def as_row_source(what: str, src: RowMatrix) -> RowSource:
    """Check rows of activations `[N, F]`; the result shares their memory."""
    array = src.matrix if isinstance(src, IndexedRows) else src
    owner = src if isinstance(array, np.ndarray) and not array.flags.writeable else None
    if isinstance(src, IndexedRows):
        index = torch.from_numpy(src.index)  # which was checked when made
        return RowSource(as_row_matrix(what, src.matrix), index, owner)
    return RowSource(as_row_matrix(what, src), owner=owner)


def as_row_matrix(what: str, src: RowMatrix) -> torch.Tensor:
    """Check an `[N, F]` matrix of activations and return it as a tensor that shares its memory."""
    assert not isinstance(src, IndexedRows)
    if isinstance(src, np.ndarray):
        if src.dtype not in (np.float16, np.float32):
            raise TypeError(f"{what} must be float16 or float32, got {src.dtype}. Convert it with .astype(np.float16).")
        if not src.flags.c_contiguous:
            raise ValueError(f"{what} must be C-contiguous, got strides {src.strides}. Use np.ascontiguousarray.")
        src = torch.from_numpy(np.asarray(_Shared(src)))  # no operation here writes to its source
    if src.dtype not in (torch.float16, torch.float32):
        raise TypeError(f"{what} must be float16 or float32, got {src.dtype}. Convert it with .half().")
    if src.device.type != "cpu":
        raise ValueError(f"{what} must be on the CPU, got {src.device}. Move it with .cpu().")
    if src.ndim != 2:
        raise ValueError(f"{what} must be [N, F], got shape {list(src.shape)}. Reshape it to one row per sample.")
    if not src.is_contiguous():
        raise ValueError(f"{what} must be contiguous, got strides {src.stride()}. Use .contiguous().")
    return src


def as_index(function: str, index: Index, n: int) -> torch.Tensor:
    """Check row numbers (`[B] int64`, 0 <= index < n) and return them as a contiguous tensor."""
    # torch warns of arrays that may not be written, and refuses negative strides: those are copied.
    positions = (
        index if isinstance(index, torch.Tensor) else torch.from_numpy(np.require(index, requirements=["C", "W"]))
    )
    if positions.dtype != torch.int64:
        raise TypeError(f"{function}: index must be int64, got {positions.dtype}. Convert it with .long().")
    if positions.ndim != 1 or positions.device.type != "cpu":
        raise ValueError(
            f"{function}: index must be [B] on the CPU, got shape {list(positions.shape)} on {positions.device}. "
            "Flatten it and move it with .cpu()."
        )
    outside = (positions < 0) | (positions >= n)
    if bool(outside.any()):
        at = int(outside.nonzero()[0, 0])
        raise IndexError(
            f"{function}: index must be in 0..{n - 1}, got index[{at}] = {int(positions[at])}. Check the order."
        )
    return positions.contiguous()


class _Shared:
    """An array's memory without its read-only mark, which torch.from_numpy would warn about."""

    def __init__(self, array: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
