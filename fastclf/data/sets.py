"""The training, validation and test set, put together from folders, from the rows of a table, or from arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.folders import labelled_by_folder, pictures_in
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
    path: Path, tfms: Tfms, trn_name: str, val_name: str, test_name: str | None, val_pct: float, seed: int
) -> Sets:
    """See `ImageClassifierData.from_paths`."""
    names, labels = labelled_by_folder(path, trn_name)
    test = None
    if test_name is not None and ((path / test_name).is_dir() or test_name != "test"):
        test = _test_set(path, test_name, labels, tfms)
    if (path / val_name).is_dir() or val_name != "valid":
        trn = Dataset(path, labels, names, tfms=tfms[0])
        names, labels = labelled_by_folder(path, val_name, labels.classes)
        return trn, Dataset(path, labels, names, tfms=tfms[1]), test
    warn_single([labels.classes[i] for i in labels.y])
    val_idxs = stratified_idxs(labels.y.tolist(), val_pct, seed)
    print(f"no folder {val_name}: {len(val_idxs)} of {len(names)} pictures of {trn_name} are for validation")
    return *_split(path, names, labels, val_idxs, tfms), test


def from_rows(
    path: Path,
    tfms: Tfms,
    names: Sequence[str],
    labels: Labels,
    val_idxs: npt.NDArray[np.int64],
    test_name: str | None,
) -> Sets:
    """Splits files that have their labels, and adds the test folder when it is named."""
    trn, val = _split(path, names, labels, val_idxs, tfms)
    return trn, val, None if test_name is None else _test_set(path, test_name, labels, tfms)


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
    path: Path, names: Sequence[str], labels: Labels, val_idxs: npt.NDArray[np.int64], tfms: Tfms
) -> tuple[Dataset, Dataset]:
    trn_idxs = np.setdiff1d(np.arange(len(names)), val_idxs)
    trn, val = (
        Dataset(path, labels.take(idxs), [names[i] for i in idxs], tfms=t)
        for idxs, t in zip((trn_idxs, np.sort(val_idxs)), tfms, strict=True)
    )
    return trn, val


def _test_set(path: Path, folder: str, labels: Labels, tfms: Tfms) -> Dataset:
    names = pictures_in(path, folder)
    return Dataset(path, labels.zeros(len(names)), names, tfms=tfms[1])
