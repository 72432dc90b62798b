"""The head engine on a GPU: kernels of ours around matrix products, captured once and replayed for every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastclf.ops import kernels
from fastclf.ops.head_spec import HeadBlock, HeadLoss, HeadRates, HeadSpec
from fastclf.ops.kernel_arguments import Dropout, Moments, RowBatch, Scratch
from fastclf.ops.kernel_checks import current
from fastclf.ops.row_source import row_source
from fastclf.ops.update import Update, UpdateTable

Operands = Literal["float32", "tf32", "bfloat16"]
_PREDICT_ROWS = 8192  # rows of one product


class KernelHead:
    """Trains the head of `spec` where its tensors are: on a GPU, or on the CPU under emulation.

    A step's kernels read everything that changes (rows, step number, rates) from device memory, so on a GPU one CUDA
    graph serves all steps of one batch size. `HeadEngine` has checked the arguments.

    Args:
        spec: the head.
        rows: `[N, F] float16 | float32`; copied to the device when they take at most `resident_bytes`.
        targets: `[N] int64` or `[N, C] float32`.
        loss: what is minimised.
        rates: how parameters are updated.
        seed: of the dropout masks.
        max_batch: the largest batch.
        operands: what the products multiply: float32, float32 rounded to TF32 inside the product, or bfloat16.
        resident_bytes: None: half of the device's free memory.
    """

    def __init__(
        self,
        spec: HeadSpec,
        rows: Tensor,
        targets: Tensor,
        loss: HeadLoss,
        rates: HeadRates,
        seed: int,
        max_batch: int,
        *,
        operands: Operands = "float32",
        resident_bytes: int | None = None,
    ) -> None:
        self.spec, self.rates, self.operands = spec, rates, operands
        self.device = device = spec.device
        self.clock = torch.zeros(2, dtype=torch.int32, device=device)
        self.rows = row_source(rows, device, max_batch, self.clock, resident_bytes)
        self.targets = targets.to(device)
        self.loss = HeadLoss(
            loss.kind,
            None if loss.weight is None else loss.weight.detach().to(device, torch.float32).contiguous(),
            loss.label_smoothing,
        )
        _ = self.loss.weight_sum  # read now: nothing may wait for the device while a graph is captured
        widths = [spec.n_in, *(block.linear.out_features for block in spec.blocks)]
        self.scratch = Scratch(max_batch, max(widths), device)
        self.blocks = [_Block(block, n, seed, max_batch, operands) for n, block in enumerate(spec.blocks)]
        self.velocity = [torch.zeros_like(p) for p in spec.parameters()]
        gradients = [g for block in self.blocks for g in block.gradients]
        self.table = UpdateTable(
            (Update(p, g, v, None, 0) for p, g, v in zip(spec.parameters(), gradients, self.velocity, strict=True)),
            device,
        )
        group = [rates.lr, rates.momentum, rates.weight_decay, rates.decoupled, 0, *rates.schedule.table().tolist(), 0]
        self.groups = torch.tensor([group], dtype=torch.float64, device=device)
        self.factor = torch.ones(1, device=device)
        self._order = torch.empty(0, dtype=torch.int64, device=device)
        self._losses = torch.empty(0, device=device)
        self._steps: dict[tuple[int, int, int, bool], Callable[[], None]] = {}

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Returns the loss of every batch, on the device; see `HeadEngine.train`."""
        n_steps = -(-len(order) // batch_size)
        self._make_room(len(order), n_steps)
        self._order[: len(order)].copy_(order)
        self.clock.copy_(torch.tensor([np.uint32(first_step).astype(np.int32), 0], dtype=torch.int32))
        self.groups[:, 4] = first_step
        with current(self.device):
            for i, slot in enumerate(self.rows.serve(order, batch_size)):
                rows = min(batch_size, len(order) - i * batch_size)
                self._step_of(rows, batch_size, slot, frozen_bn)()
        return self._losses[:n_steps].clone()

    def momenta(self) -> list[Tensor]:
        """A copy of the momentum of every parameter."""
        return [v.clone() for v in self.velocity]

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Replaces the momenta."""
        for v, given in zip(self.velocity, momenta, strict=True):
            v.copy_(given)

    def _make_room(self, rows: int, steps: int) -> None:
        if rows > len(self._order) or steps > len(self._losses):
            self._order = torch.empty(rows, dtype=torch.int64, device=self.device)
            self._losses = torch.empty(steps, device=self.device)
            self._steps.clear()  # they know the old addresses

    def _step_of(self, rows: int, stride: int, slot: int, frozen: bool) -> Callable[[], None]:
        key = (rows, stride, slot, frozen)
        if key not in self._steps:
            step = partial(self._step, *key)
            self._steps[key] = _captured(step, self.operands) if self.device.type == "cuda" else step
        return self._steps[key]

    def _step(self, rows: int, stride: int, slot: int, frozen: bool) -> None:
        targets = RowBatch(self.targets, rows, self.clock, self._order, stride)
        inputs = self._forward(self.rows.batch(slot, self._order, rows, stride), frozen)
        last = self.blocks[-1]
        kernels.loss_gradient(
            self.loss, last.z[:rows], last.bias, self.targets, targets, self._losses, self.scratch, last.copy_of(rows)
        )
        kernels.column_sums(last.z[:rows], last.gradients[1], self.scratch)
        self._backward(inputs, frozen)
        if self.rates.clip is not None:
            self.table.clip_factor(self.rates.clip, self.factor)
        self.table.step(self.groups, scale=self.factor, clock=self.clock)

    def _forward(self, x: RowBatch, frozen: bool) -> list[RowBatch]:
        """Leaves each block's product in its z, the last one's without the bias; returns the blocks' inputs."""
        inputs = []
        for block, after in zip(self.blocks, [*self.blocks[1:], None], strict=True):
            inputs.append(x)
            if frozen:
                block.use_running_statistics()
            elif len(inputs) == 1:
                kernels.batch_moments(x, block.moments, self.scratch)
            operand, z = block.operand[: x.rows], block.z[: x.rows]
            kernels.normalise(
                x, block.moments.mean, block.moments.rstd, block.gamma, block.beta, block.dropout, operand
            )
            _product(operand, block.product_weight().t(), z)
            if after is not None and frozen:
                kernels.add_bias(z, block.bias, relu=True)
            elif after is not None:
                kernels.relu_moments(z, block.bias, after.moments, self.scratch)
            x = RowBatch(z, x.rows, self.clock)
        return inputs

    def _backward(self, inputs: list[RowBatch], frozen: bool) -> None:
        """From the gradient of the logits, in the last block's z, to all gradients."""
        d = self.blocks[-1].z
        for n in reversed(range(len(self.blocks))):
            block, x = self.blocks[n], inputs[n]
            g, m = block.input_gradient[: x.rows], block.moments
            weight, _, dgamma, dbeta = block.gradients
            narrow = block.copy_of(x.rows)
            given = d[: x.rows] if narrow is None else narrow
            _product(given.t(), block.operand[: x.rows], weight)
            _product(given, block.product_weight(), g)
            kernels.affine_gradient(g, x, m.mean, m.rstd, block.dropout, dgamma, dbeta, self.scratch, write=n > 0)
            if n > 0:
                below = self.blocks[n - 1]
                kernels.input_gradient(
                    g,
                    x.src,
                    m.mean,
                    m.rstd,
                    block.gamma,
                    dgamma,
                    dbeta,
                    below.gradients[1],
                    self.scratch,
                    below.copy_of(x.rows),
                    frozen=frozen,
                )
            d = g


class _Block:
    """One block's parameters, and the memory that its step needs."""

    def __init__(self, of: HeadBlock, number: int, seed: int, max_batch: int, operands: Operands) -> None:
        self.weight, self.bias, self.gamma, self.beta, mean, var = (t.detach() for t in of.tensors())
        n_out, n_in = self.weight.shape
        device = self.weight.device
        self.dropout = Dropout(seed, number, of.p)
        self.moments = Moments(
            torch.empty_like(mean), torch.empty_like(var), mean, var, float(of.bn.momentum or 0.0), of.bn.eps
        )
        self.gradients = [torch.empty_like(t) for t in (self.weight, self.bias, self.gamma, self.beta)]
        self.z = torch.empty(max_batch, n_out, device=device)
        self.input_gradient = torch.empty(max_batch, n_in, device=device)
        narrow = operands == "bfloat16"
        self.operand = torch.empty(max_batch, n_in, device=device, dtype=torch.bfloat16 if narrow else torch.float32)
        self.narrow_weight = self.weight.bfloat16() if narrow else None
        self.narrow_gradient = torch.empty(max_batch, n_out, device=device, dtype=torch.bfloat16) if narrow else None

    def use_running_statistics(self) -> None:
        m = self.moments
        m.mean.copy_(m.running_mean)
        torch.add(m.running_var, m.eps, out=m.rstd).rsqrt_()

    def product_weight(self) -> Tensor:
        """The weight as the products multiply it."""
        return self.weight if self.narrow_weight is None else self.narrow_weight.copy_(self.weight)

    def copy_of(self, rows: int) -> Tensor | None:
        """Where the gradient of this block's z is wanted as bfloat16 too."""
        return None if self.narrow_gradient is None else self.narrow_gradient[:rows]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """`out = a @ b`, added up in float32."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


def _captured(step: Callable[[], None], operands: Operands) -> Callable[[], None]:
    """The step as a CUDA graph. Capturing does not run it."""
    square = torch.zeros(8, 8, device="cuda")
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with _tf32(operands == "tf32"), torch.cuda.stream(side):
        torch.mm(square, square)  # cuBLAS prepares itself at its first call, which cannot be captured
        with torch.cuda.graph(graph, stream=side):
            step()
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Lets float32 products round their operands to TF32, inside the block only."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def predict(spec: HeadSpec, rows: Tensor, index: Tensor) -> Tensor:
    """Logits `[M, C]` of rows `index`, where `rows` are, with BatchNorm folded into the weights."""
    with current(spec.device):
        return _predict(spec, rows, index)


def _predict(spec: HeadSpec, rows: Tensor, index: Tensor) -> Tensor:
    folded = [_folded(block) for block in spec.blocks]
    out = torch.empty(len(index), spec.n_out, device=rows.device)
    for first in range(0, len(index), _PREDICT_ROWS):
        part = index[first : first + _PREDICT_ROWS]
        x = _on_device(rows, part, spec.device)
        for n, (weight, bias) in enumerate(folded):
            x = torch.mm(x, weight.t())
            kernels.add_bias(x, bias, relu=n + 1 < len(folded))
        out[first : first + len(part)].copy_(x)
    return out


def _folded(block: HeadBlock) -> tuple[Tensor, Tensor]:
    weight, bias, gamma, beta, mean, var = (t.detach() for t in block.tensors())
    folded = torch.empty_like(weight), torch.empty_like(bias)
    kernels.fold(weight, bias, gamma, beta, mean, var, block.bn.eps, *folded)
    return folded


def _on_device(rows: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """The rows `index` as float32 on the device."""
    if rows.device != device:
        return rows[index].to(device).float()
    return kernels.gather_rows(rows, index, torch.empty(len(index), rows.shape[1], device=device))
