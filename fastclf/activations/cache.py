"""What the caches of a data folder and of this user hold, and how they are kept small."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.activations.fill import places_for
from fastclf.activations.segment import NO_KEY, Kind, Segment, SegmentWriter, has_ended, remove, segments_in
from fastclf.activations.store import older_stores, read_about
from fastclf.data.copies import Copy, copies_in
from fastclf.files import on_disk
from fastclf.paths import check_private, given_path

_DAY = 24 * 3600.0
_BESIDE = 36  # bytes of a row's key, and of when it was used


@dataclass(frozen=True)
class CachedStore:
    """The rows of one kind in one folder.

    Attributes:
        folder: of the store.
        about: what they were computed with: ``arch``, ``transforms``, ``dtype`` and more; None where nobody knows, as
            of another version of fastclf.
        rows: how many, one per image or augmented view.
        size: in bytes.
        last_used: when the last of them was asked for, in seconds since 1970, to the hour.
    """

    folder: Path
    about: dict[str, Any] | None
    rows: int
    size: int
    last_used: float


def cached(path: str | os.PathLike[str] | None = None, *, tmp_name: str = "tmp") -> list[CachedStore]:
    """Return the stores of a data folder, if one is given, and of this user's cache, the most recently used first.

    Raises:
        PermissionError: others may have written into a folder.
    """
    found = []
    for place in _places(path, tmp_name):
        about, segments = read_about(place), _segments(place)
        used = [int(segment.last_used().max()) for segment in segments if len(segment.keys)]
        rows = sum(int(np.count_nonzero(segment.keys != NO_KEY)) for segment in segments)
        found.append(CachedStore(place, about, rows, _size_of([place]), max(used, default=place.stat().st_mtime)))
    return sorted(found, key=lambda store: -store.last_used)


def cached_copies(path: str | os.PathLike[str] | None = None, *, tmp_name: str = "tmp") -> list[Copy]:
    """Return the decoded copies of a data folder, if one is given, and of this user's cache.

    Raises:
        PermissionError: others may have written into the user's cache.
    """
    return [*copies_in(None if path is None else given_path(path) / tmp_name)]


def prune(
    path: str | os.PathLike[str] | None = None,
    *,
    keep: float | None = None,
    older_than: float | None = None,
    tmp_name: str = "tmp",
) -> int:
    """Remove what a data folder, if one is given, and this user's cache keep; return how many bytes that frees.

    What another version of fastclf has left, and what is damaged, goes. Then the rows and the decoded copies that were
    not asked for longest: those of images that were removed or have changed are among them. What a living process
    writes stays.

    Args:
        path: the data's folder.
        keep: bytes that may stay, of all rows and copies together.
        older_than: days; what nobody has asked for since goes.
        tmp_name: see `ConvLearner.pretrained`.

    Raises:
        ValueError: a limit is below 0, or no number: nothing is removed then.
        OSError: a folder cannot be changed, or others may have written into it.
    """
    for name, limit in (("keep", keep), ("older_than", older_than)):
        if limit is not None and not 0 <= limit < np.inf:
            raise ValueError(f"prune: {name} must be a number that is not below 0, got {limit}")
    places, copies = [*_places(path, tmp_name)], cached_copies(path, tmp_name=tmp_name)
    before = _size_of(places)
    for folder in {place.parent for place in places}:
        remove(place for place in older_stores(folder) if has_ended(place) and all(map(has_ended, segments_in(place))))
    segments = [segment for place in places for segment in _segments(place) if has_ended(segment.place)]
    used = np.concatenate([[copy.last_used for copy in copies], *(segment.last_used() for segment in segments)])
    size = np.concatenate([[copy.size for copy in copies], *(_row_sizes(segment) for segment in segments)])
    once = np.concatenate([np.ones(len(copies), bool), *(_sound_once(members) for members in _by_store(segments))])
    stays = once & (used >= (0 if older_than is None else time.time() - older_than * _DAY))
    if keep is not None:
        latest = np.argsort(-used, kind="stable")
        stays[latest[np.cumsum(np.where(stays, size, 0)[latest]) > keep]] = False
    of_copies, *parts = np.split(stays, np.cumsum([len(copies), *(len(segment.keys) for segment in segments)])[:-1])
    gone = [*compress(copies, ~of_copies)]
    for copy in gone:
        on_disk(copy.path.unlink, missing_ok=True)
    for members in _by_store(segments):
        _compact([(segment, parts[segments.index(segment)]) for segment in members])
    remove(place for place in places if has_ended(place) and not segments_in(place))
    return before - _size_of(places) + sum(copy.size for copy in gone)


def _size_of(places: Sequence[Path]) -> int:
    return sum(file.lstat().st_size for place in places for file in place.rglob("*"))


def _row_sizes(segment: Segment) -> NDArray[np.int64]:
    return np.full(len(segment.keys), segment.kind.row_bytes + _BESIDE)


def _by_store(segments: Sequence[Segment]) -> list[list[Segment]]:
    return [list(members) for _, members in groupby(segments, lambda segment: segment.place.parent)]


def _sound_once(segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """Tell which rows of a store's segments are sound and are there for the first time."""
    keys = np.concatenate([segment.keys for segment in segments])
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    first[keys == NO_KEY] = False
    return first


def _compact(segments: list[tuple[Segment, NDArray[np.bool_]]]) -> None:
    """Move the rows that stay from segments that lose some into a new one."""
    remove(segment.place for segment, stays in segments if not stays.any())
    mixed = [(segment, stays) for segment, stays in segments if stays.any() and not stays.all()]
    if mixed:
        with SegmentWriter(mixed[0][0].place.parent, mixed[0][0].kind) as writer:
            for segment, stays in mixed:
                segment.copy_to(writer, stays)
            if writer.rows_done:
                writer.finish()
        remove(segment.place for segment, _ in mixed)


def _places(path: str | os.PathLike[str] | None, tmp_name: str) -> Iterator[Path]:
    """The folders of all stores, and of what is none."""
    folders = places_for(given_path(path or ".").absolute() / tmp_name)
    for folder in folders if path is not None else folders[1:]:
        check_private(folder)
        yield from sorted(place for place in folder.glob("*") if place.is_dir())


def _segments(place: Path) -> list[Segment]:
    about = read_about(place)
    if about is None:
        return []
    kind = Kind(place.name, about["width"], about["dtype"])
    segments = [Segment(segment, kind) for segment in segments_in(place)]
    for segment in segments:
        with suppress(OSError):  # half removed
            segment.refresh()
    return segments
