"""Gathering rows of activations from a mapped file."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastclf.ops.arguments import DTYPES, Index, RowMatrix, as_index, as_row_source
from fastclf.ops.registry import operation


def gather_rows(src: RowMatrix, index: Index, out: Tensor | None = None) -> Tensor:
    """Gather rows by index and widen them to float32: `out[b] = src[index[b]]`.

    Args:
        src: `[N, F] float16 | float32`, C-contiguous, on the CPU; an array may be a read-only memory map, and
            `IndexedRows` choose rows of one.
        index: `[B] int64`, 0 <= index < N.
        out: `[B, F] float32`, contiguous; allocated when not given.

    Returns:
        `[B, F] float32`.

    Raises:
        TypeError: a dtype is not one of the above.
        ValueError: a shape, layout or device is not as above.
        IndexError: an index lies outside 0..N-1; names the first.
    """
    rows = as_row_source("gather_rows: src", src)
    positions = rows.places(as_index("gather_rows", index, len(rows)))
    if out is None:
        out = torch.empty(len(positions), rows.columns, dtype=torch.float32, device="cpu")
    _check_out(out, (len(positions), rows.columns))
    _gather(rows.matrix, positions, out)
    return out


@operation
def _gather(src: Tensor, index: Tensor, out: Tensor) -> None:
    out.copy_(torch.index_select(src, 0, index))


@_gather.cpu
def _(native: ModuleType, src: Tensor, index: Tensor, out: Tensor) -> None:
    native.gather_rows(
        src=src.data_ptr(),
        dtype=DTYPES[src.dtype],
        index=index.data_ptr(),
        out=out.data_ptr(),
        rows=len(index),
        width=src.shape[1],
        threads=torch.get_num_threads(),
    )


def _check_out(out: Tensor, shape: tuple[int, int]) -> None:
    fits = tuple(out.shape) == shape and out.dtype == torch.float32 and out.device.type == "cpu" and out.is_contiguous()
    if not fits:
        raise ValueError(
            f"gather_rows: out must be contiguous {list(shape)} float32 on the CPU, got {list(out.shape)} {out.dtype} "
            f"on {out.device}. Leave it out to have one allocated."
        )
