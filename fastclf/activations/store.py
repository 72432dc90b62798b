"""A store: the rows of one kind, in the segments of one or several folders, found by key and mapped as one matrix."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fastclf import files
from fastclf.activations.fingerprint import sha256_of
from fastclf.activations.segment import KEY, NO_KEY, SCHEMA, Keys, Kind, Segment, has_ended, segments_in
from fastclf.ops.arguments import IndexedRows

ABOUT = "store.json"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10  # Linux, on every processor that torch runs on


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Keep the description of a store's rows beside them."""
    if read_about(folder) is None:
        text = json.dumps(about, indent=1).encode()
        files.publish(folder / ABOUT, lambda file: files.write_new(file, text, 0o600))


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return the description of a store's rows, whose hash is the folder's name; None where there is none."""
    with suppress(OSError, ValueError, RecursionError):
        about = json.loads((folder / ABOUT).read_bytes())
        if sha256_of(about) == folder.name and about["schema"] == SCHEMA:
            return dict(about)
    return None


def older_stores(folder: Path) -> list[Path]:
    """Return the folders in a folder of activations that are no stores of this version."""
    places = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        place
        for place in places
        if read_about(place) is None and (any(place.glob("*")) or ".tmp-" in place.name)  # else somebody is beginning
    )


class Store:
    """The rows of one kind.

    Args:
        folders: of the store, best first; those that do not exist are empty.
        kind: of the rows.

    Attributes:
        added: segments beside those in the folders, such as one in memory.
    """

    def __init__(self, folders: Sequence[Path], kind: Kind) -> None:
        self.folders, self.kind = folders, kind
        self.added: list[Segment] = []
        self._segments: dict[Path, Segment] = {}

    def missing(self, keys: Keys) -> NDArray[np.int64]:
        """Return the first place of each key that has no row, ascending."""
        unique, first = np.unique(keys, return_index=True)
        at = _find(unique, [segment.keys for segment in self._refreshed()])
        return np.sort(first[(at < 0) & (unique != NO_KEY)]).astype(np.int64)

    def open(self, keys: Keys) -> IndexedRows | None:
        """Map the rows of ``keys [N]``, ``[N, F]``, zeros for `NO_KEY`; None when some are missing.

        The checksum of every block that holds one of them is computed once per process. Damaged blocks count as none.
        """
        while True:
            segments = self._refreshed()
            at = _find(keys, [segment.keys for segment in segments])
            if np.any((at < 0) & (keys != NO_KEY)):
                return None
            with suppress(_ChangedError):
                return self._mapped(segments, at)

    def _refreshed(self) -> list[Segment]:
        """All segments, with every block that is finished by now."""
        there = {place for folder in self.folders for place in segments_in(folder)}
        self._segments = {place: self._segments.get(place) or Segment(place, self.kind) for place in there}
        for segment in self._segments.values():
            try:
                segment.refresh()
            except OSError:  # removed meanwhile, or not to be read
                segment.forget()
        return [*self._segments.values(), *self.added]

    def _mapped(self, segments: Sequence[Segment], at: NDArray[np.int64]) -> IndexedRows:
        """Map the segments of rows ``at``, counted through all of them; raise `_ChangedError` if that fails."""
        places = np.zeros_like(at)  # where there is none, a row of zeros
        begin, in_use = 0, []
        for segment in segments:
            chosen = (begin <= at) & (at < begin + len(segment.keys))
            if chosen.any():
                in_use.append((segment, chosen, at[chosen] - begin))
            begin += len(segment.keys)
        for segment, _, rows in in_use:
            with _unless_gone(segment):
                if not segment.check(rows):
                    raise _ChangedError
        matrix, firsts = _matrix([segment for segment, _, _ in in_use], self.kind)
        for first, (segment, chosen, rows) in zip(firsts, in_use, strict=True):
            places[chosen] = first + rows
            segment.note_use(rows)
        return IndexedRows(matrix, places)


class Others:
    """What other processes that append to a store finish while this one works."""

    def __init__(self, store: Store, own: Path | None) -> None:
        self._store = store
        self._segments: dict[Path, Segment | None] = {} if own is None else {own: None}
        self._keys: set[bytes] = set()

    def at_work(self) -> bool:
        """Return whether there are any."""
        self._refresh()
        return any(self._segments.values())

    def have(self, key: bytes) -> bool:
        """Return whether one of them has finished a row since this object was made."""
        self._refresh()
        return key in self._keys

    def _refresh(self) -> None:
        for place in (place for folder in self._store.folders for place in folder.glob("segment.tmp-*")):
            if place not in self._segments:
                self._segments[place] = None if has_ended(place) else Segment(place, self._store.kind)
        for segment in self._segments.values():
            with suppress(OSError):
                if segment is not None:
                    self._keys.update(segment.refresh().tolist())


class _ChangedError(Exception):
    """A segment was removed, or a block turned out to be damaged: look again."""


@contextmanager
def _unless_gone(segment: Segment) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        segment.forget()
        raise _ChangedError from error


def _find(keys: Keys, stored: Sequence[Keys]) -> NDArray[np.int64]:
    """Return where each key is among those stored, counted through; -1 where it is not, and for `NO_KEY`."""
    known, found = np.concatenate([np.empty(0, KEY), *stored]), np.full(len(keys), -1, np.int64)
    prefix, wanted = (np.ascontiguousarray(side).view("<u8")[::4] for side in (known, keys))
    order, left = np.argsort(prefix), np.flatnonzero(keys != NO_KEY)  # numbers are sorted much faster than keys
    prefix, left = prefix[order], left[np.argsort(wanted[left])]  # and what is sorted is found much faster
    at = np.searchsorted(prefix, wanted[left])
    while len(left):  # again only for different keys with the same prefix
        some = at < len(prefix)
        some[some] = prefix[at[some]] == wanted[left[some]]
        left, at = left[some], at[some]
        same = known[order[at]] == keys[left]
        found[left[same]] = order[at[same]]
        left, at = left[~same], at[~same] + 1
    return found


def _matrix(segments: Sequence[Segment], kind: Kind) -> tuple[NDArray[Any], list[int]]:
    """Map the rows of segments one behind the other, ``[S, F]`` read-only, and return where each begins.

    The rows before the first segment, and between them up to the next page that a row begins with, are zeros.
    """
    step = math.lcm(mmap.PAGESIZE, kind.row_bytes)
    firsts, size = [], step
    for segment in segments:
        firsts.append(size // kind.row_bytes)
        size += -(-len(segment.keys) * kind.row_bytes // step) * step
    space = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
    address = np.frombuffer(space, np.uint8).ctypes.data
    for first, segment in zip(firsts, segments, strict=True):
        length = len(segment.keys) * kind.row_bytes
        with _unless_gone(segment):
            file = segment.rows_file.open("rb")
        with file:
            _place(address + first * kind.row_bytes, length, file)
    return np.frombuffer(space, kind.dtype).reshape(-1, kind.width), firsts


def _place(address: int, length: int, file: IO[bytes]) -> None:
    """Map a file at an address, or read it to there where its file system has no maps, as some over a network.

    The map is private: fewer file systems have shared ones, and of a map that is only read both share its pages.
    """
    try:
        _map(address, length, mmap.PROT_READ, mmap.MAP_PRIVATE, file)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        _map(address, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, None)
        if file.readinto((ctypes.c_char * length).from_address(address)) != length:  # type: ignore[attr-defined]
            raise OSError(errno.EIO, "it became shorter", file.name) from error


def _map(address: int, length: int, access: int, flags: int, file: IO[bytes] | None) -> None:
    handle = -1 if file is None else file.fileno()
    if _libc.mmap(address, length, access, flags | _MAP_FIXED, handle, 0) == _FAILED:
        why = f"activations cannot be mapped: {os.strerror(ctypes.get_errno())}"
        raise OSError(ctypes.get_errno(), why, None if file is None else file.name)
