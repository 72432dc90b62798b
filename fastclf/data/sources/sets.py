"""The training, validation and test set, put together from folders, from the rows of a table, or from arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset, Labels
from fastclf.data.sources.folders import FolderRules, labelled_by_folder
from fastclf.data.sources.layout import SetFolders
from fastclf.data.sources.listing import Found, find_files, pictures_in
from fastclf.data.sources.split import get_group_idxs, stratified_idxs, warn_single
from fastclf.data.transforms.spec import Transforms
from fastclf.report import log

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
    if tfms[1].train:
        raise ValueError(
            "ImageClassifierData: tfms must be (training, validation), got those for training as the second, which "
            "draw at random. Pass tfms=tfms_from_model(arch, sz) as it is."
        )
    return tfms


@dataclass(frozen=True)
class HoldOut:
    """How the validation set is drawn from labelled rows.

    Attributes:
        val_pct: share of the rows.
        seed: of the draw.
        groups: of a file name, relative to the folder of the images: what must not be divided between the sets.
    """

    val_pct: float
    seed: int
    groups: Callable[[str], Hashable] | None = None

    def rows(self, found: Found, names: Sequence[str], labels: Labels) -> npt.NDArray[np.int64]:
        """Draws rows of every class, and whole groups where there are groups."""
        if self.groups is not None:
            groups = [self.groups(found.inner(name)) for name in names]
            return get_group_idxs(groups, labels.y.tolist(), self.val_pct, self.seed % (1 << 32))
        warn_single([labels.classes[i] for i in labels.y])
        return stratified_idxs(labels.y.tolist(), self.val_pct, self.seed)


def from_folders(
    path: Path, tfms: Tfms, folders: SetFolders, hold_out: HoldOut, rules: FolderRules, *, test_with_labels: bool
) -> Sets:
    """See `ImageClassifierData.from_paths`."""
    found = _found_in(path, folders, folders.train, rules)
    names, labels, ignored = labelled_by_folder(found, rules=rules)
    test = None
    if folders.test is not None:
        test_files = _found_in(path, folders, folders.test, rules)
        if test_with_labels:
            test = labelled_set(path, tfms, *labelled_by_folder(test_files, labels.classes, rules))
        else:
            test = _test_set(test_files, labels, tfms)
            _say_labels_of(test_files, labels.classes)
    elif test_with_labels:
        raise FileNotFoundError(f"test_with_labels=True needs a folder {path / 'test'}/<class>/... (test_name=).")
    if folders.valid is not None:
        if hold_out.groups is not None:
            raise ValueError(f"groups: {path / folders.valid} is the validation set already. Leave groups out.")
        trn = Dataset(path, labels, names, tfms=tfms[0], ignored=ignored)
        val_files = _found_in(path, folders, folders.valid, rules)
        return trn, labelled_set(path, tfms, *labelled_by_folder(val_files, labels.classes, rules)), test
    val_idxs = hold_out.rows(found, names, labels)
    log(f"no folder valid: {len(val_idxs)} of {len(names)} pictures of {folders.train} are for validation")
    return *_split(path, names, labels, val_idxs, tfms, ignored), test


def _found_in(path: Path, folders: SetFolders, folder: str, rules: FolderRules) -> Found:
    """The files of one set; a set's folder may lie in another's, whose files do not belong to it."""
    return find_files(path, folder, exclude=folders.all_names, allow_outside=rules.allow_outside)


def labelled_set(path: Path, tfms: Tfms, names: Sequence[str], labels: Labels, ignored: dict[str, int]) -> Dataset:
    """A validation or test set of files that have their labels."""
    return Dataset(path, labels, names, tfms=tfms[1], ignored=ignored)


def _say_labels_of(found: Found, classes: Sequence[str]) -> None:
    if set(found.classes) & set(classes):
        log(f"{found.folder} has folders of the classes, which are not used: test_with_labels=True measures on them")


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
    if test_name is None:
        return trn, val, None
    return trn, val, _test_set(find_files(path, test_name, allow_outside=allow_outside), labels, tfms)


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


def _test_set(found: Found, labels: Labels, tfms: Tfms) -> Dataset:
    names = pictures_in(found)
    ignored = found.ignored | {"other files": len(found.others)}
    return Dataset(found.path, labels.zeros(len(names)), names, tfms=tfms[1], ignored=ignored)
