"""Checks of kinds of arguments that many calls take: each raises ValueError, naming the call and the argument."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_count(call: str, name: str, value: object, least: int = 1, most: int | None = None, *, fix: str = "") -> int:
    """Return an argument as Python's integer; raise ValueError unless it is a whole number in its range."""
    fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not fits or value < least or (most is not None and value > most):  # type: ignore[operator]  # it is a number
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{call}: {name} must be a whole number {span}, got {value!r}{fix and f'. {fix}'}")
    return int(value)  # type: ignore[call-overload, no-any-return]


def is_number(value: object) -> bool:
    """Return whether a value is a number; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def check_range(call: str, name: str, value: Any, low: float, high: float, fix: str) -> None:
    """Raise ValueError unless an argument is a number in low..high."""
    if not (is_number(value) and low <= value <= high):
        raise ValueError(f"{call}: {name} must be a number from {low:g} to {high:g}, got {value!r}. {fix}")


def check_numbers(call: str, name: str, *values: Any) -> None:
    """Raise ValueError unless all values of an argument are finite numbers."""
    if not all(is_number(value) and np.isfinite(value) for value in values):
        got = values[0] if len(values) == 1 else values
        raise ValueError(f"{call}: {name} must be {'a number' if len(values) == 1 else 'numbers'}, got {got!r}")


def check_flag(call: str, name: str, value: object) -> None:
    """Raise ValueError unless an argument is True or False: the text 'no' would count as True."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{call}: {name} must be True or False, got {value!r}")


def check_functions(call: str, name: str, given: object, kind: type | None = None) -> None:
    """Raise ValueError unless an argument is a list of functions, or of objects of a kind."""
    what = "functions" if kind is None else f"{kind.__name__} objects"
    fits = callable if kind is None else lambda one: isinstance(one, kind)
    if not isinstance(given, list | tuple):
        raise ValueError(f"{call}: {name} must be a list of {what}, got {given!r}. Put it into brackets.")
    wrong = [one for one in given if not fits(one)]
    if wrong:
        raise ValueError(f"{call}: {name} must be a list of {what}, got {wrong[0]!r} in it.")
