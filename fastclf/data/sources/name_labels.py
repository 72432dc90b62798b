"""Labels from file names: by a regular expression or by a function."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from fastclf.data.sources.labels import Labels, check_classes, in_order
from fastclf.data.sources.listing import Found, images_in
from fastclf.data.sources.names import printable, some
from fastclf.errors import LabelError
from fastclf.report import counted, remedy, warn

T = TypeVar("T")


def label_by(pat: str | re.Pattern[str]) -> Callable[[str], str | None]:
    """Make a function that takes the label from a name: the group of a regular expression that is searched in it.

    Raises:
        ValueError: the expression has no group, or several.
        LabelError: later, when a name does not match.
    """
    return _part_of_name(
        pat,
        remedy("from_name_re: pat", "--name-re"),
        "the label",
        remedy(
            "move the file, or use from_name_func, whose function may return None for an image that is to be left out",
            "or move the file",
        ),
    )


def group_by(pat: str) -> Callable[[str], str]:
    """Make a function that takes from a name what the image belongs to, as `label_by` does the label."""
    return _part_of_name(pat, "--group-re", "what an image belongs to", "or write (...|.*) to match every name")


def _part_of_name(pat: str | re.Pattern[str], argument: str, what: str, otherwise: str) -> Callable[[str], str]:
    try:
        pattern = re.compile(pat)
    except re.error as error:
        raise ValueError(f"{argument} must be a regular expression, got {pat!r}: {error}.") from error
    if pattern.groups != 1:
        raise ValueError(
            f"{argument} must have one group in parentheses, {what}, got {pattern.groups} in "
            f"{pattern.pattern!r}. Write (?:...) around what is not {what}."
        )

    def part(name: str) -> str:
        match = pattern.search(name)
        if match is None:
            raise LabelError(f"{argument}: {pattern.pattern!r} does not match {name!r}. Fix it, {otherwise}.")
        return match[1]

    return part


def labelled_by_name(
    found: Found, label_func: Callable[[str], str | None], classes: Sequence[str] | None = None
) -> tuple[list[str], Labels, dict[str, int]]:
    """Label images by a function of their names.

    Args:
        found: the files below a folder.
        label_func: gets a name relative to the folder; returns its class, or None to leave the image out.
        classes: the training classes, which name the indices; None to take them from the labels.

    Returns:
        File names, sorted by code point, their labels, and how many files of each kind are left out.

    Raises:
        FileNotFoundError: there is no image.
        LabelError: a label is no text, or empty, or none of `classes`, or there is only one class.
    """
    where = found.folder
    labelled = [(name, _checked(asked(label_func, "label_func", found.inner(name)), name)) for name in images_in(found)]
    kept = [(name, label) for name, label in labelled if label is not None]
    without = [name for name, label in labelled if label is None]
    if without:
        warn(
            f"{where}: {counted(len(without), 'image has no label and is', 'images have no label and are')} left out, "
            f"first {printable(without[0])}."
        )
    present = in_order(label for _, label in kept)
    if classes is None:
        classes = present
        check_classes(classes, where)
    elif unknown := [label for label in present if label not in classes]:
        raise LabelError(f"{where}: {some(unknown)} are not classes of the training set, which has {some(classes)}.")
    index = {name: i for i, name in enumerate(classes)}
    y = np.array([index[label] for _, label in kept], np.int64)
    ignored = found.ignored | {"other files": len(found.others), "images without a label": len(without)}
    return [name for name, _ in kept], Labels(y, list(classes)), ignored


def asked(function: Callable[[str], T], argument: str, name: str) -> T:
    """Return what a function of the user's says of a name.

    Raises:
        TypeError: it is no function.
        LabelError: it raises; names the argument and the name.
    """
    if not callable(function):
        raise TypeError(f"{argument} must be a function of a file's name, got {function!r}.")
    try:
        return function(name)
    except LabelError:
        raise
    except Exception as error:
        raise LabelError(
            f"{argument} fails for {name!r}: {type(error).__name__}: {error}. Fix the function."
        ) from error


def _checked(label: Any, name: str) -> str | None:
    if label is None:
        return None
    if isinstance(label, str) and label.strip():
        return str(label)  # numpy's texts are of a type of their own
    raise LabelError(
        f"{printable(name)}: its label must be a text that is not empty, got {label!r}. None leaves the image out."
    )
