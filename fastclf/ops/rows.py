"""Operations on rows of activations: gathering them from a mapped file, and the dropout masks laid over them."""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt
import torch

from fastclf.ops import kernels, reference
from fastclf.ops.backend import Backend, backend, kernel_module, native_module

Rows = npt.NDArray[np.float16] | npt.NDArray[np.float32] | torch.Tensor
Index = npt.NDArray[np.int64] | torch.Tensor
NO_STREAM = 0  # the processor has no streams


def gather_rows(src: Rows, index: Index, out: torch.Tensor | None = None) -> torch.Tensor:
    """Gathers rows by index and widens them to float32: `out[b] = src[index[b]]`.

    Args:
        src: `[N, F] float16 | float32`, C-contiguous, on the CPU; an array may be a read-only memory map.
        index: `[B] int64`, 0 <= index < N.
        out: `[B, F] float32`, contiguous; allocated when not given.

    Returns:
        `[B, F] float32`.

    Raises:
        TypeError: a dtype is not one of the above.
        ValueError: a shape, layout or device is not as above.
        IndexError: an index lies outside 0..N-1; names the first.
    """
    rows = as_rows("gather_rows: src", src)
    positions = as_index("gather_rows", index, len(rows))
    if out is None:
        out = torch.empty(len(positions), rows.shape[1], dtype=torch.float32)
    check_out("gather_rows", out, (len(positions), rows.shape[1]))
    if kernel_module(rows.device) is not None:
        kernels.gather_rows(rows, positions, out)
    elif backend() is Backend.REFERENCE:
        reference.gather_rows(rows, positions, out)
    else:
        native_module().gather_rows(
            src=rows.data_ptr(),
            half=rows.dtype == torch.float16,
            index=positions.data_ptr(),
            out=out.data_ptr(),
            rows=len(positions),
            width=rows.shape[1],
            threads=torch.get_num_threads(),
            stream=NO_STREAM,
        )
    return out


def dropout_mask(seed: int, step: int, layer: int, rows: int, cols: int, p: float) -> torch.Tensor:
    """Draws a dropout mask as a function of (seed, step, layer, row, column); see `reference.dropout_mask`.

    Args:
        seed: 0 <= seed < 2**64.
        step: 0 <= step < 2**32, the training step.
        layer: 0 <= layer < 2**32, which dropout of the head.
        rows: number of rows B; the row position in the batch counts, not the row's identity.
        cols: number of columns, less than 2**32.
        p: probability of dropping, 0 <= p < 1.

    Returns:
        `[rows, cols] float32`: 0 where dropped, 1 / (1 - p) where kept.

    Raises:
        TypeError, ValueError: a number is not whole, or outside its range.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout_mask: p must be in [0, 1), got {p}.")
    for name, value, bits in (
        ("seed", seed, 64),
        ("step", step, 32),
        ("layer", layer, 32),
        ("rows", rows, 32),
        ("cols", cols, 32),
    ):
        if not 0 <= operator.index(value) < 2**bits:
            raise ValueError(f"dropout_mask: {name} must be in [0, 2**{bits}), got {value}.")
    if backend() is Backend.REFERENCE:
        return reference.dropout_mask(seed, step, layer, rows, cols, p)
    out = torch.empty(rows, cols, dtype=torch.float32)
    native_module().dropout_mask(
        seed=seed,
        step=step,
        layer=layer,
        p=p,
        out=out.data_ptr(),
        rows=rows,
        cols=cols,
        threads=torch.get_num_threads(),
        stream=NO_STREAM,
    )
    return out


def as_rows(what: str, src: Rows) -> torch.Tensor:
    """Checks an [N, F] matrix of activations and returns it as a tensor that shares its memory."""
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
    """Checks row numbers (`[B] int64`, 0 <= index < n) and returns them as a contiguous tensor."""
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


def check_out(function: str, out: torch.Tensor, shape: tuple[int, int]) -> None:
    """Checks a float32 result that the caller has allocated."""
    fits = tuple(out.shape) == shape and out.dtype == torch.float32 and out.device.type == "cpu" and out.is_contiguous()
    if not fits:
        raise ValueError(
            f"{function}: out must be contiguous {list(shape)} float32 on the CPU, got {list(out.shape)} {out.dtype} "
            f"on {out.device}. Leave it out to have one allocated."
        )


class _Shared:
    """An array's memory without its read-only mark, which torch.from_numpy would warn about."""

    def __init__(self, array: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> None:
        self.array = array  # keeps the memory alive
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
