"""Files that are published whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

_TEMPORARY = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}$")
_LONG = 24 * 3600.0  # seconds: nobody leaves a file that is being written alone for so long
_OTHERS_MAY_WRITE = 0o022


def user_cache() -> Path:
    """The user's own folder for what can be computed again: $XDG_CACHE_HOME/fastclf, else ~/.cache/fastclf.

    Source: the XDG Base Directory Specification, which lets relative paths be ignored.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "fastclf"


@cache
def _machine() -> str:
    """Where process numbers mean the same: a host, or a container on it."""
    try:
        numbers = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        numbers = ""
    return f"{zlib.crc32(f'{platform.node()} {numbers}'.encode()):08x}"


def temporary_sibling(path: Path) -> Path:
    """A name beside ``path`` that nobody else uses: ``NAME.tmp-<machine>-<pid>-<random>``."""
    return path.with_name(f"{path.name}.tmp-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}")


def is_left_behind(path: Path) -> bool:
    """Whether ``path`` is a `temporary_sibling` whose maker was killed.

    It was, when its process ran on this machine and is no more, or when nothing was written for a day. In doubt it
    lives: the folder may be shared with other machines.
    """
    match = _TEMPORARY.search(path.name)
    if match is None:
        return False
    machine, pid = match[1], int(match[2])
    if machine == _machine() and not _lives(pid):
        return True
    try:
        return time.time() - path.lstat().st_mtime > _LONG
    except OSError:
        return False  # gone meanwhile


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Makes renames within ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes the bytes of ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that is not there yet."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
    finally:
        os.close(handle)


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` fill a temporary file, then puts it in the place of ``path`` in one step.

    After an error or an interrupt, ``path`` is what it was before, and nothing temporary is left. What processes that
    were killed have left in the folder is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(path.parent)
    temporary = temporary_sibling(path)
    try:
        write(temporary)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_left_behind(folder: Path) -> None:
    for entry in folder.iterdir():
        if is_left_behind(entry) and not entry.is_dir():
            with suppress(OSError):
                entry.unlink()


def check_private(folder: Path) -> None:
    """Checks that only this user can have put something into ``folder``; one that does not exist is private.

    Raises:
        PermissionError: it is somebody else's, or others may write into it; says which.
    """
    try:
        stat = folder.stat()
    except FileNotFoundError:
        return
    if stat.st_uid != os.geteuid():
        raise PermissionError(errno.EPERM, f"it belongs to another user (uid {stat.st_uid})", str(folder))
    if stat.st_mode & _OTHERS_MAY_WRITE:
        raise PermissionError(errno.EPERM, "others may write into it (chmod go-w would make it safe)", str(folder))
