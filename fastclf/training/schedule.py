"""Learning rate and momentum as pure functions of the step number.

A schedule knows nothing of optimizers: it answers, for batch ``step`` of one fit (from 0), by which factor every
group's highest rate is multiplied, and which momentum holds. The native engine computes the same numbers from
``table()``; `csrc/device/schedule.h` is its twin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fastclf.training.inputs import check_count, check_numbers


class Schedule(Protocol):
    """What the loop, the optimizers and the recorder ask of a schedule."""

    def factor(self, step: int) -> float:
        """The factor on every group's highest rate in batch ``step``."""

    def momentum(self, step: int) -> float | None:
        """The momentum in batch ``step``, or None where the optimizer keeps its own."""

    def ends_cycle(self, step: int) -> bool:
        """Whether batch ``step`` is the last of a cycle."""

    def table(self) -> NDArray[np.float64]:
        """The schedule as ``[8] float64`` for native code: kind, then this kind's numbers, then zeros."""


def n_epochs(n_cycle: int, cycle_len: int | None, cycle_mult: float) -> int:
    """Epochs of ``fit(lrs, n_cycle, cycle_len=, cycle_mult=)``: (3, 1, 2) -> 7, (3, 2, 2) -> 14, (2, 4, 2) -> 12."""
    if not cycle_len:
        return n_cycle
    if cycle_mult == 1:
        return cycle_len * n_cycle
    return math.ceil(cycle_len * (1 - cycle_mult**n_cycle) / (1 - cycle_mult))


def _table(kind: int, *numbers: float) -> NDArray[np.float64]:
    table = np.zeros(8)
    table[: 1 + len(numbers)] = (kind, *numbers)
    return table


@dataclass(frozen=True)
class Constant:
    """The same rate in every batch."""

    kind: ClassVar[int] = 0

    def factor(self, step: int) -> float:
        """Always 1."""
        return 1.0

    def momentum(self, step: int) -> float | None:
        """None: the optimizer keeps its own."""
        return None

    def ends_cycle(self, step: int) -> bool:
        """Never: there are no cycles."""
        return False

    def table(self) -> NDArray[np.float64]:
        """``[kind]``."""
        return _table(self.kind)


@dataclass(frozen=True)
class _Cyclic:
    """Cycles of ``nb`` batches, each ``cycle_mult`` times as long as the one before."""

    nb: int
    cycle_mult: float = 1.0

    def __post_init__(self) -> None:
        if self.nb < 1:
            raise ValueError(f"{type(self).__name__}: nb must be at least one batch, got {self.nb}")
        if self.cycle_mult < 1:
            raise ValueError(f"{type(self).__name__}: cycle_mult must be at least 1, got {self.cycle_mult}")

    def position(self, step: int) -> tuple[int, float]:
        """Batch within the cycle, and the cycle's length, at batch ``step`` of the fit."""
        if self.cycle_mult == 1:
            return step % self.nb, float(self.nb)
        length = float(self.nb)
        while step >= length:
            step -= math.ceil(length)
            length *= self.cycle_mult
        return step, length

    def ends_cycle(self, step: int) -> bool:
        """Whether batch ``step`` is the last of a cycle."""
        return self.position(step + 1)[0] == 0

    def momentum(self, step: int) -> float | None:
        """None: the optimizer keeps its own."""
        return None


@dataclass(frozen=True)
class SGDR(_Cyclic):
    """Cosine annealing with warm restarts, after a short warm-up.

    ``1/100`` while ``step < nb/20`` (once per fit), then ``(1 + cos(pi * ci / length)) / 2`` with ``ci`` the batch
    within the cycle. Source: Loshchilov and Hutter, "SGDR", 2017; the warm-up is fast.ai's (library version 0.7).
    """

    kind: ClassVar[int] = 1

    def factor(self, step: int) -> float:
        """The factor on every group's highest rate in batch ``step``."""
        if step < self.nb / 20:
            return 0.01
        ci, length = self.position(step)
        return (1 + math.cos(math.pi * ci / length)) / 2

    def table(self) -> NDArray[np.float64]:
        """``[kind, nb, cycle_mult]``."""
        return _table(self.kind, self.nb, self.cycle_mult)


@dataclass(frozen=True)
class CLR(_Cyclic):
    """A slanted triangle per cycle: up from ``1/div`` to 1 in ``length // cut_div`` batches, straight down again.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", 2018, section 3.2; Smith, "Cyclical Learning
    Rates", 2017.
    """

    div: float = 32.0
    cut_div: float = 10.0
    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.div <= 0 or self.cut_div <= 1:
            raise ValueError(f"use_clr must be (div > 0, cut_div > 1), got ({self.div}, {self.cut_div})")

    def factor(self, step: int) -> float:
        """The factor on every group's highest rate in batch ``step``."""
        ci, length = self.position(step)
        cut = length // self.cut_div
        pct = 1 - (ci - cut) / (length - cut) if ci >= cut else ci / cut
        return (1 + pct * (self.div - 1)) / self.div

    def table(self) -> NDArray[np.float64]:
        """``[kind, nb, cycle_mult, div, cut_div]``."""
        return _table(self.kind, self.nb, self.cycle_mult, self.div, self.cut_div)


