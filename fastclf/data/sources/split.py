"""Which rows are for validation."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.argument_checks import check_count
from fastclf.interop import is_missing
from fastclf.philox import STREAM_SPLIT, permutation
from fastclf.report import counted, remedy, warn

_LAST_SEED = (1 << 32) - 1
_FEW = 3  # rows: a combination of labels with fewer joins the others of its rarest label


def get_cv_idxs(n: int, cv_idx: int = 0, val_pct: float = 0.2, seed: int = 42) -> npt.NDArray[np.int64]:
    """Choose the indices of one validation fold.

    Args:
        n: number of rows.
        cv_idx: which fold.
        val_pct: size of a fold, as a share of n.
        seed: of numpy's legacy generator, 0 <= seed < 2**32. The global generator is not touched.

    Returns:
        `[int(n * val_pct)] int64`, without repetition; folds with different `cv_idx` do not overlap.

    Raises:
        ValueError: the fold would be empty or does not exist.
    """
    n = check_count("get_cv_idxs", "n", n, 0)
    seed = check_count("get_cv_idxs", "seed", seed, 0, _LAST_SEED)
    k = int(n * val_pct)
    if not 0 < val_pct < 1 or k < 1:
        raise ValueError(
            f"get_cv_idxs: val_pct must give between 1 and {n - 1} of n = {n} rows, got {val_pct!r}. Pass e.g. 0.2."
        )
    if not 0 <= cv_idx < n // k:
        raise ValueError(f"get_cv_idxs: cv_idx must be from 0 to {n // k - 1} (n = {n}, {k} a fold), got {cv_idx!r}.")
    return np.random.RandomState(seed).permutation(n)[cv_idx * k : (cv_idx + 1) * k].astype(np.int64)


def stratified_idxs(groups: Sequence[Hashable], val_pct: float, seed: int) -> npt.NDArray[np.int64]:
    """Choose validation rows such that every group gives its share, and keeps at least one row for training.

    The rows are laid out group by group, at random within a group and without each group's first row; every so many-th
    of them is taken.

    Args:
        groups: one entry per row, e.g. its class.
        val_pct: share of the rows.
        seed: 0 <= seed < 2**64.

    Returns:
        Indices, ascending, `int64`.

    Raises:
        ValueError: val_pct is not in 0..1, or leaves no row for validation.
    """
    if not 0 < val_pct < 1:
        raise ValueError(f"stratified_idxs: val_pct must be between 0 and 1, got {val_pct!r}. Pass e.g. 0.2.")
    members: dict[Hashable, list[int]] = {}
    for row in permutation(seed, 0, len(groups), STREAM_SPLIT).tolist():
        members.setdefault(groups[row], []).append(row)
    free = [row for group in sorted(members, key=repr) for row in members[group][1:]]
    k = min(round(len(groups) * val_pct), len(free))
    if k < 1:
        raise ValueError(
            f"stratified_idxs: val_pct={val_pct} must leave a row for validation, got "
            f"{counted(len(groups), 'row')} in {counted(len(members), 'group')}. "
            + remedy("Name the validation rows yourself, or add rows.", "Add images, or put some into a folder valid.")
        )
    return np.sort(np.array(free, np.int64)[np.floor((np.arange(k) + 0.5) * len(free) / k).astype(np.int64)])


def get_group_idxs(
    groups: Sequence[Hashable], y: Sequence[Hashable] | None = None, val_pct: float = 0.2, seed: int = 42
) -> npt.NDArray[np.int64]:
    """Choose validation rows such that no group is divided: for images of one person, scene, film or place.

    The groups are dealt out in about 1 / val_pct parts of like classes (scikit-learn's `StratifiedGroupKFold`); of the
    parts that leave every class a training row, the one nearest in size to val_pct is taken.

    Args:
        groups: one entry per row.
        y: the class of every row; None where there is no class.
        val_pct: share of the rows, above 0 and at most .5.
        seed: of numpy's legacy generator, 0 <= seed < 2**32. The global generator is not touched.

    Returns:
        Indices, ascending, `int64`; `val_idxs=` takes them.

    Raises:
        ValueError: val_pct or a length does not fit, or every part would take all training rows of a class.
    """
    if not 0 < val_pct <= 0.5:
        raise ValueError(f"get_group_idxs: val_pct must be above 0 and at most .5, got {val_pct!r}. Pass e.g. 0.2.")
    seed = check_count("get_group_idxs", "seed", seed, 0, _LAST_SEED)
    if y is not None and len(y) != len(groups):
        raise ValueError(f"get_group_idxs: groups and y must be of one length, got {len(groups)} and {len(y)}.")
    from sklearn.model_selection import StratifiedGroupKFold

    group_numbers = numbered(groups)
    labels = np.zeros(len(groups), np.int64) if y is None else numbered(y, "y")
    n_groups = int(group_numbers.max(initial=-1)) + 1
    n_parts = min(round(1 / val_pct), n_groups, int(np.bincount(labels).max(initial=0)))
    parts: list[npt.NDArray[np.int64]] = []
    if n_parts > 1:
        dealer = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a class has fewer rows than there are parts
            parts = [
                part for trn, part in dealer.split(labels, labels, group_numbers) if _all_in(labels, trn) and len(part)
            ]
    if not parts:
        raise ValueError(
            f"get_group_idxs: no split of {counted(n_groups, 'group')} leaves every class a training row: all rows "
            "of a class are in one group, or in few. Add images, or name the validation rows yourself (val_idxs=)."
        )
    return np.sort(min(parts, key=lambda part: abs(len(part) - val_pct * len(labels)))).astype(np.int64)


def numbered(values: Any, argument: str = "groups") -> npt.NDArray[np.int64]:
    """Number different values, of a sequence, an array or a tensor, in the order of their first row: `[N] int64`.

    Raises:
        ValueError: one is missing; names the row.
    """
    values = values.tolist() if hasattr(values, "tolist") else values  # elements of a tensor are never equal as keys
    missing = next((row for row, value in enumerate(values) if is_missing(value)), None)
    if missing is not None:
        raise ValueError(
            f"{argument} must have an entry for every row, got {values[missing]!r} in row {missing}. "
            "Give rows that belong to no others an entry of their own."
        )
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], np.int64)


def _all_in(labels: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> bool:
    return len(np.unique(labels[rows])) == int(labels.max(initial=-1)) + 1


def tag_groups(rows: Sequence[tuple[str, ...]]) -> list[Hashable]:
    """Group rows of several labels for `stratified_idxs`: by their combination, or a rare one by its rarest label.

    Where labels are many, most combinations occur in a row or two; by themselves none of these would ever be validated.

    Args:
        rows: the labels of each row.

    Returns:
        A group for each row such that every label keeps a row for training.
    """
    combinations = Counter(rows)
    counts = Counter(tag for tags in rows for tag in tags)
    kept = {tag for tags, n in combinations.items() if n >= _FEW for tag in tags}
    groups: list[Hashable] = []
    for row, tags in enumerate(rows):
        if combinations[tags] >= _FEW or not tags:
            groups.append(tags)
        elif kept.issuperset(tags):
            groups.append(min(tags, key=lambda tag: (counts[tag], tag)))
        else:  # the first row of a label, which stays in train as the only one of its group
            kept.update(tags)
            groups.append(row)
    return groups


def warn_single(names: Sequence[str]) -> None:
    """Warn of classes with a single row, which `stratified_idxs` leaves to training.

    Args:
        names: the class of every row.
    """
    single = sorted(name for name, count in Counter(names).items() if count == 1)
    if single:
        warn(
            f"{counted(len(single), 'class has', 'classes have')} a single row, which stays in train: "
            f"{', '.join(single[:5])}."
        )


def check_val_idxs(val_idxs: Sequence[int] | npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Check rows named for validation: whole numbers of 0..n-1, none twice, not none and not all.

    Raises:
        ValueError: they are not; names the first that is wrong.
    """
    idxs = np.asarray(val_idxs)
    if idxs.dtype == object and all(isinstance(row, int | np.integer) for row in idxs.ravel()):
        idxs = np.array(idxs.tolist())
    fix = "Pass np.flatnonzero(mask)." if idxs.dtype == bool else "Pass e.g. get_cv_idxs(n)."
    if idxs.ndim != 1 or len(idxs) == 0 or not np.issubdtype(idxs.dtype, np.integer):
        raise ValueError(
            f"val_idxs must be a list of row numbers, got shape {list(idxs.shape)} of {idxs.dtype}. {fix} "
            "Or None for a stratified split."
        )
    outside = idxs[(idxs < 0) | (idxs >= n)]
    if len(outside):
        raise ValueError(f"val_idxs must be from 0 to {n - 1} ({n} rows), got {outside[0]}. {fix}")
    values, counts = np.unique(idxs, return_counts=True)
    if counts.max() > 1:
        raise ValueError(f"val_idxs must not repeat a row, got {values[counts.argmax()]} twice. {fix}")
    if len(idxs) == n:
        raise ValueError(f"val_idxs must leave rows for training, got all {n}. {fix}")
    return idxs.astype(np.int64)
