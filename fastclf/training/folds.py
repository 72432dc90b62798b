"""Folds of the rows of a data set: each is held out once from heads that train on the others."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastclf.argument_checks import check_count
from fastclf.data.sources.labels import Labels
from fastclf.data.sources.names import some
from fastclf.data.sources.split import numbered, tag_groups
from fastclf.philox import checked_seed
from fastclf.report import warn
from fastclf.training.inputs import refuse_numbers
from fastclf.training.loop import derived_seed

Groups: TypeAlias = Sequence[Hashable] | NDArray[np.int64] | None

_FOLDS, _FOLDS_OF_MANY = 5, 3
_MANY = 8192  # rows from which on chance has little part in a figure: fewer folds tell as much


def usual_folds(n: int) -> int:
    """Return how many folds suit ``n`` rows: 5, or 3 of more than 8,192."""
    return _FOLDS if n <= _MANY else _FOLDS_OF_MANY


def make_folds(labels: Labels, k: int, *, groups: Groups = None, stratify: bool = True, seed: int) -> NDArray[np.int64]:
    """Deal the rows out into folds of about one size, with scikit-learn.

    Args:
        labels: of the rows. Where a row may have several, its combination of labels counts as its class, or its rarest
            label where that combination is rare, see `tag_groups`.
        k: number of folds; at most as many as the most frequent class has rows are made, where they are stratified.
        groups: one entry per row; a group is never divided between folds, of which few groups may fill fewer than k.
        stratify: whether each fold gets its share of each class.
        seed: of the shuffle, 0 <= seed < 2**64.

    Returns:
        The fold of each row, ``[N] int64`` in ``0..k-1``.

    Raises:
        ValueError: the labels are numbers to be predicted; there are fewer rows or groups than folds; no class has two
            rows; the groups are not one per row.
    """
    refuse_numbers("folds", labels)
    check_count("folds", "k", k, least=2)
    checked_seed("folds", seed)
    n = len(labels)
    if groups is not None and len(groups) != n:
        raise ValueError(f"groups must have one entry per row, {n:,}, got {len(groups):,}")
    strata = _strata(labels) if stratify else np.zeros(n, np.int64)
    largest = int(np.bincount(strata).max())
    if largest < 2:
        raise ValueError("no class has two training rows, so that none can be held out. Add images.")
    units = n if groups is None else len(set(groups))
    if k > units:
        what = "rows" if groups is None else "groups"
        raise ValueError(f"k must be at most the number of {what}, {units:,}, got {k}")
    if k > largest:
        warn(f"k={k} folds are more than the {largest:,} rows of the most frequent class: {largest} are made.")
        k = largest
    folds = _dealt(k, strata, groups, derived_seed(seed, "folds") % 2**32)
    _warn_unlearnt(labels, folds)
    return folds


def most_folds(labels: Labels, groups: NDArray[np.int64] | None) -> int:
    """Return the most stratified folds that `make_folds` makes of the rows."""
    most = int(np.bincount(_strata(labels)).max(initial=0))
    return most if groups is None else min(most, len(np.unique(groups)))


def _dealt(k: int, strata: NDArray[np.int64], groups: Groups, seed: int) -> NDArray[np.int64]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    dealer = (StratifiedKFold if groups is None else StratifiedGroupKFold)(k, shuffle=True, random_state=seed)
    folds = np.empty(len(strata), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a class has fewer rows than there are folds
        for fold, (_, rows) in enumerate(dealer.split(strata, strata, None if groups is None else numbered(groups))):
            folds[rows] = fold
    # The dealer rarely leaves a fold without groups.
    return np.unique(folds, return_inverse=True)[1].astype(np.int64)


def _strata(labels: Labels) -> NDArray[np.int64]:
    if not labels.is_multi:
        return np.asarray(labels.y, np.int64)
    names = np.array(labels.classes)
    return numbered(tag_groups([tuple(names[row > 0].tolist()) for row in labels.y]))


def _warn_unlearnt(labels: Labels, folds: NDArray[np.int64]) -> None:
    """Warn of classes that the head of some fold never sees."""
    has = labels.y > 0 if labels.is_multi else labels.y[:, None] == np.arange(labels.c)
    in_folds = sum((has[folds == fold].any(0).astype(int) for fold in np.unique(folds)), np.zeros(labels.c, int))
    alone = [name for name, n in zip(labels.classes, in_folds, strict=True) if n == 1]
    if alone:
        classes = "class" if len(alone) == 1 else "classes"
        warn(
            f"all rows of the {classes} {some(alone)} are in one fold, and the head that predicts them "
            "never sees one. Add images of them."
        )
