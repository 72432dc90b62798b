"""Labels from folders: each folder below train or valid names a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from fastclf.data.sources.labels import Labels, check_classes, difference, in_order, lookalikes, warn_absent
from fastclf.data.sources.layout import by_name, flat, take_as_train
from fastclf.data.sources.listing import Found, nothing_in
from fastclf.data.sources.names import printable, some
from fastclf.data.sources.set_names import set_named
from fastclf.errors import LabelError
from fastclf.report import log, remedy, warn

_LOOKED_AT = 1000  # images, for what is said only


@dataclass(frozen=True)
class FolderRules:
    """What else is accepted; see `ImageClassifierData.from_paths`."""

    allow_empty: bool = False
    drop_unknown: bool = False
    allow_outside: bool = False


def labelled_by_folder(
    found: Found, classes: Sequence[str] | None = None, rules: FolderRules = FolderRules()
) -> tuple[list[str], Labels, dict[str, int]]:
    """Label the images of path/folder/<class>/... by their class folder.

    Args:
        found: the files below the folder.
        classes: the training classes, which name the indices; None to take them from this folder.
        rules: what else is accepted.

    Returns:
        File names, sorted by code point, their labels, and how many files of each kind are left out.

    Raises:
        FileNotFoundError: there is no image.
        LabelError: a class of training has no image, when there is only one, or when `classes` lacks one.
    """
    where = found.folder
    named = [(name, label) for name in found.images if (label := found.class_of(name)) is not None]
    if not named:
        names = [found.inner(name) for name in found.images]
        raise FileNotFoundError(flat(found.path, where, names) if names else nothing_in(found))
    ignored = found.ignored | {"files beside or between the images": _warn_strays(found)}
    present = {label for _, label in named}
    if classes is None:
        classes = _classes(found, present, rules)
        _say_nested(found, named)
    else:
        known = set(classes)
        unknown = Counter(label for _, label in named if label not in known)
        if len(unknown) == len(present) == 1 and not rules.drop_unknown:
            _refuse_flat(found, *unknown)
        _check_unknown(unknown, classes, where, rules)
        named = [(name, label) for name, label in named if label not in unknown]
        ignored["images of unknown classes"] = unknown.total()
        warn_absent([name for name in classes if name not in present], where)
    index = {name: i for i, name in enumerate(classes)}
    y = np.array([index[label] for _, label in named], np.int64)
    return [name for name, _ in named], Labels(y, list(classes)), ignored


def _classes(found: Found, present: set[str], rules: FolderRules) -> list[str]:
    """The classes that the folders of train name, those in `present` with images."""
    where, empty = found.folder, [name for name in found.classes if name not in present]
    if where == "." and not rules.allow_empty:  # what lies beside the classes in the data's own folder
        if empty:
            warn(f"{some(empty)} hold no image, and are not classes.")
        classes, empty = in_order(present), []
    else:
        classes = in_order(found.classes)
    check_classes(classes, where, _deeper(found, classes[0]) if len(classes) == 1 else "")
    _check_empty(empty, where, rules)
    return classes


def _deeper(found: Found, only: str) -> str:
    """Describe where classes are when a single folder holds all images, as in many archives; or nothing."""
    names = [found.inner(name).removeprefix(f"{only}/") for name in found.images if found.class_of(name) == only]
    folder = PurePosixPath(found.folder, only).as_posix()
    deeper = sorted({name.split("/", 1)[0] for name in names if "/" in name})
    if len(deeper) > 1:
        argument = take_as_train(found.path, folder)
        return f" {folder} holds the folders {some(deeper)}: if these are the classes, {argument}."
    call = by_name(folder, names)
    return f" If the names in {folder} contain the class: {call}." if call else ""


def _say_nested(found: Found, named: Sequence[tuple[str, str]]) -> None:
    """Say that the outermost folders are the classes, where others lie in one of them: those may be meant."""
    below: dict[str, set[str]] = {}
    for name, label in named[:: -(-len(named) // _LOOKED_AT)]:
        inner = found.inner(name).split("/")
        below.setdefault(label, set()).add(inner[1] if len(inner) > 2 else "")
    for label, folders in below.items():
        if len(folders) > 1 and "" not in folders:
            others = remedy("from_name_func takes others from the names", "")
            log(
                f"{found.folder}: the outermost folders are the classes; images of {printable(label)!r} lie below it, "
                f"in {some(sorted(folders))}{others and f'; {others}'}"
            )
            return


def _check_empty(empty: Sequence[str], where: str, rules: FolderRules) -> None:
    if empty and not rules.allow_empty:
        raise LabelError(
            f"{where}: {some(empty)} hold no image. Add images, "
            f"{remedy('remove the folder, or pass allow_empty=True', 'or remove the folder')}."
        )
    if empty:
        warn(f"{where}: {some(empty)} hold no image; the model cannot learn these classes.")


def _check_unknown(unknown: Counter[str], classes: Sequence[str], where: str, rules: FolderRules) -> None:
    if not unknown:
        return
    names = sorted(unknown)
    if not rules.drop_unknown:
        add, drop = "add the classes to the training set", "pass drop_unknown=True"
        raise LabelError(
            f"{where}: {some(names)} are not classes of the training set, which has {some(classes)}."
            f"{_lookalike(names, classes)} Rename or remove these folders, {remedy(f'{add}, or {drop}', f'or {add}')}."
        )
    warn(f"{where}: {unknown.total()} images of {some(names)}, no classes of the training set, are left out.")


def _refuse_flat(found: Found, only: str) -> None:
    """Raise LabelError where one folder, and no class, holds all images, and a table beside it may name theirs."""
    table = next((name for name in found.others if name.endswith((".csv", ".txt", ".tsv"))), None)
    if table is not None:
        raise LabelError(
            f"{found.folder}: all images are in the folder {printable(only)!r}, which is no class of the training set. "
            f"If {printable(table)} names their classes, move each into a folder of its class"
            f"{'; without it, a part of train is held out' if set_named(found.folder) == 'valid' else ''}."
        )


def _lookalike(names: Sequence[str], classes: Sequence[str]) -> str:
    """Point out a name that differs from a class in nothing that one can see."""
    for one, other in lookalikes([*classes, *names]):
        if one in classes and other in names:
            return f" {one!r} and {other!r} look the same: {difference(one, other)}."
    return ""


def _warn_strays(found: Found) -> int:
    """Warn of files that are not an image in a class folder, and return their number."""
    strays = [name for name in found.images if found.class_of(name) is None] + found.others
    if strays:
        warn(
            f"{found.folder}: {len(strays)} file(s) are ignored, first {printable(strays[0])}: not an image in a "
            "class folder."
        )
    return len(strays)
