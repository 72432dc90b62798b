"""Training and running a head over mapped activations: many steps in one native call."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fastclf.interrupts import Interrupts
from fastclf.losses import BCE, NLL
from fastclf.ops.arguments import Index, RowMatrix, RowSource, as_index, as_row_source
from fastclf.ops.head import cpu, cuda, reference
from fastclf.ops.head.spec import HeadRates, HeadSpec, HeadTraining, Precision, steps_in
from fastclf.ops.registry import Operation, has_cuda_kernels, operation

_SECONDS_PER_CALL = 0.2  # how long Ctrl-C may have to wait


class HeadEngine:
    """Trains the head of `spec` on rows; the head's own tensors are updated in place, running statistics included.

    The momentum lives here, so one engine serves one fit. Results are bitwise the same for every number of threads. It
    runs where the head's tensors are, on the CPU or a GPU; the rows may lie in a mapped file for both.

    Args:
        spec: the head; see `HeadSpec.from_layers`.
        rows: `[N, F] float16 | float32`, an array, a memory map, a tensor or `IndexedRows`; must outlive the engine
            unchanged. A GPU keeps its copy of an array that cannot be written to (a file mapped for reading) for as
            long as the array lives, so that later engines need none; of others each engine makes its own.
        targets: `[N] int64` classes (`NLL`) or `[N, C] float32` (`BCE`).
        loss: what is minimised.
        rates: how parameters are updated.
        max_batch: the largest batch that `train` will get.
        seed: of the dropout masks, 0 <= seed < 2**64; see `dropout_mask`.
        precision: what the products multiply on a GPU, see `Precision`; elsewhere "float32".
        threads: of the processor; torch's number when not given. Engines of one thread each run side by side.

    Raises:
        TypeError, ValueError: an argument has another dtype, shape or range.
    """

    def __init__(
        self,
        spec: HeadSpec,
        rows: RowMatrix,
        targets: Tensor,
        *,
        loss: NLL | BCE,
        rates: HeadRates,
        max_batch: int,
        seed: int = 0,
        precision: Precision = "float32",
        threads: int | None = None,
    ) -> None:
        self.spec, self.max_batch, self._seed = spec, max_batch, seed
        self._rows = as_row_source("HeadEngine: rows", rows)
        if self._rows.columns != spec.n_in:
            raise ValueError(f"HeadEngine: rows must have {spec.n_in} columns (the head's), got {self._rows.columns}.")
        if not 0 <= seed < 2**64:
            raise ValueError(f"HeadEngine: seed must be in [0, 2**64), got {seed}.")
        if not 1 <= max_batch < 2**32:
            raise ValueError(f"HeadEngine: max_batch must be in [1, 2**32), got {max_batch}.")
        self._targets = _checked_targets(targets, loss, len(self._rows), spec.n_out)
        self._addresses = [tensor.data_ptr() for tensor in spec.tensors()]
        if precision != "float32" and not has_cuda_kernels(spec.device):
            raise ValueError(f"HeadEngine: precision must be 'float32' for a head on {spec.device}, got {precision!r}.")
        training = HeadTraining(spec, self._rows, self._targets, loss, rates, seed, max_batch, precision, threads)
        try:
            self._trainer = _make_trainer(training)
        except MemoryError as error:
            raise MemoryError(f"HeadEngine: no memory for batches of {max_batch} rows (max_batch).") from error

    def train(self, order: Index, batch_size: int, first_step: int, *, frozen_bn: bool = False) -> Tensor:
        """Train on batches of consecutive rows of `order`.

        Ctrl-C and SIGTERM take effect between two batches: the head is then that of the batches counted so far.

        Args:
            order: `[M] int64`, the rows in the order of training; M may be anything, the last batch is smaller.
            batch_size: rows per batch, at most `max_batch`.
            first_step: number of the first step in the fit: its rate and its masks are functions of it.
            frozen_bn: BatchNorm normalises with its running statistics and keeps them.

        Returns:
            `[ceil(M / batch_size)] float32` on the head's device: the loss of each batch, before its update.

        Raises:
            IndexError: a row lies outside the file.
            TypeError: a number is not whole.
            ValueError: the batch size does not fit, a batch has one row only, or the head's tensors have moved.
        """
        batch_size, first_step = operator.index(batch_size), operator.index(first_step)
        rows = self._checked_order(order, batch_size, first_step, frozen_bn)
        losses = torch.empty(-(-len(rows) // batch_size), dtype=torch.float32, device=self.spec.device)
        with Interrupts() as interrupts:
            for part, chosen in _calls(rows, batch_size, [self]):
                losses[part] = self._trainer.train(chosen, batch_size, first_step + part.start, frozen_bn=frozen_bn)
                if not frozen_bn:
                    self._count_batches(len(losses[part]))
                interrupts.check()
        return losses

    def momenta(self) -> list[Tensor]:
        """Return a copy of the momentum of every parameter, in the order of `HeadSpec.parameters`, on the CPU."""
        return [v.cpu() for v in self._trainer.momenta()]

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Take what `momenta` gave, to go on where another engine of the same head has stopped.

        Raises:
            ValueError: they belong to another head.
        """
        wanted, got = [p.shape for p in self.spec.parameters()], [v.shape for v in momenta]
        if wanted != got:
            raise ValueError(
                f"HeadEngine.load_momenta: momenta must have the parameters' shapes {[list(s) for s in wanted]}, got "
                f"{[list(s) for s in got]}. Load them into the head they were saved from."
            )
        self._trainer.load_momenta(momenta)

    def _count_batches(self, n: int) -> None:
        for block in self.spec.blocks:
            if block.bn.num_batches_tracked is not None:
                block.bn.num_batches_tracked += n

    def _checked_order(self, order: Index, batch_size: int, first_step: int, frozen_bn: bool) -> Tensor:
        rows = as_index("HeadEngine.train", order, len(self._rows))
        self._check_batches(len(rows), batch_size, first_step, frozen_bn)
        return rows

    def _shares_input(self, other: HeadEngine) -> bool:
        """Return whether the native engine sees the same first operand up to gamma and beta, and can make it once."""
        mine, theirs = self.spec.blocks[0], other.spec.blocks[0]
        return (
            isinstance(self._trainer, cpu.CpuHead)
            and isinstance(other._trainer, cpu.CpuHead)
            and _place(self._rows) == _place(other._rows)
            and (self.max_batch, self._seed) == (other.max_batch, other._seed)
            and (mine.p, mine.bn.eps) == (theirs.p, theirs.bn.eps)
        )

    def _check_batches(self, n: int, batch_size: int, first_step: int, frozen_bn: bool) -> None:
        if not 1 <= batch_size <= self.max_batch:
            raise ValueError(
                f"HeadEngine.train: batch_size must be in 1..{self.max_batch} (max_batch), got {batch_size}."
            )
        if n > 0 and not frozen_bn and (batch_size == 1 or n % batch_size == 1):
            raise ValueError(
                f"HeadEngine.train: no batch may have one row (BatchNorm), got {n} rows in batches of {batch_size}. "
                "Leave the last row out."
            )
        if not 0 <= first_step < 2**32 - n:
            raise ValueError(f"HeadEngine.train: first_step must be in [0, 2**32), got {first_step}.")
        if [tensor.data_ptr() for tensor in self.spec.tensors()] != self._addresses:
            raise ValueError(
                "HeadEngine.train: the head's tensors have moved since the engine was made. Make a new one."
            )


