"""Which files a folder holds: images by their extension, and what is left out."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastclf.data.sources.ignored import OWN_FOLDERS, is_a_programs, is_hidden, is_tagged
from fastclf.data.sources.names import printable, some
from fastclf.errors import DataError
from fastclf.paths import check_length, system_name, utf8_name
from fastclf.report import remedy, warn

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".heic", ".heif", ".hif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".pnm", ".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".jpx", ".tga", ".pcx", ".ico"),
)
"""What DALI or Pillow decodes; HEIC with pillow-heif."""
UNSUPPORTED = (".jxl", ".svg")
"""Images as well, so that they are named as bad ones and not passed over."""


@dataclass(frozen=True)
class Found:
    """The files below one folder, sorted by code point.

    Attributes:
        path: the root that the names are relative to.
        folder: the folder looked into, below path.
        images: names of images by their extension, relative to path, with forward slashes.
        others: names of other files.
        classes: names of the folders directly below, when they are not hidden.
        hidden: names of files and folders that are hidden, or that an operating system or this library keeps for
            itself; they are left out.
        links: names of links to folders, which are left out.
        special: names of pipes, sockets and devices, which are left out: to open one may never end.
    """

    path: Path
    folder: str
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)

    def class_of(self, name: str) -> str | None:
        """Return the folder directly below `folder` that holds the file, however deep; None for a file beside them."""
        inner = self.inner(name)
        return inner.split("/", 1)[0] if "/" in inner else None

    def inner(self, name: str) -> str:
        """Return a name relative to `folder`."""
        return name if self.folder == "." else name[len(self.folder) + 1 :]

    def place(self, name: str) -> Path:
        """Return where a file or folder of a name relative to `path` is."""
        return self.path / system_name(name)

    @property
    def ignored(self) -> dict[str, int]:
        """How many files of each kind are left out."""
        return {
            "hidden files or folders": len(self.hidden),
            "links to folders": len(self.links),
            "pipes, sockets or devices": len(self.special),
        }


def find_files(path: Path, folder: str, *, exclude: Collection[str] = (), allow_outside: bool = False) -> Found:
    """List the files below path/folder, by one read of each folder; no file is looked at by itself.

    Args:
        path: the data's root.
        folder: below it.
        exclude: names of folders below path that are passed over: those of other sets.
        allow_outside: whether links may lead out of path, and links to folders are followed, each folder once.

    Raises:
        FileNotFoundError: the folder is not there; says what is.
        ValueError: when `folder` is not below path.
        DataError: a link leads out of path, or a folder may not be read.
    """
    folder = inner_name(folder)
    root = path / system_name(folder)
    if not root.is_dir():
        there = sorted(printable(entry.name) for entry in path.iterdir())[:10] if path.is_dir() else []
        has = f"{path} holds {', '.join(there)}" if there else f"{path} is empty or no folder"
        raise FileNotFoundError(f"there is no folder {root}; {has}. Check the path and the folder's name.")
    found = Found(path, folder)
    _Walk(found, {inner_name(name) for name in exclude}, allow_outside).run()
    for names in (found.images, found.others, found.classes):
        names.sort()
    _warn_links(found)
    _warn_hidden(found)
    return found


def inner_name(folder: str) -> str:
    """Return the name of a folder below the data's path in its plain form: 'a/b'.

    Raises:
        ValueError: it is absolute, is too long, or has '..' or a zero byte.
    """
    folder = utf8_name(folder)
    check_length(folder)
    plain = PurePosixPath(folder)
    if plain.is_absolute() or ".." in plain.parts or "\0" in folder:
        raise ValueError(f"a folder of the data must be below its path, got {folder!r}. Pass e.g. 'train'.")
    return plain.as_posix()


class _Walk:
    """Goes through the folders and fills a `Found`."""

    def __init__(self, found: Found, exclude: Collection[str], allow_outside: bool) -> None:
        self.found, self.exclude, self.allow_outside = found, exclude, allow_outside
        self.root = found.path.resolve()
        self.todo: list[str] = []  # names of folders

    def run(self) -> None:
        """List everything below the folder."""
        self.check(self.found.folder)
        self.todo.append(self.found.folder)
        visited = set()  # real paths, for links that lead in circles
        while self.todo:
            name = self.todo.pop()
            if self.allow_outside:
                real = self.found.place(name).resolve()
                if real in visited:
                    continue
                visited.add(real)
            self._list(name)

    def check(self, name: str) -> None:
        """Raise DataError when a name below the root is really outside, and that is not allowed."""
        try:
            target = self.found.place(name).resolve()
        except (OSError, RuntimeError) as error:  # Python 3.11 and 3.12 raise RuntimeError for a circle
            raise DataError(f"{printable(name)} is a link that leads nowhere: {error}. Take it away.") from error
        if not self.allow_outside and not target.is_relative_to(self.root):
            raise DataError(
                f"{printable(name)} is a link out of {self.found.path}, to {target}. Put the file itself in its place, "
                f"or pass {_allow_outside()}."
            )

    def _list(self, name: str) -> None:
        folder = self.found.place(name)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    inner = utf8_name(entry.name)
                    self._take(entry, inner if name == "." else f"{name}/{inner}", name == self.found.folder)
        except PermissionError as error:
            raise DataError(
                f"{folder} may not be read: {error.strerror}. Give yourself the right to read it."
            ) from error

    def _take(self, entry: os.DirEntry[str], name: str, top: bool) -> None:
        found = self.found
        if name in self.exclude:
            return
        if is_hidden(entry.name) or name in OWN_FOLDERS:
            found.hidden.append(name)
            return
        if entry.is_symlink():
            self.check(name)
            if entry.is_dir() and not self.allow_outside:
                found.links.append(name)
                return
        if entry.is_dir():
            if is_tagged(Path(entry.path)):
                return
            if top:
                found.classes.append(utf8_name(entry.name))
            self.todo.append(name)
        elif entry.is_file() or not Path(entry.path).exists():  # a link that leads nowhere is named later
            (found.images if is_image(entry.name) else found.others).append(name)
        else:
            found.special.append(name)


_IMAGES = frozenset(EXTENSIONS + UNSUPPORTED)


def is_image(name: str) -> bool:
    """Return whether a file is an image, by its extension."""
    return name[name.rfind(".") :].lower() in _IMAGES


def look(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of folders and images directly in a folder, sorted; none where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            shown = [(entry.is_dir(), entry.name) for entry in entries if not is_hidden(entry.name)]
    except OSError:
        return [], []
    images = [name for is_dir, name in shown if not is_dir and is_image(name)]
    return sorted(name for is_dir, name in shown if is_dir and not is_tagged(folder / name)), sorted(images)


def _warn_links(found: Found) -> None:
    if found.links:
        warn(
            f"{found.folder}: {len(found.links)} link(s) to folders are not followed, first "
            f"{printable(found.links[0])}. Put the folder itself in its place, or pass {_allow_outside()}."
        )


def _warn_hidden(found: Found) -> None:
    """Warn of folders beside the classes that are left out for their name and hold images: they may be classes."""
    beside = [name for name in found.hidden if "/" not in found.inner(name)]
    unknown = [name for name in map(found.inner, beside) if not is_a_programs(name)]
    lost = [name for name in unknown if look(found.place(f"{found.folder}/{name}"))[1]]
    if lost:
        warn(
            f"{found.folder}: the folder(s) {some(lost)} hold images and are left out: hidden, or kept for fastclf's "
            "own files. Rename them if they are classes."
        )


def images_in(found: Found) -> list[str]:
    """Return the images, whatever folders they are in.

    Raises:
        FileNotFoundError: there is none.
    """
    if not found.images:
        raise FileNotFoundError(nothing_in(found))
    return found.images


def nothing_in(found: Found) -> str:
    """Describe a folder without images."""
    return (
        f"there are no images below {found.path / found.folder}: {len(found.others)} other file(s), "
        f"{len(found.hidden)} hidden, {len(found.classes)} folder(s). Images end in {', '.join(EXTENSIONS)}."
    )


def _allow_outside() -> str:
    return remedy("allow_outside=True", "--allow-outside")
