"""A segment of a store: rows that one process has appended, block by block, with checksums. README.md has the format.

Only the process that made a segment writes to it, and a block counts once its record is there, so everybody may read
what is finished while more is appended, and no lock is needed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import struct
import time
import weakref
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastclf import files
from fastclf.threads import available_threads

SCHEMA = 3
DTYPES = ("float16", "float32")
ROWS, KEYS, BLOCKS, USED = "rows.bin", "keys.bin", "blocks.bin", "used.bin"
KEY = np.dtype("S32")  # numpy compares all 32 bytes
USED_TYPE = np.dtype("<u4")

NO_KEY = b""
"""Stands where a row has no key: it cannot be computed, since its image is bad, or it is not sound."""

Keys: TypeAlias = NDArray[np.bytes_]

_RECORD = struct.Struct("<QQIII")  # first row, rows, CRC-32 of the keys, of the rows, of the record
_SYNC_SECONDS = 30.0  # what a power cut may cost
_NOTED_SECONDS = 3600  # how exactly the last use of a row is known

_checked: dict[tuple[int, ...], set[int]] = {}  # file -> first rows of the blocks whose checksums agreed here


class Kind(NamedTuple):
    """What the rows of a store are.

    Attributes:
        name: the fingerprint of what they were computed with, and the name of the store's folder.
        width: features, F.
        dtype: ``float16`` or ``float32``.
    """

    name: str
    width: int
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.width * np.dtype(self.dtype).itemsize


class _Block(NamedTuple):
    """Rows that were appended at once, and the CRC-32 of their bytes."""

    first: int
    rows: int
    crc: int


class Segment:
    """The finished blocks of a segment, as `refresh` finds them.

    Attributes:
        place: its folder.
        keys: of its rows, ``[rows]``; `NO_KEY` for rows that are no part of a sound block.
    """

    def __init__(self, place: Path, kind: Kind) -> None:
        self.place, self.kind = place, kind
        self.keys: Keys = np.empty(0, KEY)
        self._blocks: list[_Block] = []
        self._read = 0

    @property
    def rows_file(self) -> Path:
        """The file of the rows."""
        return self.place / ROWS

    def refresh(self) -> Keys:
        """Read the blocks that were finished since the last call, and return their keys.

        Raises:
            OSError: the segment is gone, or cannot be read.
        """
        with (self.place / BLOCKS).open("rb") as file:
            file.seek(self._read)
            records = file.read()
        records = records[: len(records) // _RECORD.size * _RECORD.size]
        start, end = len(self.keys), 0
        with (self.place / KEYS).open("rb") as file:
            file.seek(start * KEY.itemsize)
            keys = file.read() if records else b""
        new = np.zeros(len(keys) // KEY.itemsize, KEY)
        for at in range(0, len(records), _RECORD.size):
            first, n, keys_crc, rows_crc, crc = _RECORD.unpack_from(records, at)
            begin, data = first - start, keys[(first - start) * KEY.itemsize : (first - start + n) * KEY.itemsize]
            sound = crc == _record_crc(self.kind, records[at : at + _RECORD.size]) and zlib.crc32(data) == keys_crc
            if sound and begin >= end and 0 < n == len(data) // KEY.itemsize:
                end = begin + n
                new[begin:end] = np.frombuffer(data, KEY)
                self._blocks.append(_Block(first, n, rows_crc))
        self._read += len(records)
        self.keys = np.concatenate([self.keys, new[:end]])
        return new[:end]

    def forget(self, first: int = 0, rows: int | None = None) -> None:
        """Count rows as not there."""
        self.keys[first : None if rows is None else first + rows] = NO_KEY

    def check(self, rows: NDArray[np.int64]) -> bool:
        """Forget the blocks that hold some of ``rows`` and are damaged; return whether there was none.

        Checksums are computed once per process and block, at some GB/s.

        Raises:
            OSError: the segment is gone, or cannot be read.
        """
        wanted = np.zeros(len(self.keys), bool)
        wanted[rows] = True
        holding = np.flatnonzero(np.logical_or.reduceat(wanted, [block.first for block in self._blocks]))
        with self.rows_file.open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            known = _checked.setdefault((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), set())
            new = [self._blocks[i] for i in holding.tolist() if self._blocks[i].first not in known]

            def sound(part: Sequence[_Block]) -> set[int]:
                return {block.first for block in part if self._bytes(file.fileno(), block) is not None}

            threads = available_threads()
            with ThreadPoolExecutor(threads) as pool:
                known.update(*pool.map(sound, [new[i::threads] for i in range(threads)]))
        damaged = [block for block in new if block.first not in known]
        for block in damaged:
            self.forget(block.first, block.rows)
        return not damaged

    def _bytes(self, handle: int, block: _Block) -> bytes | None:
        """Read a block's rows; None when their checksum disagrees."""
        width = self.kind.row_bytes
        data = os.pread(handle, block.rows * width, block.first * width)
        return data if len(data) == block.rows * width and zlib.crc32(data) == block.crc else None

    def last_used(self) -> NDArray[np.uint32]:
        """Return when each row was last asked for, ``[rows]`` in seconds since 1970; at first, when it was written."""
        used = np.zeros(len(self.keys), USED_TYPE)
        with suppress(OSError):
            used[:] = int(self.rows_file.stat().st_mtime)
            noted = np.fromfile(self.place / USED, USED_TYPE)[: len(self.keys)]
            used[: len(noted)] = noted
        return used

    def note_use(self, rows: NDArray[np.int64]) -> None:
        """Note that rows are in use, where the segment can be written and that was not noted within the hour."""
        with suppress(OSError):
            used, now = self.last_used(), int(time.time())
            if len(rows) and int(used[rows].min()) < now - _NOTED_SECONDS:
                used[rows] = now
                _publish_used(self.place, used)

    def copy_to(self, writer: SegmentWriter, keep: NDArray[np.bool_] | None = None) -> None:
        """Append the rows that are sound, or those of them that ``keep [rows]`` names, to another segment.

        Raises:
            OSError: this one cannot be read, or that one not be written.
        """
        used = self.last_used()
        with self.rows_file.open("rb", buffering=0) as file:
            for block in self._blocks:
                data, part = self._bytes(file.fileno(), block), slice(block.first, block.first + block.rows)
                chosen = np.ones(block.rows, bool) if keep is None else keep[part]
                if data is not None and chosen.any():
                    rows = np.frombuffer(data, self.kind.dtype).reshape(block.rows, -1)
                    writer.write(self.keys[part][chosen], rows[chosen], used[part][chosen])


