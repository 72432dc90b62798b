"""Files that are published whole or not at all."""

from __future__ import annotations

import csv
import errno
import hashlib
import os
import platform
import re
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from fastclf import ranks
from fastclf.paths import check_is_no_folder

P = ParamSpec("P")
R = TypeVar("R")

_TEMPORARY = re.compile(r"\.tmp-(?:([0-9a-f]+)-(\d+)-(?:(\d+)-)?)?[0-9a-f]{8}$")
_LONG = 24 * 3600.0  # seconds: a file that is being written is written to more often
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_NO_CSV = (*_PACKED, ".xls", ".xlsx", ".ods", ".parquet", ".feather", ".json", ".jsonl", ".pkl")
_KEPT_BYTES = 190  # of a file's name in that of its temporary sibling, which adds 65 at most


@cache
def _machine() -> str:
    """Return a name of the scope of process numbers and start times: one boot of a kernel, in one container.

    A host's name would not do: hosts that share a folder may have the same. Where the system does not know its boot,
    the name is random, so that no other process takes this one for dead.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        spaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "time")]
    except OSError:
        return secrets.token_hex(8)
    return hashlib.sha256(f"{boot}{platform.node()}{spaces}".encode()).hexdigest()[:16]


def _process(pid: int) -> tuple[str, str] | None:
    """Return a process's state, and its start in ticks since the machine's; None where the system does not know it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None


def temporary_sibling(path: Path) -> Path:
    """Return a name beside ``path`` that nobody else uses: it holds machine, process and the process's start."""
    pid = os.getpid()
    _, start = _process(pid) or ("", "0")
    return _temporary(path, f"{_machine()}-{pid}-{start}-{secrets.token_hex(4)}")


def given_up_sibling(path: Path) -> Path:
    """Return a temporary name beside ``path`` for what its process has given up: `is_left_behind` at once."""
    return _temporary(path, secrets.token_hex(4))


def _temporary(path: Path, unique: str) -> Path:
    """Return a temporary name that is not too long where that of ``path`` is not."""
    kept = path.name.encode("utf-8", "replace")[:_KEPT_BYTES].decode("utf-8", "ignore")
    return path.with_name(f"{kept}.tmp-{unique}")


def is_left_behind(path: Path) -> bool:
    """Return whether ``path`` is a temporary file or folder that nobody writes any more.

    That is one with a `given_up_sibling`'s name, one whose process ran on this machine and is no more, or one into
    which nothing was written for a day. In doubt its process lives: the folder may be shared with other machines.
    """
    match = _TEMPORARY.search(path.name)
    if match is None:
        return False
    machine, pid, start = match.groups()
    if machine is None:
        return True
    if machine == _machine():
        return not _lives(int(pid), start)
    try:
        return time.time() - _last_written(path) > _LONG
    except OSError:
        return False  # gone meanwhile


def _lives(pid: int, start: str) -> bool:
    """Return whether process ``pid`` is the one that was started at ``start``: numbers are reused."""
    found = _process(pid)
    if found is not None:
        return found[0] not in "ZX" and found[1] == start  # zombie, dead
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _last_written(path: Path) -> float:
    """Return when a file, or a folder with the files in it, was modified."""
    inside = path.iterdir() if path.is_dir() and not path.is_symlink() else ()
    return max(float(entry.lstat().st_mtime) for entry in (path, *inside))


def on_disk(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Make a call that changes what is on disk: the one place where tests let such calls fail, or end the process."""
    return call(*args, **kwargs)


def sync(file: Path | int) -> None:
    """Make the bytes of a file, or the renames within a folder, survive a power cut.

    Args:
        file: its path, or a handle of it.
    """
    handle = file if isinstance(file, int) else os.open(file, os.O_RDONLY)
    try:
        on_disk(os.fsync, handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # the file system has no such promise
            raise
    finally:
        if handle != file:
            os.close(handle)


def create(path: Path, mode: int = 0o666) -> int:
    """Create a file that does not exist yet and return a handle of it, for reading and writing."""
    return on_disk(os.open, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)


def append(handle: int, data: bytes) -> None:
    """Write all of ``data`` at the place where a file's handle is."""
    left = memoryview(data)
    while left:
        left = left[on_disk(os.write, handle, left) :]


def write_new(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a file that does not exist yet."""
    handle = create(path, mode)
    try:
        append(handle, data)
    finally:
        os.close(handle)


def publish(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, then put it in the place of ``path`` in one step.

    After an error or an interrupt, ``path`` is what it was before, and no temporary file is left. Files left in the
    folder by processes that were killed are removed.

    Raises:
        IsADirectoryError: ``path`` is a folder.
    """
    check_is_no_folder(path)
    on_disk(path.parent.mkdir, parents=True, exist_ok=True)
    _remove_left_behind(path.parent)
    temporary = temporary_sibling(path)
    try:
        write(temporary)
        sync(temporary)
        on_disk(temporary.replace, path)
        sync(path.parent)
    except OSError as error:
        if error.filename is not None and os.fspath(error.filename) == str(temporary):
            error.filename = str(path)  # the name that the user knows
        raise
    finally:
        on_disk(temporary.unlink, missing_ok=True)


def publish_once(path: Path, write: Callable[[Path], object], *, waits: bool = False) -> None:
    """Publish a file that processes which train together have all made alike: the first of them writes it.

    Args:
        path: of the file.
        write: see `publish`.
        waits: whether all go on only when it is there, or when the first has failed to write it.
    """
    try:
        if ranks.is_first():
            publish(path, write)
    finally:
        if waits:
            ranks.wait()


def publish_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Publish a CSV file with a line of ``columns`` and one for each row, see `publish_once`; None is an empty cell.

    Raises:
        ValueError: see `check_csv_name`.
        OSError: it cannot be written.
    """
    check_csv_name(path)

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as handle:
            table = csv.writer(handle)
            table.writerow(columns)
            table.writerows(rows)

    publish_once(path, write)


def check_csv_name(path: Path) -> None:
    """Raise ValueError where a file is named as one of another format."""
    if path.suffix.lower() in _NO_CSV:
        raise ValueError(
            f"{path}: tables are written as CSV. Pass a name that ends in .csv, and convert it with pandas."
        )


def _remove_left_behind(folder: Path) -> None:
    for entry in folder.iterdir():
        if is_left_behind(entry) and not entry.is_dir():
            with suppress(OSError):
                on_disk(entry.unlink)
