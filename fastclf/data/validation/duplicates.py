"""Rows with the same bytes: where they are, and which of them to keep."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset

Place = tuple[str, int]
"""A set, by its name, and a row of it."""
Sets = Mapping[str, Dataset]
"""'train', 'valid' and, when it is there, 'test', in this order."""


def same_bytes(sets: Sets) -> list[list[Place]]:
    """Find the rows that have the same bytes as another: lists of two and more, in the order of the sets."""
    members: dict[bytes, list[Place]] = defaultdict(list)
    for where, row, digest in _digests(sets):
        members[digest].append((where, row))
    return [group for group in members.values() if len(group) > 1]


def contradicts(sets: Sets, one: Place, other: Place) -> bool:
    """Return whether both rows have labels, and different ones."""
    labels = [sets[where].labels for where, _ in (one, other)]
    return all(label.known for label in labels) and not np.array_equal(labels[0].y[one[1]], labels[1].y[other[1]])


def to_drop(sets: Sets) -> dict[str, npt.NDArray[np.int64]]:
    """Choose the rows of train and valid that repeat others.

    The last set that has an image keeps it, once: train gives way to valid, and both to test, whose rows all stay.
    Where labels differ, train and valid lose the image: nobody knows which label is right.

    Returns:
        Rows by set, ascending, `int64`.
    """
    dropped: dict[str, list[int]] = {"train": [], "valid": []}
    for group in same_bytes(sets):
        kept = next(place for place in group if place[0] == group[-1][0])
        labelled = [place for place in group if sets[place[0]].labels.known]
        unclear = any(contradicts(sets, labelled[0], place) for place in labelled)
        for where, row in group:
            if where != "test" and (unclear or (where, row) != kept):
                dropped[where].append(row)
    return {where: np.array(sorted(rows), np.int64) for where, rows in dropped.items()}


def _digests(sets: Sets) -> Iterator[tuple[str, int, bytes]]:
    """Yield set, row and SHA-256 of what may be there twice: of all images of one size in bytes."""
    sizes: dict[int, list[Place]] = defaultdict(list)
    for where, ds in sets.items():
        for row in ds.bad.good_rows().tolist():
            with suppress(OSError):  # the scan has named it
                sizes[ds.source.stat(row).size].append((where, row))
    for same in sizes.values():
        for where, row in same if len(same) > 1 else ():
            with suppress(OSError):
                yield where, row, hashlib.sha256(sets[where].source.read(row)).digest()