class SegmentWriter:
    """Makes a segment and appends blocks to it.

    As a context manager it ends the segment on leaving, whatever the reason: every finished block stays.

    Args:
        folder: of the store; made if it does not exist, for this user alone.
        kind: of the rows.

    Attributes:
        place: the segment's folder, whose name says who is writing.
        rows_done: rows in finished blocks.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.kind, self.rows_done = kind, 0
        self._keys: list[bytes] = []
        self._used: list[NDArray[np.uint32]] = []
        self._handles: list[int] = []
        self._blocks = 0
        for made in (folder.parent, folder):
            files.on_disk(made.mkdir, mode=0o700, parents=True, exist_ok=True)
        self.place = files.temporary_sibling(folder / "segment")
        try:
            files.on_disk(self.place.mkdir, mode=0o700)
            for name in (ROWS, KEYS, BLOCKS):
                self._handles.append(files.create(self.place / name, 0o600))
        except BaseException:
            self.drop()
            raise
        self._synced = time.monotonic()

    def write(self, keys: Keys, rows: NDArray[Any], used: NDArray[np.uint32] | None = None) -> None:
        """Append a block.

        Args:
            keys: ``[B]``.
            rows: ``[B, F]``, finite, of the store's dtype.
            used: when the rows were last used, ``[B]``; now by default.

        Raises:
            OSError: the disk is full, or fails; the blocks before stay finished, and `write` may be called again.
        """
        key_bytes, row_bytes = keys.astype(KEY).tobytes(), np.ascontiguousarray(rows, self.kind.dtype).tobytes()
        record = _RECORD.pack(self.rows_done, len(keys), zlib.crc32(key_bytes), zlib.crc32(row_bytes), 0)
        record = record[:-4] + struct.pack("<I", _record_crc(self.kind, record))
        places = (self.rows_done * self.kind.row_bytes, self.rows_done * KEY.itemsize, self._blocks * _RECORD.size)
        for handle, place, data in zip(self._handles, places, (row_bytes, key_bytes, record), strict=True):
            os.lseek(handle, place, os.SEEK_SET)  # after an error, there may be half of a block
            files.append(handle, data)
        self._blocks += 1
        self._keys.append(key_bytes)
        self._used.append(np.full(len(keys), int(time.time()), USED_TYPE) if used is None else used)
        self.rows_done += len(keys)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make what is written survive a power cut."""
        for handle in self._handles:
            files.sync(handle)
        self._synced = time.monotonic()

    def finish(self) -> Path:
        """End the segment, and return where it is then.

        Raises:
            OSError: the disk fails, or somebody has removed the folder; the rows can still be read back.
        """
        self.sync()
        _publish_used(self.place, np.concatenate(self._used))
        files.sync(self.place)
        final = self.place.with_name(f"segment-{secrets.token_hex(8)}")
        files.on_disk(self.place.rename, final)
        files.sync(final.parent)
        self._close()
        return final

    def so_far(self) -> tuple[Keys, NDArray[Any]]:
        """Read back the keys and rows of the finished blocks.

        Raises:
            OSError: they cannot be read.
        """
        data = Path(f"/proc/self/fd/{self._handles[0]}").read_bytes()  # also of a file that was removed
        rows = np.frombuffer(data, self.kind.dtype, self.rows_done * self.kind.width)
        return np.frombuffer(b"".join(self._keys), KEY), rows.reshape(self.rows_done, self.kind.width)

    def drop(self) -> None:
        """Give up the segment with all its blocks."""
        self._close()
        with suppress(OSError):
            files.on_disk(shutil.rmtree, self.place, ignore_errors=True)

    def _close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._handles:
            return
        if not self.rows_done:
            self.drop()
            return
        try:
            with suppress(OSError):
                self.finish()
        finally:
            self._close()


