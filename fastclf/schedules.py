"""Schedules: how learning rate and momentum depend on the step. `fit` and `SGDR` take any of these, or any function.

A schedule is a description that knows nothing of optimizers. In batch ``step`` of a fit (from 0) it multiplies every
group's highest rate with one factor, and may set the momentum; `fastclf.ops.rate` gives both. The formulas stand in
csrc/device/schedule.h, for the training loops that run there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Rate = tuple[float, float | None]
"""The factor on every group's highest rate, and the momentum; None where the optimizer keeps its own."""
RateFunction = Callable[[int], float | tuple[float, float]]
"""A function of the step: the factor, or factor and momentum."""

_SAVED = 8  # numbers of a schedule in saved fits and optimizers
_ROUNDING = 1e-12  # relative; 10 * 1.1 * 1.1 is computed as a little more than 12.1, and 50 * 1.1 as more than 55


def rounded_up(length: float) -> int:
    """Return the least whole number that is not below a product of decimals, given as it was computed."""
    return math.ceil(length * (1 - _ROUNDING))


def rounded_down(length: float) -> int:
    """Return the greatest whole number that is not above a product of decimals, given as it was computed."""
    return math.floor(length * (1 + _ROUNDING))


class Schedule:
    """What the kinds have in common."""

    kind: ClassVar[int]  # csrc/device/schedule.h: ScheduleKind

    def ends_cycle(self, step: int) -> bool:
        """Return whether batch ``step`` is the last of a cycle."""
        return False

    def describe(self) -> list[float] | str:
        """Return the schedule in a form that can be compared and kept in a file; see `from_description`."""
        numbers = [float(self.kind), *map(float, self._numbers())]
        return numbers + [0.0] * (_SAVED - len(numbers))

    def __deepcopy__(self, memo: object) -> Schedule:
        """Return the schedule itself, which never changes."""
        return self

    def _numbers(self) -> Iterator[float]:
        """Yield the fields, in the order of saved files."""
        yield from astuple(self)  # type: ignore[call-overload]  # a dataclass


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate in every batch."""

    kind: ClassVar[int] = 0


@dataclass(frozen=True)
class _Cyclic(Schedule):
    """Cycles of ``nb`` batches, each ``cycle_mult`` times as long as the one before."""

    nb: int
    cycle_mult: float = 1.0

    def __post_init__(self) -> None:
        if self.nb < 1:
            raise ValueError(f"{type(self).__name__}: nb must be at least one batch, got {self.nb}")
        if not self.cycle_mult >= 1:
            raise ValueError(f"{type(self).__name__}: cycle_mult must be at least 1, got {self.cycle_mult}")

    def position(self, step: int) -> tuple[int, float]:
        """Return the batch within the cycle, and the cycle's length, at batch ``step`` of the fit."""
        if self.cycle_mult == 1:
            return step % self.nb, float(self.nb)
        length = float(self.nb)
        while step >= (batches := rounded_up(length)):
            step -= batches
            length *= self.cycle_mult
        return step, length

    def ends_cycle(self, step: int) -> bool:
        """Return whether batch ``step`` is the last of a cycle."""
        return self.position(step + 1)[0] == 0


@dataclass(frozen=True)
class Cosine(_Cyclic):
    """Cosine annealing with warm restarts, after a short warm-up.

    ``1/100`` while ``step < nb/20`` (once per fit), then ``(1 + cos(pi * ci / length)) / 2`` with ``ci`` the batch
    within the cycle. Source: Loshchilov and Hutter, "SGDR", 2017; the warm-up is fast.ai's (library version 0.7).
    """

    kind: ClassVar[int] = 1


@dataclass(frozen=True)
class Triangle(_Cyclic):
    """A slanted triangle per cycle: up from ``1/div`` to 1 in ``length // cut_div`` batches, straight down again.

    Source: Howard and Ruder, "Universal Language Model Fine-tuning", 2018, section 3.2; Smith, "Cyclical Learning
    Rates", 2017.
    """

    div: float = 32.0
    cut_div: float = 10.0
    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.div > 0 and self.cut_div > 1):
            raise ValueError(f"use_clr must be (div > 0, cut_div > 1), got ({self.div}, {self.cut_div})")


@dataclass(frozen=True)
class OneCycle(_Cyclic):
    """1cycle: up from ``1/div`` to 1, down to ``1/div``, then ``pct`` percent of the cycle on to ``1/(100 div)``.

    With ``max_mom`` and ``min_mom`` the momentum mirrors the rate: ``max_mom`` at the ends, ``min_mom`` at the top.
    Source: Smith, "A disciplined approach to neural network hyper-parameters", 2018.
    """

    div: float = 10.0
    pct: float = 10.0
    max_mom: float | None = None
    min_mom: float | None = None
    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.div > 0 and 0 <= self.pct < 100):
            raise ValueError(f"use_clr_beta must be (div > 0, 0 <= pct < 100, ...), got ({self.div}, {self.pct})")
        if (self.max_mom is None) != (self.min_mom is None):
            raise ValueError("use_clr_beta must give both momenta (div, pct, max_mom, min_mom), or neither")
        momenta = (m for m in (self.max_mom, self.min_mom) if m is not None)
        if not all(0 <= m < 1 for m in momenta):
            raise ValueError(f"use_clr_beta must have momenta in [0, 1), got ({self.max_mom}, {self.min_mom})")

    def _numbers(self) -> Iterator[float]:
        has_momenta = self.max_mom is not None
        yield from (self.nb, self.cycle_mult, self.div, self.pct, has_momenta, self.max_mom or 0, self.min_mom or 0)