@dataclass(frozen=True)
class CLRBeta(_Cyclic):
    """1cycle: up from ``1/div`` to 1, down to ``1/div``, then ``pct`` percent of the cycle on to ``1/(100 div)``.

    With ``max_mom`` and ``min_mom`` the momentum mirrors the rate. Source: Smith, "A disciplined approach to neural
    network hyper-parameters", 2018.
    """

    div: float = 10.0
    pct: float = 10.0
    max_mom: float | None = None
    min_mom: float | None = None
    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.div <= 0 or not 0 <= self.pct < 100:
            raise ValueError(f"use_clr_beta must be (div > 0, 0 <= pct < 100, ...), got ({self.div}, {self.pct})")
        if (self.max_mom is None) != (self.min_mom is None):
            raise ValueError("use_clr_beta must give both momenta (div, pct, max_mom, min_mom), or neither")

    def _rise(self, step: int) -> tuple[float, float]:
        """Share of the way up (1 at the top), and share of the final annealing that is done (0 before it)."""
        ci, length = self.position(step)
        half = int(length * (1 - self.pct / 100) / 2)
        if ci > 2 * half or half == 0:
            return 0.0, (ci - 2 * half) / (length - 2 * half)
        return (1 - (ci - half) / half if ci > half else ci / half), 0.0

    def factor(self, step: int) -> float:
        """The factor on every group's highest rate in batch ``step``."""
        up, tail = self._rise(step)
        return (1 + up * (self.div - 1)) / self.div * (1 - 0.99 * tail)

    def momentum(self, step: int) -> float | None:
        """The momentum in batch ``step``: ``max_mom`` at the ends, ``min_mom`` at the top."""
        if self.max_mom is None or self.min_mom is None:
            return None
        up, _ = self._rise(step)
        return self.max_mom + up * (self.min_mom - self.max_mom)

    def table(self) -> NDArray[np.float64]:
        """``[kind, nb, cycle_mult, div, pct, has_momenta, max_mom, min_mom]``."""
        momenta = (0.0, 0.0, 0.0) if self.max_mom is None else (1.0, self.max_mom, self.min_mom or 0.0)
        return _table(self.kind, self.nb, self.cycle_mult, self.div, self.pct, *momenta)


@dataclass(frozen=True)
class Finder:
    """The rate range test: from 1 towards ``ratio`` over ``nb`` batches, in equal ratios or on a straight line.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, section 3.3.
    """

    nb: int
    ratio: float
    linear: bool = False
    kind: ClassVar[int] = 4

    def __post_init__(self) -> None:
        if self.nb < 1 or not self.ratio > 0:
            raise ValueError(f"lr_find: needs a batch and end_lr/start_lr > 0, got {self.nb} and {self.ratio}")

    def factor(self, step: int) -> float:
        """The factor on every group's starting rate in batch ``step``."""
        done = step / self.nb
        return 1 + (self.ratio - 1) * done if self.linear else math.exp(math.log(self.ratio) * done)

    def momentum(self, step: int) -> float | None:
        """None: the optimizer keeps its own."""
        return None

    def ends_cycle(self, step: int) -> bool:
        """Never: there are no cycles."""
        return False

    def table(self) -> NDArray[np.float64]:
        """``[kind, nb, ratio, linear]``."""
        return _table(self.kind, self.nb, self.ratio, float(self.linear))


def make_schedule(
    nb: int,
    cycle_len: int | None,
    cycle_mult: float = 1,
    use_clr: Sequence[float] | None = None,
    use_clr_beta: Sequence[float] | None = None,
) -> Schedule:
    """The schedule that ``fit`` was asked for, with ``nb`` batches per epoch."""
    if cycle_len is not None:
        check_count("fit", "cycle_len", cycle_len)
    check_numbers("fit", "cycle_mult", cycle_mult)
    if use_clr is not None and use_clr_beta is not None:
        raise ValueError("fit: use_clr and use_clr_beta exclude each other, got both")
    if not cycle_len:
        if use_clr is not None or use_clr_beta is not None or cycle_mult != 1:
            raise ValueError("fit: use_clr, use_clr_beta and cycle_mult need cycle_len, the epochs of the first cycle")
        return Constant()
    if use_clr is not None:
        _check_tuple("use_clr", use_clr, (2,), "(div, cut_div)")
        return CLR(nb * cycle_len, cycle_mult, *use_clr)
    if use_clr_beta is not None:
        _check_tuple("use_clr_beta", use_clr_beta, (2, 4), "(div, pct[, max_mom, min_mom])")
        return CLRBeta(nb * cycle_len, cycle_mult, *use_clr_beta)
    return SGDR(nb * cycle_len, cycle_mult)


def _check_tuple(name: str, given: Sequence[float], lengths: tuple[int, ...], form: str) -> None:
    if not isinstance(given, Sized) or len(given) not in lengths:
        raise ValueError(f"fit: {name} must be {form}, got {given}")
    check_numbers("fit", name, *given)
