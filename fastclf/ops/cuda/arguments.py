"""Arguments of the GPU's kernels that go together: rows of a batch, statistics, dropout, loss, scratch memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastclf.losses import BCE, NLL

MOST_CLASSES = 64  # csrc/cuda/launchers.h: kMostClasses
MOST_PRODUCT_ROWS = 128  # csrc/cuda/launchers.h: kMostProductRows


@dataclass(frozen=True)
class RowBatch:
    """A batch of rows: row b is `src[order[step_counter[1] * stride + b]]`, or `src[b]` without an order.

    Attributes:
        src: `[N, F] float16 | float32`.
        rows: B, the rows of the batch.
        step_counter: `[2] int32`: the fit's step, which the masks depend on, and the batch's number in this call.
        order: `[M] int64`, or None.
        stride: rows from one batch to the next in `order`.
    """

    src: Tensor
    rows: int
    step_counter: Tensor
    order: Tensor | None = None
    stride: int = 0

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.src.device

    def step(self) -> int:
        """Return the fit's step."""
        return int(self.step_counter[0]) & 0xFFFFFFFF

    def number(self) -> int:
        """Return the batch's number in this call."""
        return int(self.step_counter[1])

    def index(self) -> Tensor:
        """Return `[B] int64`, which rows of `src`."""
        if self.order is None:
            return torch.arange(self.rows, device=self.src.device)
        first = self.number() * self.stride
        return self.order[first : first + self.rows]

    def gathered(self) -> Tensor:
        """Return `[B, F]`, the rows."""
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
    """Which masks a layer samples (`fastclf.ops.dropout_mask`): seed, number of the layer, probability of dropping."""

    seed: int
    layer: int
    p: float


@dataclass(frozen=True)
class DeviceLoss:
    """A loss whose weights are where the logits are, and their sum, which nobody has to wait for then."""

    loss: NLL | BCE
    weight_sum: float

    @classmethod
    def of(cls, loss: NLL | BCE, classes: int, device: torch.device) -> DeviceLoss:
        """Return a loss over so many classes, moved to the device."""
        if loss.weight is None:
            return cls(loss, float(classes))
        weight = loss.weight.detach().to(device, torch.float32).contiguous()
        return cls(replace(loss, weight=weight), float(weight.sum()))


@dataclass(frozen=True)
class LastLayer:
    """The layer that gives the logits, and where its gradients go.

    Attributes:
        logits: `[B, C] float32`, their gradient; C is at most `MOST_CLASSES`.
        weight: `[C, F] float32`.
        operand: `[B, F] float32 | bfloat16`, the left operand of its product.
        dweight: `[C, F] float32`, is written.
        dbias: `[C] float32`, is written.
    """

    logits: Tensor
    weight: Tensor
    operand: Tensor
    dweight: Tensor
    dbias: Tensor


@dataclass(frozen=True)
class FirstLayer:
    """The first layer, and what its gradients are made of; see `fastclf.ops.cuda.first_layer`.

    Attributes:
        products: `[O, 2 F] float32`: the gradient of what the layer gives, `[B, O]` transposed, times the factors of
            `normalise`; `[O, F]` where nothing is dropped. None where `first_step` makes them.
        weight: `[O, F] float32`.
        gamma: `[F] float32`.
        beta: `[F] float32`.
        dropout: of the layer's operand.
        dbias: `[O] float32`, the gradient of the bias.
    """

    products: Tensor | None
    weight: Tensor
    gamma: Tensor
    beta: Tensor
    dropout: Dropout
    dbias: Tensor

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return self.weight.device


class Scratch:
    """Memory for the sum of the losses of at most `rows` rows.

    Operations that share it must run one after the other, as those on one stream do.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self.row_loss = torch.empty(max(rows, 1), dtype=torch.float32, device=device)
        self.block_counter = torch.zeros(1, dtype=torch.int32, device=device)
