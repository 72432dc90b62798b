"""Checks of kinds of arguments that many calls take: each raises ValueError, naming the call and the argument."""

from __future__ import annotations

import numpy as np


def check_count(call: str, name: str, value: object, least: int = 1) -> None:
    """Raise ValueError unless an argument is a whole number of at least 1: a loop up to 1.5 would never end."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{call}: {name} must be a whole number of at least {least}, got {value!r}")


def check_numbers(call: str, name: str, *values: object) -> None:
    """Raise ValueError unless all values of an argument are finite numbers."""
    if not all(isinstance(value, int | float | np.number) and np.isfinite(value) for value in values):
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
