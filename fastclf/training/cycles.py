"""Epochs and schedule of a fit, from the arguments of ``fit``."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

from fastclf.argument_checks import check_count, check_numbers
from fastclf.schedules import (
    Constant,
    Cosine,
    Function,
    OneCycle,
    RateFunction,
    Schedule,
    Triangle,
    as_schedule,
    rounded_down,
    rounded_up,
)


def n_epochs(n_cycle: int, cycle_len: int | None, cycle_mult: float) -> int:
    """Return the epochs of ``fit(lrs, n_cycle, cycle_len=, cycle_mult=)``: (3, 1, 2) -> 7, (2, 4, 2) -> 12."""
    if not cycle_len:
        return n_cycle
    return rounded_up(math.fsum(cycle_len * cycle_mult**cycle for cycle in range(n_cycle)))


def check_whole_cycles(n_cycle: int, cycle_len: int | None, cycle_mult: float) -> None:
    """Raise ValueError where no epoch ends a cycle, so that there is nothing to save after it."""
    if cycle_len is None:
        raise ValueError("fit: cycle_save_name needs cycle_len: without cycles nothing would be saved")
    lengths = (cycle_len * cycle_mult**cycle for cycle in range(n_cycle))
    if any(length == math.inf or rounded_up(length) != rounded_down(length) for length in lengths):
        raise ValueError(
            f"fit: cycle_save_name needs cycles of whole epochs, but cycle_len={cycle_len} and cycle_mult={cycle_mult} "
            "end one within an epoch. Choose cycle_mult=1 or 2."
        )


def make_schedule(
    nb: int,
    cycle_len: int | None,
    cycle_mult: float = 1,
    use_clr: Sequence[float] | None = None,
    use_clr_beta: Sequence[float] | None = None,
    *,
    own: Schedule | RateFunction | None = None,
    n_cycle: int = 1,
) -> Schedule:
    """Return the schedule that ``fit`` was asked for, with ``nb`` batches per epoch; ``own`` is the user's."""
    if own is not None:
        if cycle_len is not None or cycle_mult != 1 or use_clr is not None or use_clr_beta is not None:
            raise ValueError("fit: schedule replaces cycle_len, cycle_mult, use_clr and use_clr_beta: leave them out")
        schedule = as_schedule(own)
        return schedule.table(nb * n_cycle) if isinstance(schedule, Function) else schedule
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
        return Triangle(nb * cycle_len, cycle_mult, *use_clr)
    if use_clr_beta is not None:
        _check_tuple("use_clr_beta", use_clr_beta, (2, 4), "(div, pct[, max_mom, min_mom])")
        return OneCycle(nb * cycle_len, cycle_mult, *use_clr_beta)
    return Cosine(nb * cycle_len, cycle_mult)


def _check_tuple(name: str, given: Sequence[float], lengths: tuple[int, ...], form: str) -> None:
    if not isinstance(given, Sized) or len(given) not in lengths:
        raise ValueError(f"fit: {name} must be {form}, got {given}")
    check_numbers("fit", name, *given)
