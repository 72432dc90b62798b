"""Lengths of cycles in exact arithmetic, for schedules whose multiplier is a decimal as it is written."""

import math
from fractions import Fraction

MULTIPLIERS = ["1", "1.05", *(f"1.{tenth}" for tenth in range(1, 10)), "1.25", "2", "2.2", "3"]


def exact_epochs(n_cycle: int, cycle_len: int, cycle_mult: str) -> int:
    """Return the epochs of ``n_cycle`` cycles, the last one begun counted whole."""
    return math.ceil(sum(cycle_len * Fraction(cycle_mult) ** cycle for cycle in range(n_cycle)))


def exact_starts(batches: int, cycle_mult: str, cycles: int) -> list[int]:
    """Return the first batch of each cycle after the first, which has ``batches``."""
    lengths = [math.ceil(batches * Fraction(cycle_mult) ** cycle) for cycle in range(cycles)]
    return [sum(lengths[: cycle + 1]) for cycle in range(cycles)]
