"""Plain twins of the native operations: what each must compute, and what runs where no native module does."""

from __future__ import annotations

import numpy as np
import torch

from fastclf.philox import philox4x32


def gather_rows(src: torch.Tensor, index: torch.Tensor, out: torch.Tensor) -> None:
    """Writes `src[index]`, widened to float32, into `out` ([B, F] float32)."""
    out.copy_(torch.index_select(src, 0, index))


def dropout_mask(seed: int, step: int, layer: int, rows: int, cols: int, p: float) -> torch.Tensor:
    """Draws a dropout mask as a function of its position.

    Element (b, j) is word j % 4 of Philox4x32-10 with key (seed's low half, seed's high half) and counter
    (j // 4, b, layer, step); it is kept when that word is at least round(p * 2**32).

    Returns:
        `[rows, cols] float32`: 0 where dropped, 1 / (1 - p) where kept.
    """
    blocks = -(-cols // 4)
    counter = np.empty((rows, blocks, 4), dtype=np.uint32)
    counter[..., 0] = np.arange(blocks, dtype=np.uint32)
    counter[..., 1] = np.arange(rows, dtype=np.uint32)[:, None]
    counter[..., 2], counter[..., 3] = layer, step
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(rows, 4 * blocks)[:, :cols]
    keep = words.astype(np.uint64) >= int(p * 2**32 + 0.5)
    return torch.from_numpy(keep * np.float32(1 / (1 - p)))
