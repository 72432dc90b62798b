"""What the head engine trains: which modules it knows, and how they are updated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastclf.losses import BCE, NLL
from fastclf.ops.arguments import RowSource
from fastclf.ops.registry import has_cuda_kernels
from fastclf.ops.sgd import SgdGroup
from fastclf.schedules import Function, Schedule

Precision = Literal["float32", "tf32", "bf16"]
"""What the large products of a step multiply; they add up in float32. TF32 and bfloat16 have 10 and 7 bits of 23."""
_FLOP_PER_SECOND = {"cpu": 6e10, "cuda": 2e13}  # the order of magnitude
_STEPS_PER_SECOND = {"cpu": 1e5, "cuda": 5e4}  # of the smallest head


def steps_in(seconds: float, device: torch.device, flop_per_step: float) -> int:
    """Return about how many training steps a device makes in so many seconds, at least one."""
    seconds_per_step = flop_per_step / _FLOP_PER_SECOND[device.type] + 1 / _STEPS_PER_SECOND[device.type]
    return max(1, int(seconds / seconds_per_step))


@dataclass(frozen=True)
class HeadBlock:
    """BatchNorm, dropout with probability ``p`` and a linear layer; ReLU follows in all blocks but the last."""

    bn: nn.BatchNorm1d
    p: float
    linear: nn.Linear

    def tensors(self) -> tuple[Tensor, ...]:
        """Return weight, bias, gamma, beta, running mean and running variance."""
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        return self.linear.weight, self.linear.bias, self.bn.weight, self.bn.bias, mean, var

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes that `tensors` must have."""
        n_in, n_out = self.linear.in_features, self.linear.out_features
        return (n_out, n_in), (n_out,), *[(n_in,)] * 4

    def parameters(self) -> tuple[Tensor, ...]:
        """Return weight, bias, gamma and beta."""
        return self.tensors()[:4]


@dataclass(frozen=True)
class HeadSpec:
    """The blocks of a head that the engine knows, in order."""

    blocks: tuple[HeadBlock, ...]

    @classmethod
    def from_layers(cls, layers: nn.Sequential) -> HeadSpec | None:
        """Read (BatchNorm, dropout?, linear, ReLU)*, BatchNorm, dropout?, linear; None when it is anything else.

        A dropout is any module with a probability `.p` whose class name ends in "Dropout". All tensors must be float32,
        contiguous, and on one device: the CPU, or a GPU that the kernels run on. Layers must compute what their class
        does: a hook, also that of a pruned layer, or another ``forward`` would be passed by.
        """
        rest = list(layers)
        if not all(_is_plain(module) for module in (layers, *rest)):
            return None
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
        """Return all trained tensors."""
        return [tensor for block in self.blocks for tensor in block.parameters()]

    def tensors(self) -> list[Tensor]:
        """Return the tensors of all blocks.

        Raises:
            ValueError: they are no longer what `from_layers` found.
        """
        for number, block in enumerate(self.blocks):
            if not _fits(block, self.blocks[number - 1] if number else None):
                raise ValueError(
                    f"HeadSpec: block {number} must hold contiguous float32 tensors of its layers' sizes, all on one "
                    "device, and no longer does. Move them back, or make a new spec with from_layers."
                )
        return [tensor for block in self.blocks for tensor in block.tensors()]


def _is_plain(module: nn.Module) -> bool:
    """Return whether nothing was hung on a layer or its parameters: no hooks, no ``forward`` of the object's own."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    parameters = [p for p in module._parameters.values() if p is not None]
    of_gradients = [hook for p in parameters for hook in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    return "forward" not in vars(module) and not any(hooks) and not any(of_gradients)


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
    if device.type != "cpu" and not has_cuda_kernels(device):
        return False
    return all(t.dtype == torch.float32 and t.device == device and t.is_contiguous() for t in block.tensors())


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
        for name in ("lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"HeadRates: {name} must be finite and not negative, got {value}.")
        if not isinstance(self.schedule, Schedule) or isinstance(self.schedule, Function):
            raise ValueError(
                f"HeadRates: schedule must be a fastclf.schedules object, got {self.schedule!r}. Of a function, pass "
                "Table.of(function, steps)."
            )
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"HeadRates: clip must be positive, got {self.clip}. Pass None for no clipping.")

    @property
    def group(self) -> SgdGroup:
        """All parameters as one group of an SGD step."""
        return SgdGroup(self.lr, self.schedule, self.momentum, self.weight_decay, self.decoupled)


@dataclass(frozen=True)
class HeadTraining:
    """All that a head is trained with; `HeadEngine` has checked it.

    Attributes:
        spec: the head.
        rows: N rows of F columns, float16 or float32, on the CPU.
        targets: `[N] int64` (`NLL`) or `[N, C] float32` (`BCE`), on the CPU.
        loss: what is minimised.
        rates: how parameters are updated.
        seed: of the dropout masks.
        max_batch: the largest batch.
        precision: of the products, on a GPU.
        threads: of the processor's engine; None for torch's number.
    """

    spec: HeadSpec
    rows: RowSource
    targets: Tensor
    loss: NLL | BCE
    rates: HeadRates
    seed: int
    max_batch: int
    precision: Precision = "float32"
    threads: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the head's tensors are."""
        return self.spec.device


class WithVelocity:
    """What trains a head, with the momentum of every parameter in a tensor of its own.

    Attributes:
        velocity: the momenta, as `HeadSpec.parameters` has the parameters.
    """

    velocity: list[Tensor]

    def momenta(self) -> list[Tensor]:
        """Return a copy of the momentum of every parameter."""
        return [v.clone() for v in self.velocity]

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Replace the momenta."""
        for v, given in zip(self.velocity, momenta, strict=True):
            v.copy_(given)
