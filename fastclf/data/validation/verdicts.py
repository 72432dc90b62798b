"""The file of what is known of images: an SQLite database in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from fastclf.data.sources.source import Version
from fastclf.interrupts import finaliser
from fastclf.paths import check_private

_SCHEMA = 4
_ASKED_AT_ONCE = 512
_PATIENCE = 60.0  # seconds, while another process writes
_COLUMNS = "size, mtime_ns, ctime_ns, inode, height, width, channels, renamed, decoded, why, digest"
_TABLE = f"CREATE TABLE IF NOT EXISTS verdicts (name BLOB PRIMARY KEY, {_COLUMNS}) WITHOUT ROWID"
_TYPES = (int,) * 9 + (str,) * 2
_UNUSABLE = (sqlite3.Error, OSError, TypeError, OverflowError)


class Verdict(NamedTuple):
    """One image as it was when it was decoded.

    Attributes:
        size: see `Version`, as the three that follow.
        mtime_ns: see there.
        ctime_ns: see there.
        inode: see there.
        height: in pixels, orientation applied.
        width: in pixels.
        channels: that the encoded image holds; 3 for a palette.
        renamed: 1 where the extension names another format.
        decoded: 0 when only the header was read, since the image is too large; 1 when DALI has decoded it; 2 when
            Pillow has, so that the loaders decode a copy.
        why: why it cannot be decoded; empty for a good image.
        digest: of its contents, see `Source.digest`, in hex; empty until somebody asked.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    height: int = 0
    width: int = 0
    channels: int = 0
    renamed: int = 0
    decoded: int = 0
    why: str = ""
    digest: str = ""

    @property
    def version(self) -> Version:
        """Which version of the image was decoded."""
        return Version(*self[:4])

    def is_of(self, version: Version) -> bool:
        """Return whether an image is still the same version."""
        return self[:4] == version

    def is_open(self, max_pixels: int) -> bool:
        """Return whether the pixels were never decoded, under a lower bound, and may be now."""
        return not self.decoded and not self.why and self.height * self.width <= max_pixels

    def reason(self, max_pixels: int) -> str:
        """Return why the image must not be decoded; empty for a good one."""
        if self.height * self.width > max_pixels:
            return f"too large: {self.width:,} x {self.height:,} pixels, max_pixels={max_pixels:,}"
        return self.why


class VerdictDatabase:
    """The verdicts that are kept in a folder: what decodes is in the file's name, as a verdict with another is none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connection: sqlite3.Connection | None = None
        self._process = os.getpid()
        self._lock = threading.Lock()

    def read(self, names: Sequence[str]) -> dict[str, Verdict]:
        """Return what is kept of some images; nothing where it cannot be read."""
        found: dict[str, Verdict] = {}
        with self._locked():
            try:
                if self._connection is not None or self._file().exists():
                    for name, *values in self._rows([_key(name) for name in names]):
                        found[name.decode("utf-8", "surrogateescape")] = _checked(values)
            except _UNUSABLE as error:
                self._give_up(error)
        return found

    def write(self, found: Mapping[str, Verdict]) -> bool:
        """Add or replace verdicts, whole or not at all; return whether they are kept."""
        with self._locked():
            for _ in range(2):
                try:
                    self._write(found)
                    return True
                except _UNUSABLE as error:
                    self._give_up(error)  # a file that was damaged or removed is made anew
        return False

    def close(self) -> None:
        """Close the file, which is opened again when it is needed."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.close()
        self._connection = None

    __del__ = finaliser(close)

    def _locked(self) -> threading.Lock:
        if self._process != os.getpid():  # a connection must not be used in a forked process
            _inherited.append(self._connection)
            self._connection, self._process, self._lock = None, os.getpid(), threading.Lock()
        return self._lock

    def _file(self) -> Path:
        return self._folder / f"scanned-{_decoders()}.sqlite"

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            check_private(self._folder)
            self._connection = sqlite3.connect(self._file(), timeout=_PATIENCE, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous = NORMAL")
        return self._connection

    def _rows(self, keys: Sequence[bytes]) -> Iterator[Any]:
        for start in range(0, len(keys), _ASKED_AT_ONCE):
            asked = keys[start : start + _ASKED_AT_ONCE]
            marks = ",".join("?" * len(asked))
            yield from self._opened().execute(f"SELECT * FROM verdicts WHERE name IN ({marks})", asked).fetchall()

    def _write(self, found: Mapping[str, Verdict]) -> None:
        make_private(self._folder)
        if not self._file().exists():  # others may have removed it
            self.close()
            _remove_others(self._file())
        with self._opened() as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(_TABLE)
            marks = ",".join("?" * (1 + len(Verdict._fields)))
            rows = ((_key(name), *verdict) for name, verdict in found.items())
            database.executemany(f"INSERT OR REPLACE INTO verdicts VALUES ({marks})", rows)

    def _give_up(self, error: Exception) -> None:
        self.close()
        if isinstance(error, TypeError) or (
            isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        ):
            with suppress(OSError):  # damaged
                check_private(self._folder)
                self._file().unlink(missing_ok=True)


_inherited: list[sqlite3.Connection | None] = []  # from the process that was forked: closing them may hurt it


def make_private(folder: Path) -> None:
    """Make a folder for this user alone.

    Raises:
        OSError: it cannot be made, or others may write there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)


def _remove_others(file: Path) -> None:
    """Remove what was written with other decoders, and by versions of this library that wrote JSON."""
    for other in file.parent.glob("scanned*"):
        if not other.name.startswith(file.name):
            with suppress(OSError):
                other.unlink()


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _checked(values: Sequence[Any]) -> Verdict:
    if tuple(map(type, values)) != _TYPES:
        raise TypeError(values)
    return Verdict._make(values)


@cache
def _decoders() -> str:
    """What decodes, and how it is kept, as a short text."""
    from fastclf.data.decode.graphs import DECODER

    heif = None
    with suppress(PackageNotFoundError):
        heif = version("pillow-heif")
    about = f"{_SCHEMA}, {DECODER}, pillow {version('pillow')}, pillow-heif {heif}"
    return hashlib.sha256(about.encode()).hexdigest()[:12]