def train_together(engines: Sequence[HeadEngine], order: Index, batch_size: int, first_step: int) -> Tensor:
    """Train several heads on the same batches; each becomes, bit for bit, what `HeadEngine.train` makes of it alone.

    On a processor, rows are gathered, converted and normalised and masks are sampled once for all heads; heads whose
    input differs (other rows, seed, `max_batch`, or dropout before the first layer) and those elsewhere train one after
    another. Ctrl-C and SIGTERM take effect between two batches, or two heads.

    Args:
        engines: one or more, each of another head.
        order: `[M] int64`, the rows in the order of training.
        batch_size: rows per batch.
        first_step: number of the first step in the fit.

    Returns:
        `[K, ceil(M / batch_size)] float32` on the heads' device: the losses of each head.

    Raises:
        IndexError, TypeError, ValueError: see `HeadEngine.train`; or there is no engine, or two of one head.
    """
    heads = {engine._addresses[0] for engine in engines}
    if not heads or len(heads) < len(engines):
        raise ValueError(
            f"train_together: engines must be one or more, each of another head, got {len(engines)} of {len(heads)} "
            "heads. Make a head for each."
        )
    first, *others = engines
    if not others or not all(map(first._shares_input, others)):
        return torch.stack([engine.train(order, batch_size, first_step) for engine in engines])
    batch_size, first_step = operator.index(batch_size), operator.index(first_step)
    rows = first._checked_order(order, batch_size, first_step, False)
    for engine in others:
        engine._check_batches(len(rows), batch_size, first_step, False)
    losses = torch.empty(len(engines), -(-len(rows) // batch_size), dtype=torch.float32)
    assert isinstance(first._trainer, cpu.CpuHead)
    trainers = [engine._trainer for engine in others if isinstance(engine._trainer, cpu.CpuHead)]
    with Interrupts() as interrupts:
        for part, chosen in _calls(rows, batch_size, engines):
            losses[:, part] = first._trainer.train_with(trainers, chosen, batch_size, first_step + part.start)
            for engine in engines:
                engine._count_batches(losses[0, part].numel())
            interrupts.check()
    return losses


def _calls(rows: Tensor, batch_size: int, engines: Sequence[HeadEngine]) -> Iterator[tuple[slice, Tensor]]:
    """Yield which batches each native call takes, and their rows."""
    flop = sum(engine.spec.flop_per_row for engine in engines) * batch_size
    per_call = steps_in(_SECONDS_PER_CALL, engines[0].spec.device, flop)
    for first in range(0, -(-len(rows) // batch_size), per_call):
        yield slice(first, first + per_call), rows[first * batch_size : (first + per_call) * batch_size]


def _place(rows: RowSource) -> tuple[object, ...]:
    """Return what tells rows apart: where they lie, their form, and which of them count."""
    index = None if rows.index is None else (rows.index.data_ptr(), len(rows.index))
    return rows.matrix.data_ptr(), rows.matrix.dtype, rows.matrix.shape, index


class _Trainer(Protocol):
    """What trains a head: the reference implementation, the processor's engine, or the GPU's kernels."""

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Return the loss of every batch."""

    def momenta(self) -> list[Tensor]:
        """Return a copy of the momentum of every parameter."""

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Replace the momenta."""


_make_trainer: Operation[[HeadTraining], _Trainer] = operation(reference.ReferenceHead)
_make_trainer.cpu(cpu.CpuHead)
_make_trainer.cuda(cuda.CudaHead)


def predict(spec: HeadSpec, rows: RowMatrix, index: Index | None = None) -> Tensor:
    """Compute the logits of rows, in evaluation mode (running statistics, no dropout).

    Args:
        spec: the head; see `HeadSpec.from_layers`.
        rows: `[N, F] float16 | float32`, an array, a memory map, a tensor or `IndexedRows`.
        index: `[M] int64`, the rows wanted; all in order when not given.

    Returns:
        `[M, C] float32`.

    Raises:
        IndexError: a row lies outside the file.
        TypeError, ValueError: an argument has another dtype or shape.
    """
    source = as_row_source("predict: rows", rows)
    if source.columns != spec.n_in:
        raise ValueError(f"predict: rows must have {spec.n_in} columns (the head's), got {source.columns}.")
    spec.tensors()  # still what they were
    wanted = torch.arange(len(source)) if index is None else as_index("predict", index, len(source))
    return _predict(spec, source, wanted)


_predict = operation(reference.predict)
_predict.cpu(cpu.predict)
_predict.cuda(cuda.predict)


def _checked_targets(targets: Tensor, loss: NLL | BCE, n: int, classes: int) -> Tensor:
    dtype, shape = (torch.int64, (n,)) if isinstance(loss, NLL) else (torch.float32, (n, classes))
    if targets.dtype != dtype or tuple(targets.shape) != shape or targets.device.type != "cpu":
        raise ValueError(
            f"HeadEngine: targets must be {dtype} {list(shape)} on the CPU for {type(loss).__name__}, got "
            f"{targets.dtype} {list(targets.shape)} on {targets.device}."
        )
    if isinstance(loss, NLL) and n > 0 and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        row = int(((targets < 0) | (targets >= classes)).nonzero()[0, 0])
        raise ValueError(f"HeadEngine: targets must be in 0..{classes - 1}, got {int(targets[row])} in row {row}.")
    if loss.weight is not None and tuple(loss.weight.shape) != (classes,):
        raise ValueError(f"HeadEngine: loss.weight must be [{classes}], one per class, got {list(loss.weight.shape)}.")
    return targets.clone(memory_format=torch.contiguous_format)  # of numbers that have been checked
