"""What the GPU's kernels are told in groups: rows of a batch, BatchNorm's statistics, dropout, scratch memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_TILE = 32  # rows, and columns, of one block's sums (csrc/cuda/columns.cuh)


@dataclass(frozen=True)
class RowBatch:
    """A batch of rows: row b is `src[order[clock[1] * stride + b]]`, or `src[b]` without an order.

    Attributes:
        src: `[N, F] float16 | bfloat16 | float32`.
        rows: B, the rows of the batch.
        clock: `[2] int32`: the fit's step, which the masks depend on, and the batch's number in this call.
        order: `[M] int64`, or None.
        stride: rows from one batch to the next in `order`.
    """

    src: Tensor
    rows: int
    clock: Tensor
    order: Tensor | None = None
    stride: int = 0

    def step(self) -> int:
        """The fit's step."""
        return int(self.clock[0]) & 0xFFFFFFFF

    def number(self) -> int:
        """The batch's number in this call."""
        return int(self.clock[1])

    def index(self) -> Tensor:
        """`[B] int64`: which rows of `src`."""
        if self.order is None:
            return torch.arange(self.rows, device=self.src.device)
        first = self.number() * self.stride
        return self.order[first : first + self.rows]

    def gathered(self) -> Tensor:
        """`[B, F]`: the rows."""
        return self.src[self.index()]


@dataclass(frozen=True)
class Moments:
    """BatchNorm's statistics of a batch, `[F] float32` each, and the running ones that they change.

    Attributes:
        mean: of the batch.
        rstd: `1 / sqrt(variance + eps)`.
        running_mean: becomes `lerp(running_mean, mean, momentum)`.
        running_var: the same with the unbiased variance.
        momentum: BatchNorm's.
        eps: BatchNorm's.
    """

    mean: Tensor
    rstd: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float
    eps: float


@dataclass(frozen=True)
class Dropout:
    """Which masks a layer draws (`fastclf.ops.dropout_mask`): seed, number of the layer, probability of dropping."""

    seed: int
    layer: int
    p: float


class Scratch:
    """Memory for sums that several blocks make together; serves any operation of at most `rows` x `cols`.

    Operations that share it must run one after the other, as those on one stream do.
    """

    def __init__(self, rows: int, cols: int, device: torch.device) -> None:
        self.rows, self.cols = rows, cols
        self.partial = torch.empty(2 * _tiles(rows) * max(cols, 1), device=device)
        self.row_loss = torch.empty(max(rows, 1), device=device)
        self.ticket = torch.zeros(max(_tiles(cols), 1), dtype=torch.int32, device=device)

    def addresses(self) -> dict[str, int]:
        """Where the kernels find it."""
        return {"partial": self.partial.data_ptr(), "ticket": self.ticket.data_ptr()}


def _tiles(n: int) -> int:
    return -(-max(n, 1) // _TILE)