class MemorySegment(Segment):
    """Takes the place of a segment where no folder takes one: its rows are a file that only this process has."""

    def __init__(self, kind: Kind) -> None:
        super().__init__(Path(), kind)
        self._file = os.fdopen(os.memfd_create("activations"), "wb", buffering=0)
        weakref.finalize(self, self._file.close)

    @property
    def rows_file(self) -> Path:
        """See `Segment.rows_file`."""
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def write(self, keys: Keys, rows: NDArray[Any]) -> None:
        """See `SegmentWriter.write`."""
        left = np.ascontiguousarray(rows, self.kind.dtype).data.cast("B")
        while left:
            left = left[self._file.write(left) :]
        self.keys = np.concatenate([self.keys, keys])

    def refresh(self) -> Keys:
        """Do nothing: what is written is known."""
        return self.keys[:0]

    def check(self, rows: NDArray[np.int64]) -> bool:
        """Return True: memory is taken to be sound."""
        return True

    def note_use(self, rows: NDArray[np.int64]) -> None:
        """Do nothing: it goes with the process."""


def segments_in(folder: Path) -> list[Path]:
    """Return the segments of a store, those that are being written among them."""
    return sorted(folder.glob("segment[-.]*"))


def has_ended(place: Path) -> bool:
    """Return whether nobody appends to a segment any more."""
    return ".tmp-" not in place.name or files.is_left_behind(place)


def remove(places: Iterable[Path]) -> None:
    """Remove folders of segments that have ended; who has one mapped keeps its rows."""
    for place in places:  # renamed in one step first, as two processes may remove it at once
        aside = files.given_up_sibling(place.with_name(place.name.partition(".tmp-")[0]))
        with suppress(OSError):
            files.on_disk(place.rename, aside)
            files.on_disk(shutil.rmtree, aside, ignore_errors=True)


def _publish_used(place: Path, used: NDArray[np.uint32]) -> None:
    files.publish(place / USED, lambda file: files.write_new(file, used.tobytes(), 0o600))


def _record_crc(kind: Kind, record: bytes) -> int:
    """The checksum of a record: it begins with the store's name, so a segment is none of another store."""
    return zlib.crc32(record[:-4], zlib.crc32(kind.name.encode()))
