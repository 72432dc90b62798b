"""Rate and momentum of a schedule in a step: the formulas of csrc/device/schedule.h."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.ops.registry import address, operation
from fastclf.schedules import Cosine, Function, OneCycle, RangeTest, Rate, Schedule, Table, Triangle, rounded_down

SCHEDULE = np.dtype(  # csrc/device/schedule.h: Schedule
    [
        ("kind", np.int64),
        ("nb", np.float64),
        ("cycle_mult", np.float64),
        ("div", np.float64),
        ("cut_div", np.float64),
        ("pct", np.float64),
        ("max_mom", np.float64),
        ("min_mom", np.float64),
        ("ratio", np.float64),
        ("linear", np.int64),
        ("factors", np.uint64),
        ("momenta", np.uint64),
        ("n", np.int64),
    ]
)


def rate(schedule: Schedule, step: int) -> Rate:
    """Return the factor on every group's highest rate in batch ``step``, and the momentum where the schedule has one.

    It is what the native training loops compute; without the native module a reference implementation runs.
    """
    return schedule.at(step) if isinstance(schedule, Function) else _rate(schedule, step)


@operation
def _rate(schedule: Schedule, step: int) -> Rate:
    match schedule:
        case Cosine():
            batch, length = schedule.position(step)
            warm_up = step < schedule.nb / 20
            return 0.01 if warm_up else (1 + math.cos(math.pi * batch / length)) / 2, None
        case Triangle():
            batch, length = schedule.position(step)
            cut = rounded_down(length / schedule.cut_div)
            share = 1 - (batch - cut) / (length - cut) if batch >= cut else batch / cut
            return (1 + share * (schedule.div - 1)) / schedule.div, None
        case OneCycle():
            up, tail = _rise(schedule, step)
            momentum = None
            if schedule.max_mom is not None and schedule.min_mom is not None:
                momentum = schedule.max_mom + up * (schedule.min_mom - schedule.max_mom)
            return (1 + up * (schedule.div - 1)) / schedule.div * (1 - 0.99 * tail), momentum
        case RangeTest():
            done = step / schedule.nb
            if schedule.linear:
                return 1 + (schedule.ratio - 1) * done, None
            return math.exp(math.log(schedule.ratio) * done), None
        case Table():
            row = min(step, len(schedule.factors) - 1)
            return float(schedule.factors[row]), None if schedule.momenta is None else float(schedule.momenta[row])
    return 1.0, None


def _rise(schedule: OneCycle, step: int) -> tuple[float, float]:
    """Return the share of the way up (1 at the top), and that of the final annealing that is done (0 before it)."""
    batch, length = schedule.position(step)
    half = rounded_down(length * (1 - schedule.pct / 100) / 2)
    if batch > 2 * half or half == 0:
        return 0.0, (batch - 2 * half) / (length - 2 * half)
    return (1 - (batch - half) / half if batch > half else batch / half), 0.0


@_rate.cpu
def _(native: ModuleType, schedule: Schedule, step: int) -> Rate:
    factor, momentum = native.rate(_record_of(schedule)[1], step)
    return factor, None if momentum < 0 else momentum


@lru_cache(maxsize=64)
def _record_of(schedule: Schedule) -> tuple[npt.NDArray[Any], int]:
    """Return the schedule as a record in memory, and where that is."""
    record = np.zeros(1, SCHEDULE)
    record[0] = record_values(schedule)
    return record, address(record)


def record_values(schedule: Schedule, factors: int | None = None, momenta: int | None = None) -> tuple[float, ...]:
    """Return the values of a `SCHEDULE` record.

    Args:
        schedule: must outlive the record where it is a `Table`.
        factors: where a table's values are, if not in its arrays.
        momenta: see factors.
    """
    values: dict[str, float | None] = {"kind": schedule.kind}
    if isinstance(schedule, Table):
        values["factors"] = address(schedule.factors) if factors is None else factors
        values["momenta"] = address(schedule.momenta) if momenta is None else momenta
        values["n"] = len(schedule.factors)
    else:
        values |= {field.name: getattr(schedule, field.name) for field in fields(schedule)}  # type: ignore[arg-type]
    if values.get("max_mom") is None:  # negative: the optimizer's own
        values["max_mom"] = values["min_mom"] = -1.0
    return tuple(values.get(name) or 0 for name in SCHEDULE.names or ())
