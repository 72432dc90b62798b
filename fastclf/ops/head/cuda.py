"""The head engine on a GPU: kernels of ours around matrix products, captured once and replayed for every batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fastclf.ops.arguments import RowSource
from fastclf.ops.cuda import backward, forward
from fastclf.ops.cuda.arguments import (
    MOST_CLASSES,
    MOST_PRODUCT_ROWS,
    DeviceLoss,
    Dropout,
    FirstLayer,
    LastLayer,
    Moments,
    RowBatch,
    Scratch,
)
from fastclf.ops.cuda.first_layer import first_gradient, first_step
from fastclf.ops.head.cuda_rows import row_source, rows_on
from fastclf.ops.head.spec import HeadBlock, HeadSpec, HeadTraining, Precision, WithVelocity
from fastclf.ops.registry import current
from fastclf.ops.sgd import DeviceGroups, Update, Updates, UpdateTable

_FIRST = (0, 2, 3)  # of `HeadSpec.parameters`: the first layer's weight, gamma and beta
_FUSED_ROWS = 1024
_PRODUCT_ROWS = {"float32": MOST_PRODUCT_ROWS, "tf32": 64, "bf16": 64}  # more go through tensor cores faster
_PREDICT_ROWS = 8192  # rows of one product
_MANY = 32  # steps of the longer graph
_WORTH_MANY = 1024  # steps of one form: capturing 32 takes as long as replaying some hundreds saves


class CudaHead(WithVelocity):
    """Trains the head where its tensors are: on a GPU, or on the CPU under emulation.

    A step's kernels read everything that changes (rows, step number, rates) from device memory, so on a GPU one CUDA
    graph serves all steps of one batch size, and one graph may hold many steps.

    Args:
        native: the module whose kernels run.
        training: the head and what it is trained with.
        resident_bytes: rows that take more stay in main memory; None: half of the device's free memory.
    """

    def __init__(self, native: ModuleType, training: HeadTraining, *, resident_bytes: int | None = None) -> None:
        spec, max_batch, rates = training.spec, training.max_batch, training.rates
        self.spec, self.clip, self.precision = spec, rates.clip, training.precision
        self.device = device = spec.device
        self.step_counter = torch.zeros(2, dtype=torch.int32, device=device)
        self.rows = row_source(training.rows, device, max_batch, self.step_counter, resident_bytes)
        self.targets = training.targets.to(device)
        self.loss = DeviceLoss.of(training.loss, spec.n_out, device)
        self.scratch = Scratch(max_batch, device)
        self.blocks = [_Block(block, n, training) for n, block in enumerate(spec.blocks)]
        # Small last layers need no products; of many rows, blocks of few columns would make them too slowly.
        self._is_fused = spec.n_out <= MOST_CLASSES and max_batch <= _FUSED_ROWS
        self.velocity = [torch.zeros_like(p) for p in spec.parameters()]
        gradients = [g for block in self.blocks for g in block.gradients]
        triples = zip(spec.parameters(), gradients, self.velocity, strict=True)
        updates = [Update(p, g, v, None, 0) for p, g, v in triples]
        if rates.clip is None:  # the first layer is updated where its gradients are made
            updates = [update for n, update in enumerate(updates) if n not in _FIRST]
        self._native, self.table = native, UpdateTable(native, Updates(device, updates))
        self.groups = DeviceGroups([rates.group], [0], device)
        self.factor = torch.ones(1, dtype=torch.float32, device=device)
        self._order = torch.empty(0, dtype=torch.int64, device=device)
        self._losses = torch.empty(0, dtype=torch.float32, device=device)
        self._steps: dict[tuple[int, int, int, bool], _Steps] = {}

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Return the loss of every batch, on the device; see `HeadEngine.train`."""
        n_steps = -(-len(order) // batch_size)
        self._make_room(len(order), n_steps)
        self._order[: len(order)].copy_(order)
        self.step_counter.copy_(torch.tensor([np.uint32(first_step).astype(np.int32), 0], dtype=torch.int32))
        self.groups.steps.fill_(first_step)
        with current(self.device):
            for batches in self.rows.serve(order, batch_size):
                self._steps_of(batches.rows, batch_size, batches.slot, frozen_bn).run(batches.steps)
        return self._losses[:n_steps].clone()

    def _make_room(self, rows: int, steps: int) -> None:
        if rows > len(self._order) or steps > len(self._losses):
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # a graph may be under way
            self._order = torch.empty(rows, dtype=torch.int64, device=self.device)
            self._losses = torch.empty(steps, dtype=torch.float32, device=self.device)
            self._steps.clear()  # they know the old addresses

    def _steps_of(self, rows: int, stride: int, slot: int, frozen: bool) -> _Steps:
        key = (rows, stride, slot, frozen)
        if key not in self._steps:
            self._steps[key] = _Steps(partial(self._step, *key), self.precision, self.device)
        return self._steps[key]

    def _step(self, rows: int, stride: int, slot: int, frozen: bool) -> None:
        targets = RowBatch(self.targets, rows, self.step_counter, self._order, stride)
        inputs = self._forward(self.rows.batch(slot, self._order, rows, stride), frozen)
        last = self.blocks[-1]
        product = (last.operand[:rows], last.weight) if self._is_fused else None
        backward.loss_gradient(
            last.d[:rows], last.bias, self.loss, targets, self._losses, self.scratch, last.copy_of(rows), product
        )
        self._backward(inputs, frozen)
        first = self.blocks[0]
        if self.clip is None:
            first_step(
                self._native,
                first.layer(),
                [self.velocity[n] for n in _FIRST],
                self.table,
                self.groups,
                scale=self.factor,
                step_counter=self.step_counter,
                made_from=(first.d[:rows], first.factors[:rows]) if first.products is None else None,
            )
            return
        dweight, _, dgamma, dbeta = first.gradients
        first_gradient(first.layer(), dweight, dgamma, dbeta)
        self.table.clip_factor(self.clip, self.factor)
        self.table.step(self.groups, scale=self.factor, step_counter=self.step_counter)

    def _forward(self, x: RowBatch, frozen: bool) -> list[RowBatch]:
        """Leave every block's operand, and its product unless the loss makes it; return the blocks' inputs."""
        inputs, bias = [], None
        for n, block in enumerate(self.blocks):
            inputs.append(x)
            operand, factors = block.operand[: x.rows], block.factors[: x.rows] if n == 0 else None
            forward.normalise(
                x,
                block.moments,
                block.gamma,
                block.beta,
                block.dropout,
                operand,
                bias=bias,
                factors=factors,
                frozen=frozen,
            )
            if n + 1 < len(self.blocks) or not self._is_fused:
                _product(operand, block.product_weight().t(), block.z[: x.rows])
            x, bias = RowBatch(block.z[: x.rows], x.rows, self.step_counter), block.bias
        return inputs

    def _backward(self, inputs: list[RowBatch], frozen: bool) -> None:
        """From the gradient of the logits to all gradients but the first block's, and to what those are made of."""
        rows, last = inputs[0].rows, self.blocks[-1]
        for block, below, h in zip(self.blocks[:0:-1], self.blocks[-2::-1], inputs[:0:-1], strict=True):
            m, (dweight, dbias, dgamma, dbeta) = block.moments, block.gradients
            layer = None
            if block is last and self._is_fused:
                layer = LastLayer(block.d[:rows], block.weight, block.operand[:rows], dweight, dbias)
            else:
                given = block.product_gradient(rows)
                _product(given.t(), block.operand[:rows], dweight)
                _product(
                    given, block.narrow_weight if block.narrow_weight is not None else block.weight, below.d[:rows]
                )
            backward.hidden_gradient(
                below.d[:rows],
                h,
                m,
                block.gamma,
                block.dropout,
                dgamma,
                dbeta,
                below.gradients[1],
                below.copy_of(rows),
                layer,
                frozen=frozen,
            )
        if not self._is_fused or len(self.blocks) == 1:
            backward.column_sums(last.d[:rows], last.gradients[1])
        first = self.blocks[0]
        if first.products is not None:
            _product(first.product_gradient(rows).t(), first.factors[:rows], first.products)


class _Block:
    """One block's parameters, and the memory that its step needs."""

    def __init__(self, of: HeadBlock, number: int, training: HeadTraining) -> None:
        self.weight, self.bias, self.gamma, self.beta, mean, var = (t.detach() for t in of.tensors())
        (n_out, n_in), rows, device = self.weight.shape, training.max_batch, self.weight.device
        self.dropout = Dropout(training.seed, number, of.p)
        self.moments = Moments(
            torch.empty_like(mean), torch.empty_like(var), mean, var, float(of.bn.momentum or 0.0), of.bn.eps
        )
        self.gradients = [torch.empty_like(t) for t in (self.weight, self.bias, self.gamma, self.beta)]
        narrow = training.precision == "bf16"
        operand = torch.bfloat16 if narrow else torch.float32
        self.z = torch.empty(rows, n_out, dtype=torch.float32, device=device)
        # The gradient of z; that of the logits takes their place.
        is_last = number + 1 == len(training.spec.blocks)
        self.d = self.z if is_last else torch.empty_like(self.z)
        self.operand = torch.empty(rows, n_in, dtype=operand, device=device)
        self.narrow_weight = self.weight.bfloat16() if narrow else None
        self.narrow_gradient = torch.empty(rows, n_out, dtype=operand, device=device) if narrow else None
        # Of the first block alone: what its gradients are made of.
        width = n_in if of.p == 0 else 2 * n_in
        self.factors = torch.empty(rows if number == 0 else 0, width, dtype=operand, device=device)
        takes = training.rates.clip is not None or rows > _PRODUCT_ROWS[training.precision]
        self.products = torch.empty(n_out, width, dtype=torch.float32, device=device) if number == 0 and takes else None

    def layer(self) -> FirstLayer:
        """Return the first block as the operations take it."""
        return FirstLayer(self.products, self.weight, self.gamma, self.beta, self.dropout, self.gradients[1])

    def product_weight(self) -> Tensor:
        """Return the weight as the products multiply it, which later ones in this step find in `narrow_weight`."""
        return self.weight if self.narrow_weight is None else self.narrow_weight.copy_(self.weight)

    def product_gradient(self, rows: int) -> Tensor:
        """Return the gradient of z as the products multiply it."""
        narrow = self.copy_of(rows)
        return self.d[:rows] if narrow is None else narrow

    def copy_of(self, rows: int) -> Tensor | None:
        """Return where the gradient of this block's z is wanted as bfloat16 too."""
        return None if self.narrow_gradient is None else self.narrow_gradient[:rows]


def _product(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Compute `out = a @ b`, added up in float32."""
    if a.dtype == torch.float32:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        torch.mm(a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a.float(), b.float(), out=out)


class _Steps:
    """Steps of one form. On a GPU a CUDA graph makes one; another, captured after the first 1,024, makes 32."""

    def __init__(self, step: Callable[[], None], precision: Precision, device: torch.device) -> None:
        self._step, self._precision, self._device = step, precision, device
        self._graphs: dict[int, Callable[[], None]] = {}
        self._asked = 0

    def run(self, n: int) -> None:
        """Make `n` steps."""
        self._asked += n
        many, left = divmod(n, _MANY) if self._asked >= _WORTH_MANY else (0, n)
        for _ in range(many):
            self._graph(_MANY)()
        for _ in range(left):
            self._graph(1)()

    def _graph(self, steps: int) -> Callable[[], None]:
        if steps not in self._graphs:
            work = partial(_repeat, self._step, steps)
            self._graphs[steps] = _captured(work, self._precision) if self._device.type == "cuda" else work
        return self._graphs[steps]


def _repeat(step: Callable[[], None], times: int) -> None:
    for _ in range(times):
        step()


def _captured(work: Callable[[], None], precision: Precision) -> Callable[[], None]:
    """Return the work as a CUDA graph. Capturing does not run it."""
    square, side = torch.zeros(8, 8, device="cuda"), _capture_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with _tf32(precision == "tf32"), torch.cuda.stream(side):
        torch.mm(square, square)  # cuBLAS prepares itself at its first call, which cannot be captured
        # Other threads, a loader's for one, may allocate meanwhile.
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            work()
    torch.cuda.current_stream().wait_stream(side)
    return graph.replay


@cache
def _capture_stream(device: int) -> torch.cuda.Stream:
    """Return the stream on which graphs are captured: torch keeps cuBLAS's workspace for each stream that it sees."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products round their operands to TF32, inside the block only."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def predict(native: ModuleType, spec: HeadSpec, rows: RowSource, index: Tensor) -> Tensor:
    """Return logits `[M, C]` of rows `index`, on the CPU, with BatchNorm folded into the weights."""
    with current(spec.device):
        folded = [_folded(block) for block in spec.blocks]
        # A few rows of many are not worth a copy of all.
        kept = rows_on(rows, spec.device) if 2 * len(index) >= len(rows) else None
        matrix, places = (rows.matrix, rows.places(index)) if kept is None else (kept, index.to(spec.device))
        out = torch.empty(len(index), spec.n_out, dtype=torch.float32)
        for first in range(0, len(index), _PREDICT_ROWS):
            part = places[first : first + _PREDICT_ROWS]
            x = matrix[part].to(spec.device).float()
            for n, (weight, bias) in enumerate(folded):
                x = torch.mm(x, weight.t())
                forward.add_bias(x, bias, relu=n + 1 < len(folded))
            out[first : first + len(part)].copy_(x)
    return out


def _folded(block: HeadBlock) -> tuple[Tensor, Tensor]:
    weight, bias, gamma, beta, mean, var = (t.detach() for t in block.tensors())
    folded = torch.empty_like(weight), torch.empty_like(bias)
    forward.fold(weight, bias, gamma, beta, mean, var, block.bn.eps, *folded)
    return folded
