"""The training, validation and test set, put together from folders, from the rows of a table, or from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.folders import FolderRules, labelled_by_folder
from fastclf.data.listing import find_files, pictures_in
from fastclf.data.samples import Dataset, Labels
from fastclf.data.split import stratified_idxs, warn_single
from fastclf.data.transforms import Transforms

Tfms: TypeAlias = tuple[Transforms, Transforms]
Sets: TypeAlias = tuple[Dataset, Dataset, Dataset | None]


def check_tfms(tfms: Tfms | None) -> Tfms:
    """Returns tfms; raises ValueError unless it is a pair of transforms of one size."""
    if not isinstance(tfms, tuple) or len(tfms) != 2 or not all(isinstance(t, Transforms) for t in tfms):
        raise ValueError(
            f"ImageClassifierData: tfms must be the pair (training, validation) of transforms, got {tfms!r}. "
            "Pass tfms=tfms_from_model(arch, sz)."
        )
    if tfms[0].sz != tfms[1].sz:
        raise ValueError(f"ImageClassifierData: tfms must both have one size, got {tfms[0].sz} and {tfms[1].sz}.")
    return tfms


def from_folders(
    path: Path,
    tfms: Tfms,
    trn_name: str,
    val_name: str,
    test_name: str | None,
    val_pct: float,
    seed: int,
    rules: FolderRules,
) -> Sets:
    """See `ImageClassifierData.from_paths`."""
    trn_files = find_files(path, trn_name, allow_outside=rules.allow_outside)
    names, labels, ignored = labelled_by_folder(trn_files, rules=rules)
    test = None
    if test_name is not None and ((path / test_name).is_dir() or test_name != "test"):
        test = _test_set(path, test_name, labels, tfms, rules.allow_outside)
    if (path / val_name).is_dir() or val_name != "valid":
        trn = Dataset(path, labels, names, tfms=tfms[0], ignored=ignored)
        val_files = find_files(path, val_name, allow_outside=rules.allow_outside)
        names, labels, ignored = labelled_by_folder(val_files, labels.classes, rules)
        return trn, Dataset(path, labels, names, tfms=tfms[1], ignored=ignored), test
    warn_single([labels.classes[i] for i in labels.y])
    val_idxs = stratified_idxs(labels.y.tolist(), val_pct, seed)
    print(f"no folder {val_name}: {len(val_idxs)} of {len(names)} pictures of {trn_name} are for validation")
    return *_split(path, names, labels, val_idxs, tfms, ignored), test


def from_rows(
    path: Path,
    tfms: Tfms,
    names: Sequence[str],
    labels: Labels,
    val_idxs: npt.NDArray[np.int64],
    ignored: dict[str, int],
    test_name: str | None,
    allow_outside: bool,
) -> Sets:
    """Splits files that have their labels, and adds the test folder when it is named."""
    trn, val = _split(path, names, labels, val_idxs, tfms, ignored)
    return trn, val, None if test_name is None else _test_set(path, test_name, labels, tfms, allow_outside)


def from_checked_arrays(
    path: Path, tfms: Tfms | None, xs: Sequence[npt.NDArray[Any]], labels: Sequence[Labels]
) -> Sets:
    """Pairs the arrays of `arrays.check_sets` with their labels: pictures with transforms, rows without."""
    trn, val, *test = (
        Dataset(path, y, rows=x) if tfms is None else Dataset(path, y, images=x, tfms=tfms[0 if i == 0 else 1])
        for i, (x, y) in enumerate(zip(xs, labels, strict=True))
    )
    return trn, val, test[0] if test else None


def _split(
    path: Path,
    names: Sequence[str],
    labels: Labels,
    val_idxs: npt.NDArray[np.int64],
    tfms: Tfms,
    ignored: dict[str, int],
) -> tuple[Dataset, Dataset]:
    trn_idxs, val_idxs = np.setdiff1d(np.arange(len(names)), val_idxs), np.sort(val_idxs)
    trn = Dataset(path, labels.take(trn_idxs), [names[i] for i in trn_idxs], tfms=tfms[0], ignored=ignored)
    return trn, Dataset(path, labels.take(val_idxs), [names[i] for i in val_idxs], tfms=tfms[1])


def _test_set(path: Path, folder: str, labels: Labels, tfms: Tfms, allow_outside: bool) -> Dataset:
    found = find_files(path, folder, allow_outside=allow_outside)
    names = pictures_in(found)
    ignored = found.ignored | {"other files": len(found.others)}
    return Dataset(path, labels.zeros(len(names)), names, tfms=tfms[1], ignored=ignored)
