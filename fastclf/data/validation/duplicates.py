"""Rows with the same bytes: where they are, and which of them to keep."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset
from fastclf.data.validation.verified import AT_ONCE, VerifiedImages

Place = tuple[str, int]
"""A set, by its name, and a row of it."""
Sets = Mapping[str, Dataset]
"""'train', 'valid' and, when it is there, 'test', in this order."""


def same_bytes(sets: Sets) -> list[list[Place]]:
    """Find the rows that have the same bytes as another: lists of two and more, in the order of the sets.

    Only images of one size in bytes are read, and those whose digest is known are not.
    """
    rows = {where: ds.bad.good_rows() for where, ds in sets.items()}
    sizes = np.concatenate([_sizes(sets[where], these) for where, these in rows.items()])
    _, number, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero((counts[number] > 1) & (sizes >= 0))
    places = _Places(rows)
    digests, found = np.zeros(len(candidates), "V32"), np.zeros(len(candidates), bool)
    read = {where: VerifiedImages(ds.source, 1) for where, ds in sets.items()}
    for start in range(0, len(candidates), AT_ONCE):
        part = [places.at(place) for place in candidates[start : start + AT_ONCE].tolist()]
        for where, images in read.items():
            images.look_up([row for own, row in part if own == where])
        for i, (where, row) in enumerate(part, start):
            with suppress(OSError):  # the scan has named it
                digests[i], found[i] = read[where].digest(row), True
    for images in read.values():
        images.cache.save()
    return [[places.at(place) for place in group] for group in _equal(digests[found], candidates[found])]


class _Places:
    """Numbers rows of several sets one after another."""

    def __init__(self, rows: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self._names, self._rows = [*rows], np.concatenate([*rows.values()])
        self._ends = np.cumsum([len(these) for these in rows.values()])

    def at(self, number: int) -> Place:
        return self._names[int(np.searchsorted(self._ends, number, side="right"))], int(self._rows[number])


def _sizes(ds: Dataset, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many bytes images have, -1 where that cannot be found out."""
    sizes = np.full(len(rows), -1, np.int64)
    for i, row in enumerate(rows.tolist()):
        with suppress(OSError):  # the scan has named it
            sizes[i] = ds.source.stat(row).size
    return sizes


def _equal(digests: npt.NDArray[np.void], places: npt.NDArray[np.int64]) -> list[list[int]]:
    """Group the places of equal digests, where there are several; groups and places ascend."""
    _, number, counts = np.unique(digests, return_inverse=True, return_counts=True)
    repeated = counts[number] > 1
    order = np.argsort(number[repeated], kind="stable")
    number, places = number[repeated][order], places[repeated][order]
    groups = np.split(places, np.flatnonzero(np.diff(number)) + 1) if len(places) else []
    return sorted(group.tolist() for group in groups)


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
