"""Paths: what the user means by one, what Linux takes, this user's own folders, and what a folder must be."""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from fastclf.report import log

_OTHERS_MAY_WRITE = 0o022
_IS_UTF8 = sys.getfilesystemencoding() == "utf-8"
_NAME_BYTES, _PATH_BYTES = 255, 4095  # of Linux: NAME_MAX, and PATH_MAX without the zero byte at the end


def user_cache() -> Path:
    """Return the user's own folder for what can be computed again: $XDG_CACHE_HOME/fastclf, else ~/.cache/fastclf.

    Source: the XDG Base Directory Specification, which lets relative paths be ignored. A user without a home folder, or
    with one that cannot be written, as in containers, gets a temporary one, which lasts as long as the process.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "fastclf"
    with suppress(RuntimeError, OSError):  # neither $HOME nor an entry in the list of users; or it cannot be entered
        folder = Path.home() / ".cache" / "fastclf"
        if folder.is_dir() or os.access(next(parent for parent in folder.parents if parent.exists()), os.W_OK):
            return folder
    return _temporary_cache()


def given_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that the user gave; a leading ``~`` or ``~name`` is the home folder, where there is one.

    Raises:
        TypeError: it is no path.
        ValueError: it is empty, which pathlib takes for the working folder, and nobody means; or see `check_length`.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"a path must be a string or a pathlib.Path, got {type(path).__name__}")
    named = os.fsdecode(path)
    if named == "":
        raise ValueError("a path must not be empty, got ''. Pass '.' for the working folder.")
    expanded = Path(os.path.expanduser(system_name(named)))  # noqa: PTH111  # Path's own refuses a file ~$notes.jpg
    check_length(str(expanded))
    return expanded


def system_name(name: str) -> str:
    """Return a name as Python's calls of the system take it; in a locale of UTF-8 that is the name.

    Names of images and classes are UTF-8, see `utf8_name`. In another locale, such as "C" where Python is told to heed
    it, Python reads and writes the bytes of a file's name in that encoding, with stand-ins for what it has not.
    """
    if _IS_UTF8:
        return name
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return os.fsdecode(name.encode("utf-8", "surrogateescape"))
    return name


def utf8_name(name: str) -> str:
    """Return a name of the system's as text that is the same in every locale: its bytes as UTF-8 (`system_name`)."""
    if _IS_UTF8:
        return name
    try:
        return os.fsencode(name).decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # no name of the system's
        return name


def check_length(path: str) -> None:
    """Raise ValueError where a path, or a name in it, is longer than Linux takes: it is text that is no path."""
    if why := too_long(path):
        raise ValueError(f"a path must name a file or folder, got {path[:50] + '...'!r}: {why}. Pass a shorter one.")


def too_long(path: str) -> str:
    """Return what of a path is longer than Linux takes; an empty text where nothing is."""
    size, name = _bytes_of(path), max(map(_bytes_of, path.split("/")))
    if name > _NAME_BYTES:
        return f"a name in it has {name:,} bytes, and a file's may have {_NAME_BYTES}"
    return f"it has {size:,} bytes, and a path may have {_PATH_BYTES:,}" if size > _PATH_BYTES else ""


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "replace"))  # a byte that is no text counts as one


def temporary_folder() -> Path:
    """Make a folder that is private, and is removed when this process ends."""
    folder, maker = Path(tempfile.mkdtemp(prefix="fastclf-")), os.getpid()

    def remove() -> None:
        if os.getpid() == maker:  # not a forked child
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


@cache
def _temporary_cache() -> Path:
    folder = temporary_folder()
    log(f"no home folder to write in: caches lie in {folder} until this process ends; set XDG_CACHE_HOME to keep them")
    return folder


def require_folder(folder: Path) -> None:
    """Check that the folder of some data is still where it was.

    Raises:
        FileNotFoundError: it is not; names the remedy.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the data's folder {folder} is not found: it was moved or removed. Make the data from where it is now."
        )


def check_is_no_folder(path: Path) -> None:
    """Raise IsADirectoryError where a file cannot be written, as there is a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; pass the name of a file", str(path))


@contextmanager
def writable(advice: str) -> Iterator[None]:
    """Say what to do where this user may not write."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise type(error)(error.errno, f"{error.strerror}. {advice}", error.filename) from error


def check_private(folder: Path) -> None:
    """Check that only this user can have put something into ``folder``; one that does not exist is private.

    Raises:
        PermissionError: it belongs to another user, or others may write into it.
    """
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return
    if stat.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {stat.st_uid})", str(folder))
    if stat.st_mode & _OTHERS_MAY_WRITE:
        raise PermissionError(errno.EPERM, "others may write into it (chmod go-w would make it safe)", str(folder))
