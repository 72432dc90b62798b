"""Dropout masks as a function of their position, so that every backend samples the same."""

from __future__ import annotations

import operator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fastclf.ops.registry import address, operation, stream_of
from fastclf.philox import philox4x32


def dropout_mask(
    seed: int, step: int, layer: int, rows: int, cols: int, p: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Sample a dropout mask as a function of (seed, step, layer, row, column).

    Element (b, j) is word j % 4 of Philox4x32-10 with key (seed's low half, seed's high half) and counter
    (j // 4, b, layer, step); it is kept when that word is at least round(p * 2**32).

    Args:
        seed: 0 <= seed < 2**64.
        step: 0 <= step < 2**32, the training step.
        layer: 0 <= layer < 2**32, which dropout of the head.
        rows: number of rows B; the row position in the batch counts, not the row's identity.
        cols: number of columns, less than 2**32.
        p: probability of dropping, 0 <= p < 1.
        device: where the mask is wanted.

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
    out = torch.empty(rows, cols, dtype=torch.float32, device=device)
    _fill(out, seed, step, layer, p)
    return out


@operation
def _fill(out: Tensor, seed: int, step: int, layer: int, p: float) -> None:
    rows, cols = out.shape
    blocks = -(-cols // 4)
    counter = np.empty((rows, blocks, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = np.arange(rows, dtype=np.uint32)[:, None]
    counter[..., 2], counter[..., 3] = layer, step
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(rows, 4 * blocks)[:, :cols]
    keep = words.astype(np.uint64) >= int(p * 2**32 + 0.5)
    out.copy_(torch.from_numpy(keep * np.float32(1 / (1 - p))))


@_fill.cpu
def _(native: ModuleType, out: Tensor, seed: int, step: int, layer: int, p: float) -> None:
    native.dropout_mask(**_arguments(out, seed, step, layer, p), threads=torch.get_num_threads())


@_fill.cuda
def _(native: ModuleType, out: Tensor, seed: int, step: int, layer: int, p: float) -> None:
    native.dropout_mask(**_arguments(out, seed, step, layer, p), stream=stream_of(out.device))


def _arguments(out: Tensor, seed: int, step: int, layer: int, p: float) -> dict[str, float]:
    rows, cols = out.shape
    return {"seed": seed, "step": step, "layer": layer, "p": p, "out": address(out), "rows": rows, "cols": cols}
