"""Labels that come with the images: of samples in archives, rows of parquet files, and data sets of Hugging Face."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.labels import Labels, check_classes, in_order, indicators, warn_absent
from fastclf.data.sources.names import printable, some
from fastclf.data.sources.source import Source
from fastclf.errors import LabelError
from fastclf.report import warn

Value: TypeAlias = "str | float | tuple[str, ...] | None"
"""A class by name, a number, several classes, or no label."""


@dataclass(frozen=True)
class LabelledRows:
    """The images of one set, and what is known of their labels.

    Attributes:
        source: the images.
        values: a label for each.
        ignored: how many of each kind are left out.
        classes: the names of the classes 0, 1, ... where the data tell them; None where they do not.
        groups: what each image belongs to, where that was asked for: rows of one group must not be divided.
    """

    source: Source
    values: Sequence[Value]
    ignored: Mapping[str, int] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    groups: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class LabelRules:
    """How labels are to be read; see `ImageClassifierData.from_shards`."""

    call: str
    classes: Sequence[str] | None = None
    continuous: bool = False
    allow_empty: bool = False


def as_value(label: Any) -> Value:
    """Return a label as it is kept; an empty text is none.

    Raises:
        TypeError: it can be no label.
    """
    if label is None or label == "":
        return None
    if isinstance(label, str | int):
        return str(label)
    if isinstance(label, float):
        return None if label != label else str(int(label)) if label.is_integer() else label  # NaN
    if isinstance(label, list | tuple):
        several = [as_value(one) for one in label]
        if all(isinstance(one, str) for one in several):
            return tuple(map(str, several))
    raise TypeError(f"a label must be a name, a number or a list of names, got {label!r:.60}")


def labels_of(rows: Mapping[str, LabelledRows], rules: LabelRules) -> dict[str, Labels]:
    """Number the classes of the training set, and label the sets with them; zeros for a test set without labels.

    Raises:
        LabelError: a row has no label, or one that training does not have; names it.
        ValueError: ``classes`` are given for numbers to be predicted.
    """
    known = {part: one for part, one in rows.items() if part != "test" or any(v is not None for v in one.values)}
    for part, one in known.items():
        _check_none_missing(part, one, rules.call)
    if rules.continuous:
        if rules.classes is not None:
            raise ValueError(
                f"{rules.call}: classes are names, and continuous=True predicts numbers. Pass one of them."
            )
        labels = {part: Labels(_numbers(one, rules.call), [], is_reg=True) for part, one in known.items()}
    else:
        labels = _classified(known, rules)
    for part, one in rows.items():
        if part not in labels:
            labels[part] = labels["train"].zeros(len(one.values))
    return labels


def known_labels(rows: LabelledRows, rules: LabelRules) -> Labels:
    """Label images with classes that are known, which need not all be there.

    Args:
        rows: the images.
        rules: which classes.

    Raises:
        LabelError: a row has no label, or none of these; names it.
    """
    _check_none_missing("DATA", rows, rules.call)
    if rules.continuous:
        return Labels(_numbers(rows, rules.call), [], is_reg=True)
    return _labels("DATA", rows, *_numbering({"train": rows}, rules), rules.call)


def _check_none_missing(part: str, rows: LabelledRows, call: str) -> None:
    without = [row for row, value in enumerate(rows.values) if value is None]
    if without:
        raise LabelError(
            f"{call}: {len(without):,} of {len(rows.values):,} images of {part} have no label, first "
            f"{_names(rows, without)}. Add labels, or leave these images out."
        )


def _names(rows: LabelledRows, which: Sequence[int]) -> str:
    return ", ".join(printable(rows.source.name(row)) for row in which[:3])


def _numbers(rows: LabelledRows, call: str) -> npt.NDArray[np.float32]:
    numbers = np.empty((len(rows.values), _width(rows.values[0])), np.float32)
    for row, value in enumerate(rows.values):
        try:
            numbers[row] = [float(one) for one in (value if isinstance(value, tuple) else (value,))]  # type: ignore[arg-type]
        except ValueError:
            numbers[row] = np.nan
        if not np.isfinite(numbers[row]).all():
            raise LabelError(f"{call}: {_names(rows, [row])} must have a finite number, got {value!r}. Fix this row.")
    return numbers


def _width(value: Value) -> int:
    return len(value) if isinstance(value, tuple) else 1


def _classified(rows: Mapping[str, LabelledRows], rules: LabelRules) -> dict[str, Labels]:
    several = {part: any(isinstance(value, tuple) for value in one.values) for part, one in rows.items()}
    for part, one in rows.items():
        odd = [row for row, value in enumerate(one.values) if isinstance(value, tuple) != several["train"]]
        if odd:
            raise LabelError(
                f"{rules.call}: all labels must be of one kind, got {one.values[odd[0]]!r} for {_names(one, odd)} of "
                f"{part} beside {rows['train'].values[0]!r}. Write lists everywhere, or nowhere."
            )
    fraction = next((value for value in rows["train"].values if isinstance(value, float)), None)
    if fraction is not None:
        raise LabelError(
            f"{rules.call}: classes must be names or whole numbers, got {fraction!r}. For numbers to be predicted pass "
            "continuous=True."
        )
    classes, number = _numbering(rows, rules)
    labels = {part: _labels(part, one, classes, number, rules.call) for part, one in rows.items()}
    trained = labels["train"].counts()
    empty = [name for name, count in zip(classes, trained, strict=True) if not count]
    if empty and not rules.allow_empty:
        raise LabelError(
            f"{rules.call}: no training image of {some(empty)}. Leave them out of classes=, or pass allow_empty=True."
        )
    if empty:
        warn(f"{rules.call}: no training image of {some(empty)}; the model cannot learn these classes.")
    if "valid" in labels:
        counts = labels["valid"].counts()
        warn_absent([name for name, count in zip(classes, counts, strict=True) if not count], "valid")
    return labels


def _distinct(values: Sequence[Value]) -> set[str]:
    return {str(one) for value in set(values) for one in (value if isinstance(value, tuple) else (value,))}


def _numbering(rows: Mapping[str, LabelledRows], rules: LabelRules) -> tuple[list[str], dict[str, int]]:
    """Return the classes, and the number of each label.

    Where classes are given, labels are their names, or their numbers: whichever all labels can be.
    """
    present = _distinct(rows["train"].values)
    given = rules.classes if rules.classes is not None else rows["train"].classes
    if given is None:
        classes = in_order(present)
        check_classes(classes, rules.call)
        return classes, {name: i for i, name in enumerate(classes)}
    classes = [str(name) for name in given]
    check_classes(classes, rules.call)
    by_name = {name: i for i, name in enumerate(classes)}
    by_number = {str(i): i for i in range(len(classes))}
    if rows["train"].classes is not None:  # the data number them themselves
        own = [str(name) for name in rows["train"].classes]
        if sorted(own) != sorted(classes):
            raise LabelError(
                f"{rules.call}: classes must be those that the data name, got {some(classes)}, and the data have "
                f"{some(own)}. Leave classes= out."
            )
        return classes, {str(i): by_name[name] for i, name in enumerate(own)}
    named, numbered = present <= by_name.keys(), present <= by_number.keys()
    if named and numbered and any(by_name[label] != by_number[label] for label in present):
        raise LabelError(
            f"{rules.call}: classes={some(classes)} are numbers in another order: the label "
            f"{min(present)!r} may be a name or a place in the list. Leave classes= out, or name them otherwise."
        )
    return classes, by_number if numbered and not named else by_name


def _labels(part: str, rows: LabelledRows, classes: list[str], number: Mapping[str, int], call: str) -> Labels:
    unknown = _distinct(rows.values) - number.keys()
    if unknown:
        where = [
            row
            for row, value in enumerate(rows.values)
            if unknown.intersection(value if isinstance(value, tuple) else (value,))
        ]
        raise LabelError(
            f"{call}: {len(where):,} images of {part} have the label {some(sorted(unknown))}, which is none of the "
            f"{len(classes):,} classes {some(classes)}: first {_names(rows, where)}. Pass classes= with all names, or "
            "leave these images out."
        )
    if not any(isinstance(value, tuple) for value in rows.values):
        y = np.fromiter((number[str(value)] for value in rows.values), np.int64, len(rows.values))
        return Labels(y, classes)
    several = [[number[one] for one in value] for value in rows.values if isinstance(value, tuple)]
    return Labels(indicators(several, len(classes)), classes, is_multi=True)


def read_labels(cells: Sequence[Any], where: str, *, numbered: bool) -> list[Value]:
    """Return the labels of some cells.

    Args:
        cells: what a column holds.
        where: it is, for messages.
        numbered: whether they are numbers of classes that have names: then -1 is no label.

    Raises:
        LabelError: a cell is no label; names it.
    """
    known: dict[Any, Value] = {}
    values: list[Value] = []
    for row, cell in enumerate(cells):
        key = tuple(cell) if isinstance(cell, list) else cell
        try:
            if key not in known:
                known[key] = None if numbered and key == -1 else as_value(key)
        except TypeError as error:
            raise LabelError(f"{where}:{row}: {error}.") from error
        values.append(known[key])
    return values
