"""What operations check before a kernel runs, and how they pass tensors on: as addresses and sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastclf.ops.arguments import DTYPES
from fastclf.ops.cuda.arguments import Moments, RowBatch
from fastclf.ops.registry import address

FLOAT = (torch.float32,)
ROWS = (torch.float16, torch.float32)
OPERAND = (torch.float32, torch.bfloat16)
_MOMENTS = ("mean", "rstd", "running_mean", "running_var")


def check(
    function: str,
    device: torch.device,
    name: str,
    tensor: Tensor,
    shape: Sequence[int],
    dtypes: Sequence[torch.dtype] = FLOAT,
) -> None:
    """Raise ValueError unless the tensor is on the device, contiguous, and has this shape and one of these dtypes."""
    if tensor.device != device:
        raise ValueError(
            f"{function}: {name} must be on {device}, as the others are, got {tensor.device}. Move it there."
        )
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype not in dtypes or not tensor.is_contiguous():
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        layout = "" if tensor.is_contiguous() else ", not contiguous"
        raise ValueError(
            f"{function}: {name} must be contiguous {list(shape)} {wanted}, got {list(tensor.shape)} "
            f"{str(tensor.dtype).removeprefix('torch.')}{layout}. Allocate it so."
        )


def check_batch(function: str, x: RowBatch) -> None:
    """Check a batch."""
    check(function, x.src.device, "x.src", x.src, x.src.shape, ROWS)
    check(function, x.src.device, "x.step_counter", x.step_counter, (2,), (torch.int32,))
    if x.order is not None:
        check(function, x.src.device, "x.order", x.order, (len(x.order),), (torch.int64,))


def check_columns(function: str, device: torch.device, columns: dict[str, Tensor], cols: int) -> None:
    """Check tensors of one float32 per column."""
    for name, tensor in columns.items():
        check(function, device, name, tensor, (cols,))


def check_moments(function: str, device: torch.device, m: Moments, cols: int) -> None:
    """Check the statistics of `cols` columns."""
    check_columns(function, device, {name: getattr(m, name) for name in _MOMENTS}, cols)


def check_copy(function: str, copy: Tensor | None, like: Tensor) -> None:
    """Check a bfloat16 copy, where one is wanted."""
    if copy is not None:
        check(function, like.device, "copy", copy, like.shape, (torch.bfloat16,))


def addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    """Return where the tensors are, by their names."""
    return {name: address(tensor) for name, tensor in tensors.items()}


def size_of(x: Tensor) -> dict[str, int]:
    """Return rows and columns."""
    return {"rows": x.shape[0], "cols": x.shape[1]}


def rows_of(x: RowBatch) -> dict[str, int]:
    """Return a batch as launchers take it."""
    return {
        "src": x.src.data_ptr(),
        "dtype": DTYPES[x.src.dtype],
        "order": address(x.order),
        "step_counter": x.step_counter.data_ptr(),
        "stride": x.stride,
        "rows": x.rows,
        "cols": x.src.shape[1],
    }


def moments_of(m: Moments) -> dict[str, float]:
    """Return statistics as launchers take them."""
    return {**addresses({name: getattr(m, name) for name in _MOMENTS}), "momentum": m.momentum, "eps": m.eps}