@dataclass(frozen=True)
class RangeTest(Schedule):
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
        if self.linear not in (False, True):  # a number of a saved schedule
            raise ValueError(f"lr_find: linear must be True or False, got {self.linear}")


@dataclass(frozen=True, eq=False)
class Table(Schedule):
    """Values by step; the last ones are held.

    Args:
        factors: ``[n]``, n >= 1, finite and not negative.
        momenta: ``[n]``, in [0, 1), or None where the optimizer keeps its own.
    """

    factors: NDArray[np.float64]
    momenta: NDArray[np.float64] | None = None
    kind: ClassVar[int] = 5

    def __post_init__(self) -> None:
        factors = np.ascontiguousarray(self.factors, np.float64)  # native code reads them
        if factors.ndim != 1 or not len(factors) or not ((factors >= 0) & (factors < np.inf)).all():
            raise ValueError(f"Table: factors must be [n], n >= 1, finite and not negative, got {self.factors}")
        object.__setattr__(self, "factors", factors)
        if self.momenta is not None:
            momenta = np.ascontiguousarray(self.momenta, np.float64)
            if momenta.shape != factors.shape or not ((momenta >= 0) & (momenta < 1)).all():
                raise ValueError(f"Table: momenta must be [{len(factors)}] in [0, 1), got {self.momenta}")
            object.__setattr__(self, "momenta", momenta)

    @classmethod
    def of(cls, function: RateFunction, steps: int) -> Table:
        """Return the values of a function of the step, from step 0 on.

        Raises:
            ValueError: it gives something else than a factor, or a factor and a momentum; names the step.
        """
        return Function(function).table(steps)

    def describe(self) -> list[float] | str:
        """Return a digest of the values."""
        digest = hashlib.sha256(self.factors.tobytes())
        digest.update(b"" if self.momenta is None else self.momenta.tobytes())
        return f"table of {len(self.factors)} steps, {digest.hexdigest()[:12]}"


class Function(Schedule):
    """Any function of the step: it gives the factor, or (factor, momentum). It must not depend on anything else."""

    def __init__(self, function: RateFunction) -> None:
        self._function = function

    def at(self, step: int) -> Rate:
        """Return what the function gives.

        Raises:
            ValueError: that is something else; names the step.
        """
        given = self._function(step)
        try:
            factor, momentum = map(float, given) if isinstance(given, tuple) else (float(given), None)
        except (TypeError, ValueError):
            factor, momentum = math.nan, None
        if not (0 <= factor < math.inf and (momentum is None or 0 <= momentum < 1)):
            raise ValueError(
                f"schedule: schedule({step}) must give a factor on the rate, finite and not negative, or (factor, "
                f"momentum) with a momentum in [0, 1), got {given!r}"
            )
        return factor, momentum

    def table(self, steps: int) -> Table:
        """Return what the function gives in steps 0 to ``steps`` - 1; see `at`."""
        values = [self.at(step) for step in range(steps)]
        momenta = [momentum for _, momentum in values if momentum is not None]
        if momenta and len(momenta) < steps:
            raise ValueError("schedule: give a momentum in every step, or in none")
        return Table(np.array([factor for factor, _ in values]), np.array(momenta) if momenta else None)

    def describe(self) -> list[float] | str:
        """Return that it is a function: what one computes cannot be kept in a file."""
        return "function"


def as_schedule(given: Schedule | RateFunction) -> Schedule:
    """Return a schedule as it is, and a function of the step as a schedule.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(given, Schedule):
        return given
    if callable(given) and not isinstance(given, type):  # a class would be made with the step as its argument
        return Function(given)
    raise ValueError(
        f"schedule: must be a fastclf.schedules object or a function of the step, got {given!r}. A scheduler of torch "
        "goes with an optimizer of your own, not with fit."
    )


def from_description(saved: Sequence[float]) -> Schedule:
    """Return the schedule that `Schedule.describe` gave these numbers for.

    Raises:
        ValueError: they belong to none.
    """
    if len(saved) != _SAVED:
        raise ValueError(f"SGDR: schedule must be {_SAVED} numbers, got {len(saved)}.")
    kinds = {cls.kind: cls for cls in (Constant, Cosine, Triangle, OneCycle, RangeTest)}
    cls = kinds.get(int(saved[0]) if math.isfinite(saved[0]) else -1)
    if cls is None:
        raise ValueError(f"SGDR: schedule must be one of fastclf.schedules, got kind {saved[0]}.")
    numbers: list[float | None] = list(saved[1 : 1 + len(fields(cls))])
    if cls is OneCycle:
        numbers[4:] = saved[6:8] if saved[5] else (None, None)
    return cls(*(int(saved[1]), *numbers[1:]) if numbers else ())  # type: ignore[arg-type]
