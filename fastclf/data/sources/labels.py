"""Labels of rows: what they are, and the checks that all ways to find them share."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.names import some
from fastclf.errors import LabelError
from fastclf.report import warn

_WHOLE = re.compile("0|-?[1-9][0-9]{0,15}")  # "01" is a name


@dataclass(frozen=True)
class Labels:
    """The labels of some rows, and what they mean.

    Attributes:
        y: `[N] int64` class indices; `[N, C] float32` of 0 and 1 where a row may have several labels; `[N, k] float32`
            for regression, of one number too: predictions are so, and no difference of the two broadcasts.
        classes: the names of the classes; empty for regression.
        is_multi: whether a row may have several labels.
        is_reg: whether the labels are numbers to be predicted.
        known: False for the zeros of rows that have no labels.
    """

    y: npt.NDArray[Any]
    classes: list[str]
    is_multi: bool = False
    is_reg: bool = False
    known: bool = True

    def __post_init__(self) -> None:
        if self.is_reg and self.y.ndim == 1:
            object.__setattr__(self, "y", self.y[:, None])

    def __len__(self) -> int:
        return len(self.y)

    @property
    def c(self) -> int:
        """Number of classes, or of numbers to predict."""
        return int(self.y.shape[1]) if self.is_reg else len(self.classes)

    @property
    def kind(self) -> str:
        """What a row is labelled with: ``"one"`` class, ``"several"`` classes, or ``"numbers"``."""
        return "numbers" if self.is_reg else "several" if self.is_multi else "one"

    def counts(self) -> npt.NDArray[np.int64]:
        """Return the number of rows of each class, `[C] int64`; of no class for regression."""
        if self.is_reg:
            return np.zeros(0, np.int64)
        if self.is_multi:
            return np.asarray(np.count_nonzero(self.y, axis=0), np.int64)
        return np.bincount(self.y, minlength=self.c)

    def take(self, rows: npt.NDArray[np.int64]) -> Labels:
        """Return the labels of some of the rows."""
        return replace(self, y=self.y[rows])

    def zeros(self, n: int) -> Labels:
        """Return labels of the same kind for n rows that have none."""
        return replace(self, y=np.zeros((n, *self.y.shape[1:]), self.y.dtype), known=False)


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of classes, each once: sorted, and whole numbers by their value, so that 10 comes after 9."""
    classes = sorted(set(names))
    return sorted(classes, key=int) if all(map(_WHOLE.fullmatch, classes)) else classes


def class_number(cls: Any, classes: Sequence[str], argument: str) -> int:
    """Return the place of a class that is given by its name or its place.

    Raises:
        ValueError: there is none; or a number is the name of one class and the place of another.
    """
    if isinstance(cls, str) and cls in classes:
        return classes.index(cls)
    place = None if isinstance(cls, str) or cls not in range(len(classes)) else int(cls)
    name = str(cls if place is None else place)
    if not isinstance(cls, str) and name in classes and (place is None or classes[place] != name):
        other = "no place" if place is None else f"the place of {classes[place]!r}"
        raise ValueError(f"{argument}: {name} is the name of a class, and {other}. Pass names as text: {name!r}.")
    if place is None:
        raise ValueError(f"{argument} must be one of {some(classes)}, or 0 to {len(classes) - 1}, got {cls!r}.")
    return place


def indicators(rows: Sequence[Sequence[int]], c: int) -> npt.NDArray[np.float32]:
    """Return `[N, c]` with 1 at the classes of each row, and 0."""
    y = np.zeros((len(rows), c), np.float32)
    for row, numbers in zip(y, rows, strict=True):
        row[[*numbers]] = 1
    return y


def difference(one: str, other: str) -> str:
    """Describe how two names that look the same differ."""
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "they are one name in two Unicode forms (NFC and NFD)"
    return "they differ in case, in spaces or in characters that are not seen"


def lookalikes(classes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that differ in case, spaces, invisible characters or Unicode form only."""
    known: dict[str, str] = {}
    for name in classes:
        visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
        other = known.setdefault(" ".join(visible.split()).casefold(), name)
        if other != name:
            yield other, name


def check_classes(classes: Sequence[str], where: str, hint: str = "") -> None:
    """Raise LabelError for fewer than two classes, with a hint, and for names that are empty or there twice.

    Warn of names that look the same.
    """
    if len(classes) < 2:
        raise LabelError(f"{where}: there must be at least two classes, got {some(classes)}. Add another class.{hint}")
    twice = sorted(name for name, count in Counter(classes).items() if count > 1)
    if twice or "" in classes:
        got = f"{some(twice)} twice" if twice else "an empty one"
        raise LabelError(f"{where}: every class must have a name of its own, got {got}. Rename it.")
    for one, other in lookalikes(classes):
        warn(
            f"{where}: the classes {one!r} and {other!r} look the same: {difference(one, other)}. Rename one if they "
            "are one."
        )


def warn_absent(absent: Sequence[str], where: str) -> None:
    """Warn of classes that have no row for validation."""
    if absent:
        classes = "class" if len(absent) == 1 else "classes"
        warn(f"{where}: no image of the {classes} {some(absent)}; nothing is measured there.")


def check_trained(trn: Labels, val: Labels, name: str) -> None:
    """Check that the training rows have every class, and warn of those without a row for validation.

    Raises:
        LabelError: a class has no training row.
    """
    if trn.is_reg:
        return
    in_trn, in_val = trn.counts(), val.counts()
    untrained = [c for c, n in zip(trn.classes, in_trn, strict=True) if n == 0]
    if untrained:
        only_test = not in_val[trn.classes.index(untrained[0])]
        remedy = (
            "Remove these rows, or add some to train."
            if only_test
            else "Choose other val_idxs; without val_idxs every class keeps a training row."
        )
        where = "test" if only_test else "validation"
        raise LabelError(f"{name}: {', '.join(map(repr, untrained[:5]))} occur in {where} rows only. {remedy}")
    warn_absent([c for c, n in zip(trn.classes, in_val, strict=True) if n == 0], f"{name}, rows for validation")
