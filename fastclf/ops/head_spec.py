"""What the head engine trains: which modules it knows, and what it must be told about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastclf.ops.backend import has_kernels


class Schedule(Protocol):
    """What an operation asks of a schedule (`fastclf.training.schedule`)."""

    def factor(self, step: int) -> float:
        """The factor on every group's highest rate in step ``step``."""

    def momentum(self, step: int) -> float | None:
        """The momentum in step ``step``, or None where the group's own holds."""

    def table(self) -> npt.NDArray[np.float64]:
        """The schedule as `[8] float64` for native code."""


@dataclass(frozen=True)
class HeadBlock:
    """BatchNorm, dropout with probability ``p`` and a linear layer; ReLU follows in all blocks but the last."""

    bn: nn.BatchNorm1d
    p: float
    linear: nn.Linear

    def tensors(self) -> tuple[Tensor, ...]:
        """Weight, bias, gamma, beta, running mean and running variance."""
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        return self.linear.weight, self.linear.bias, self.bn.weight, self.bn.bias, mean, var

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes that `tensors` must have."""
        n_in, n_out = self.linear.in_features, self.linear.out_features
        return (n_out, n_in), (n_out,), *[(n_in,)] * 4

    def parameters(self) -> tuple[Tensor, ...]:
        """Weight, bias, gamma and beta."""
        return self.tensors()[:4]


@dataclass(frozen=True)
class HeadSpec:
    """The blocks of a head that the engine knows, in order."""

    blocks: tuple[HeadBlock, ...]

    @classmethod
    def from_layers(cls, layers: nn.Sequential) -> HeadSpec | None:
        """Reads (BatchNorm, dropout?, linear, ReLU)*, BatchNorm, dropout?, linear; None when it is anything else.

        A dropout is any module with a probability `.p` whose class name ends in "Dropout". All tensors must be float32,
        contiguous, and on one device: the CPU, or a GPU that the kernels run on.
        """
        rest = list(layers)
        blocks: list[HeadBlock] = []
        while rest:
            block = _take_block(rest)
            if block is None or not _fits(block, blocks[-1] if blocks else None):
                return None
            blocks.append(block)
            if rest and type(rest.pop(0)) is not nn.ReLU:
                return None
            if not rest and type(layers[-1]) is nn.ReLU:
                return None
        return cls(tuple(blocks)) if blocks else None

    @property
    def device(self) -> torch.device:
        """Where the head's tensors are."""
        return self.blocks[0].linear.weight.device

    @property
    def n_in(self) -> int:
        """Columns of a row."""
        return self.blocks[0].linear.in_features

    @property
    def n_out(self) -> int:
        """Logits of a row."""
        return self.blocks[-1].linear.out_features

    @property
    def flop_per_row(self) -> int:
        """Floating-point operations of one row in one training step: three products per linear layer."""
        return sum(6 * block.linear.weight.numel() for block in self.blocks)

    def parameters(self) -> list[Tensor]:
        """All trained tensors."""
        return [tensor for block in self.blocks for tensor in block.parameters()]

    def layer_tuples(self) -> list[tuple[float, ...]]:
        """The blocks as numbers and addresses, for the native module.

        Raises:
            ValueError: tensors are no longer what `from_layers` found.
        """
        for number, block in enumerate(self.blocks):
            if not _fits(block, self.blocks[number - 1] if number else None):
                raise ValueError(
                    f"HeadSpec: block {number} must hold contiguous float32 tensors of its layers' sizes, all on one "
                    "device, and no longer does. Move them back, or make a new spec with from_layers."
                )
        return [
            (
                block.linear.in_features,
                block.linear.out_features,
                block.p,
                block.bn.eps,
                block.bn.momentum or 0.0,
                *(tensor.data_ptr() for tensor in block.tensors()),
            )
            for block in self.blocks
        ]


def _take_block(rest: list[nn.Module]) -> HeadBlock | None:
    bn = rest.pop(0)
    p = 0.0
    if rest and type(rest[0]).__name__.endswith("Dropout"):
        p = float(rest.pop(0).p)  # type: ignore[arg-type]
    linear = rest.pop(0) if rest else None
    if type(bn) is not nn.BatchNorm1d or type(linear) is not nn.Linear or not 0 <= p < 1:
        return None
    return HeadBlock(bn, p, linear)


def _fits(block: HeadBlock, before: HeadBlock | None) -> bool:
    bn, linear = block.bn, block.linear
    present = (linear.weight, linear.bias, bn.weight, bn.bias, bn.running_mean, bn.running_var)
    if bn.momentum is None or not all(isinstance(t, Tensor) for t in present):
        return False
    if tuple(tuple(t.shape) for t in block.tensors()) != block.shapes() or bn.num_features != linear.in_features:
        return False
    if before is not None and before.linear.out_features != linear.in_features:
        return False
    device = (block if before is None else before).linear.weight.device
    if device.type != "cpu" and not has_kernels(device):
        return False
    return all(t.dtype == torch.float32 and t.device == device and t.is_contiguous() for t in block.tensors())


@dataclass(frozen=True)
class HeadLoss:
    """The loss on the logits, as `torch.nn.functional` defines it.

    Attributes:
        kind: "nll", the cross-entropy of classes, or "bce", the binary cross-entropy of 0/1 targets.
        weight: `[C] float32` per class, or None.
        label_smoothing: in 0..1; for "bce" targets become `y(1-s) + s/2`.
    """

    kind: Literal["nll", "bce"]
    weight: Tensor | None = None
    label_smoothing: float = 0.0

    @cached_property
    def weight_sum(self) -> float:
        """The sum of the weights, read from their device once."""
        return 0.0 if self.weight is None else float(self.weight.sum())


@dataclass(frozen=True)
class HeadRates:
    """How the head's parameters are updated: SGD with momentum, no dampening.

    Attributes:
        lr: the highest rate; the schedule's factor multiplies it.
        schedule: rates and momentum as functions of the step.
        momentum: used where the schedule has none of its own.
        weight_decay: added to the gradient, times the weight; or, `decoupled`, shrinks the weight by rate * decay.
        decoupled: see weight_decay.
        clip: the highest norm of the gradient of all parameters together; None: no limit.
    """

    lr: float
    schedule: Schedule
    momentum: float = 0.9
    weight_decay: float = 0.0
    decoupled: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        numbers: Sequence[tuple[str, float]] = (
            ("lr", self.lr),
            ("momentum", self.momentum),
            ("weight_decay", self.weight_decay),
        )
        for name, value in numbers:
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"HeadRates: {name} must be finite and not negative, got {value}.")
        shape = np.shape(self.schedule.table())  # native code reads it at every step
        if shape != (8,):
            raise ValueError(f"HeadRates: schedule.table() must be [8], got {list(shape)}. Fill it up with zeros.")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"HeadRates: clip must be positive, got {self.clip}. Pass None for no clipping.")
