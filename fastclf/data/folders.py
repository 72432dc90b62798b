"""Which pictures a folder holds, and which classes its folders name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from fastclf.data.samples import Labels
from fastclf.errors import BadImageError, DataError, LabelError

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2")
"""What DALI decodes."""
UNSUPPORTED = (".gif", ".heic", ".heif", ".avif", ".jxl", ".svg")


@dataclass(frozen=True)
class Found:
    """The files below one folder, sorted by code point.

    Attributes:
        path: the root that the names are relative to.
        folder: the folder looked into, below path.
        pictures: names of pictures by their extension, relative to path, with forward slashes.
        others: names of other files.
        classes: names of the folders directly below, when they are not hidden.
    """

    path: Path
    folder: str
    pictures: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)

    def class_of(self, name: str) -> str | None:
        """Returns the folder directly below `folder` that holds the file, however deep; None for a file beside them."""
        inner = PurePosixPath(name).relative_to(self.folder).as_posix()
        return inner.split("/", 1)[0] if "/" in inner else None


def scan(path: Path, folder: str) -> Found:
    """Lists the files below path/folder. Hidden files and folders are left out, links to folders are not followed.

    Raises:
        FileNotFoundError: when the folder is not there; says what is.
        ValueError: when `folder` is not below path.
        DataError: when a link leads out of `path`.
        BadImageError: when there are pictures in a format that cannot be decoded.
    """
    folder = inner_name(folder)
    root = path / folder
    if not root.is_dir():
        there = sorted(entry.name for entry in path.iterdir())[:10] if path.is_dir() else []
        has = f"{path} holds {', '.join(there)}" if there else f"{path} is empty or no folder"
        raise FileNotFoundError(f"there is no folder {root}; {has}. Check the path and the folder's name.")
    found = Found(path, folder)
    links: list[str] = []
    _walk(str(root), folder, found, links)
    found.pictures.sort()
    found.others.sort()
    found.classes.sort()
    _warn_links(found, links)
    _check_formats(found)
    return found


def inner_name(folder: str) -> str:
    """Returns the name of a folder below the data's path in its plain form: 'a/b'.

    Raises:
        ValueError: when it is absolute or has '..'.
    """
    plain = PurePosixPath(folder)
    if plain.is_absolute() or ".." in plain.parts:
        raise ValueError(f"a folder of the data must be below its path, got {folder!r}. Pass e.g. 'train'.")
    return plain.as_posix()


def _walk(folder: str, name: str, found: Found, links: list[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            inner = entry.name if name == "." else f"{name}/{entry.name}"
            if entry.name.startswith(".") or entry.name == "Thumbs.db":
                continue
            if entry.is_symlink():
                _check_link(found.path, inner)
                if entry.is_dir():
                    links.append(inner)
                    continue
            if entry.is_dir():
                if name == found.folder:
                    found.classes.append(entry.name)
                _walk(entry.path, inner, found, links)
            else:
                (found.pictures if _extension(inner) in EXTENSIONS else found.others).append(inner)


def _extension(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _check_link(path: Path, name: str) -> None:
    target = (path / name).resolve()
    if not target.is_relative_to(path.resolve()):
        raise DataError(f"{name} is a link out of {path}, to {target}. Put the file itself in its place.")


def _warn_links(found: Found, links: list[str]) -> None:
    if links:
        warnings.warn(
            f"{found.folder}: {len(links)} link(s) to folders are not followed, first {links[0]}. "
            "Put the folder itself in its place.",
            UserWarning,
            stacklevel=5,
        )


def _check_formats(found: Found) -> None:
    odd = [name for name in found.others if _extension(name) in UNSUPPORTED]
    if odd:
        formats = ", ".join(sorted({_extension(name)[1:].upper() for name in odd}))
        raise BadImageError(
            f"{len(odd)} picture(s) have the unsupported format {formats}, first {odd[0]}. "
            "Convert them to PNG or JPEG, or take them away.",
            dict.fromkeys(odd, "unsupported format"),
        )


def pictures_in(path: Path, folder: str) -> list[str]:
    """Lists the pictures below path/folder, whatever folders they are in.

    Raises:
        FileNotFoundError: when there is none.
    """
    found = scan(path, folder)
    if not found.pictures:
        raise FileNotFoundError(_nothing_in(found))
    return found.pictures


def _nothing_in(found: Found) -> str:
    return (
        f"there are no pictures below {found.path / found.folder}: {len(found.others)} other file(s), "
        f"{len(found.classes)} folder(s). Pictures end in {', '.join(EXTENSIONS)}."
    )


def labelled_by_folder(path: Path, folder: str, classes: Sequence[str] | None = None) -> tuple[list[str], Labels]:
    """Lists the pictures of path/folder/<class>/..., labelled by their class folder.

    Args:
        path: the data's root.
        folder: e.g. 'train'.
        classes: the training classes, which name the indices; None to take them from this folder.

    Returns:
        File names, sorted by code point, and their labels.

    Raises:
        FileNotFoundError: when there is no folder or no picture.
        LabelError: when a class of training has no picture, when there is only one, or when `classes` lacks one.
    """
    found = scan(path, folder)
    names = [name for name in found.pictures if found.class_of(name) is not None]
    if not names:
        raise FileNotFoundError(_nothing_in(found) + f" They must be in folders named by class: {folder}/<class>/...")
    labels = [found.class_of(name) for name in names]
    _warn_strays(found, len(found.pictures) - len(names))
    present = set(labels)
    if classes is None:
        classes = found.classes
        check_classes(classes, folder)
        empty = [name for name in classes if name not in present]
        if empty:
            raise LabelError(f"{folder}: {_some(empty)} hold no picture. Add pictures, or remove the folder.")
    else:
        extra = sorted(set(found.classes) - set(classes))
        if extra:
            raise LabelError(
                f"{folder}: {_some(extra)} are no classes of the training set, which has {_some(classes)}. "
                "Rename or remove these folders, or add the classes to the training set."
            )
        warn_absent([name for name in classes if name not in present], folder)
    index = {name: i for i, name in enumerate(classes)}
    return names, Labels(np.array([index[str(label)] for label in labels], np.int64), list(classes))


def check_classes(classes: Sequence[str], where: str) -> None:
    """Raises LabelError for fewer than two classes; warns of names that look the same."""
    if len(classes) < 2:
        raise LabelError(f"{where}: there must be at least two classes, got {_some(classes)}. Add another class.")
    seen: dict[str, str] = {}
    for name in classes:
        twin = seen.setdefault(name.strip().casefold(), name)
        if twin != name:
            warnings.warn(
                f"{where}: the classes {twin!r} and {name!r} look the same. Rename one if they are.",
                UserWarning,
                stacklevel=5,
            )


def warn_absent(absent: Sequence[str], where: str) -> None:
    """Warns of classes that have no row for validation."""
    if absent:
        warnings.warn(
            f"{where}: no picture of the class(es) {_some(absent)}; nothing is measured for them.",
            UserWarning,
            stacklevel=5,
        )


def _warn_strays(found: Found, beside: int) -> None:
    strays = [name for name in found.pictures if found.class_of(name) is None] if beside else []
    strays += found.others
    if strays:
        warnings.warn(
            f"{found.folder}: {len(strays)} file(s) are ignored, first {strays[0]}: not a picture in a class folder.",
            UserWarning,
            stacklevel=5,
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"
