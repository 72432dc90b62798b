"""The training, validation and test set, put together from folders, names, the rows of a table, or arrays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset
from fastclf.data.image_transforms import Transforms
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.folders import FolderRules, labelled_by_folder
from fastclf.data.sources.labels import Labels, check_trained
from fastclf.data.sources.layout import SetFolders
from fastclf.data.sources.listing import Found, find_files, images_in, nothing_in
from fastclf.data.sources.name_labels import asked, labelled_by_name
from fastclf.data.sources.row_labels import LabelledRows, LabelRules, labels_of
from fastclf.data.sources.source import Source
from fastclf.data.sources.split import (
    check_val_idxs,
    get_group_idxs,
    numbered,
    stratified_idxs,
    tag_groups,
    warn_single,
)
from fastclf.data.sources.tables.reading import LabelTable
from fastclf.data.sources.tables.resolve import labelled_by_table
from fastclf.data.sources.tables.rules import TableRules
from fastclf.errors import LabelError
from fastclf.interop import is_missing
from fastclf.report import log, remedy

Tfms: TypeAlias = tuple[Transforms, Transforms]
ValIdxs: TypeAlias = Sequence[int] | npt.NDArray[np.int64] | None
Sets: TypeAlias = tuple[Dataset, Dataset, Dataset | None]
Groups: TypeAlias = Sequence[Hashable] | None
GroupFunc: TypeAlias = Callable[[str], Hashable] | None


def check_tfms(tfms: Tfms | None) -> Tfms:
    """Return tfms; raise ValueError unless it is a pair of transforms of one size."""
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
            "sample at random. Pass tfms=tfms_from_model(arch, sz) as it is."
        )
    return tfms


@dataclass(frozen=True)
class HoldOut:
    """How validation rows are chosen from labelled ones.

    Attributes:
        val_pct: share of the rows.
        seed: of the choice.
    """

    val_pct: float
    seed: int

    def rows(self, labels: Labels, groups: Groups) -> npt.NDArray[np.int64]:
        """Choose rows of every class, or whole groups where there are groups."""
        if groups is None:
            return self._stratified(labels)
        y = labels.y.tolist() if labels.kind == "one" else None
        return get_group_idxs(groups, y, self.val_pct, self.seed % (1 << 32))

    def _stratified(self, labels: Labels) -> npt.NDArray[np.int64]:
        """Choose rows of every class, of every combination of labels, or of all rows where these are numbers."""
        if labels.is_reg:
            return stratified_idxs([()] * len(labels), self.val_pct, self.seed)
        if labels.is_multi:
            tags = [tuple(labels.classes[i] for i in np.flatnonzero(row)) for row in labels.y]
            return stratified_idxs(tag_groups(tags), self.val_pct, self.seed)
        warn_single([labels.classes[i] for i in labels.y])
        return stratified_idxs(labels.y.tolist(), self.val_pct, self.seed)


def from_folders(
    path: Path,
    tfms: Tfms,
    folders: SetFolders,
    hold_out: HoldOut,
    groups: GroupFunc,
    rules: FolderRules,
    *,
    test_with_labels: bool,
) -> Sets:
    """See `ImageClassifierData.from_paths`."""
    found = _found_in(path, folders, folders.train, rules)
    names, labels, ignored = labelled_by_folder(found, rules=rules)
    test = None
    if folders.test is not None:
        test_files = _found_in(path, folders, folders.test, rules)
        if test_with_labels:
            test = _of_files(path, tfms[1], *labelled_by_folder(test_files, labels.classes, rules))
        else:
            test = _unlabelled(test_files, labels, tfms)
            _say_labels_of(test_files, labels.classes)
    elif test_with_labels:
        raise FileNotFoundError(f"test_with_labels=True needs a folder {path / 'test'}/<class>/... (test_name=).")
    if folders.valid is not None:
        val_files = _found_in(path, folders, folders.valid, rules)
        if not val_files.images:
            raise FileNotFoundError(
                f"{nothing_in(val_files)} Without that folder, a part of train is held out instead."
            )
        val = _of_files(path, tfms[1], *labelled_by_folder(val_files, labels.classes, rules))
        trn = _of_files(path, tfms[0], names, labels, ignored)
        return *_with_groups(
            trn, _groups_of(found, names, groups), val, _groups_of(val_files, val.fnames, groups)
        ), test
    of_names = _groups_of(found, names, groups)
    val_idxs = hold_out.rows(labels, of_names)
    whole = path if folders.train == "." else folders.train
    log(f"no folder valid: {len(val_idxs)} of {len(names)} images of {whole} are for validation")
    return *_split(path, tfms, names, labels, of_names, val_idxs, ignored), test


def from_names(
    path: Path,
    tfms: Tfms,
    label_func: Callable[[str], str | None],
    folder: str,
    val_idxs: ValIdxs,
    hold_out: HoldOut,
    groups: GroupFunc,
    test_name: str | None,
    *,
    test_with_labels: bool,
    allow_outside: bool,
) -> Sets:
    """See `ImageClassifierData.from_name_func`."""
    found = _found(path, folder, test_name, allow_outside)
    names, labels, ignored = labelled_by_name(found, label_func)
    of_names = _groups_of(found, names, groups)
    val_idxs = hold_out.rows(labels, of_names) if val_idxs is None else check_val_idxs(val_idxs, len(names))
    trn, val = _split(path, tfms, names, labels, of_names, val_idxs, ignored)
    check_trained(trn.labels, val.labels, folder)
    if test_name is None:
        if test_with_labels:
            raise ValueError("test_with_labels=True needs the folder of test images: pass test_name=.")
        return trn, val, None
    test_files = find_files(path, test_name, allow_outside=allow_outside)
    if test_with_labels:
        return trn, val, _of_files(path, tfms[1], *labelled_by_name(test_files, label_func, labels.classes))
    return trn, val, _unlabelled(test_files, labels, tfms)


def from_tables(
    path: Path,
    tfms: Tfms,
    tables: dict[str, LabelTable],
    folder: str,
    rules: TableRules,
    val_idxs: ValIdxs,
    hold_out: HoldOut,
    test_name: str | None,
    *,
    allow_outside: bool,
) -> Sets:
    """See `ImageClassifierData.from_csv`."""
    found = _found(path, folder, test_name, allow_outside)
    name = next(iter(tables.values())).name
    rows = labelled_by_table(tables, found, rules, val_idxs)
    if rows.test_labels is not None and test_name is not None:
        raise ValueError(
            f"{rules.call}: the table has rows for test, and test_name={test_name!r} too. Pass one of them."
        )
    held_out = rows.val_idxs
    if held_out is None:
        held_out = hold_out.rows(rows.labels, rows.groups)
        others = remedy("val_idxs= or split_col=", "--split-col")
        log(f"{name}: {len(held_out)} of {len(rows.names)} images are for validation; {others} names others")
    trn, val = _split(path, tfms, rows.names, rows.labels, rows.groups, held_out, rows.ignored)
    check_trained(trn.labels, val.labels, name)
    if rows.test_labels is not None:
        return trn, val, _of_files(path, tfms[1], rows.test_names, rows.test_labels, {})
    if test_name is None:
        return trn, val, None
    return trn, val, _unlabelled(find_files(path, test_name, allow_outside=allow_outside), rows.labels, tfms)


def from_sources(tfms: Tfms | None, sources: Sequence[Source], labels: Sequence[Labels], groups: Groups) -> Sets:
    """Pair the training, validation and, when it is there, test images or rows with their labels.

    Args:
        tfms: of images; None for rows.
        sources: two or three.
        labels: as many.
        groups: of the training rows.

    Raises:
        ValueError: groups are not one for each training row.
    """
    if groups is not None and len(groups) != len(labels[0]):
        raise ValueError(f"groups must have one entry per training row, {len(labels[0]):,}, got {len(groups):,}")
    trn, val, *test = (
        Dataset(source, y, None if tfms is None else tfms[0 if i == 0 else 1])
        for i, (source, y) in enumerate(zip(sources, labels, strict=True))
    )
    return replace(trn, groups=_numbers(groups)), val, test[0] if test else None


def from_rows(
    tfms: Tfms, rows: Mapping[str, LabelledRows], rules: LabelRules, val_idxs: ValIdxs, hold_out: HoldOut
) -> Sets:
    """See `ImageClassifierData.from_shards`; without 'valid', rows of 'train' are held out."""
    if val_idxs is not None and "valid" in rows:
        raise ValueError(f"{rules.call}: val_idxs choose validation rows, and there are some already. Leave them out.")
    labels = labels_of(rows, rules)
    made = {
        part: Dataset(one.source, labels[part], tfms[0 if part == "train" else 1], ignored=one.ignored)
        for part, one in rows.items()
    }
    trn, test = made["train"], made.get("test")
    if "valid" in made:
        return *_with_groups(trn, rows["train"].groups, made["valid"], rows["valid"].groups), test
    chosen = val_idxs is not None or rows["train"].groups is not None
    if val_idxs is None:
        val_idxs = hold_out.rows(trn.labels, rows["train"].groups)
        log(f"{rules.call}: {len(val_idxs)} of {len(trn)} images are for validation (val_pct=)")
    val_idxs = np.sort(check_val_idxs(val_idxs, len(trn)))
    whole = replace(trn, groups=_numbers(rows["train"].groups))
    others, held_out = whole.take(np.setdiff1d(np.arange(len(trn)), val_idxs)), whole.take(val_idxs)
    if chosen and not rules.allow_empty:
        check_trained(others.labels, held_out.labels, rules.call)
    return others, replace(held_out, tfms=tfms[1], ignored={}), test


def _found_in(path: Path, folders: SetFolders, folder: str, rules: FolderRules) -> Found:
    """The files of one set; a set's folder may lie in another's, whose files do not belong to it."""
    return find_files(path, folder, exclude=folders.all_names, allow_outside=rules.allow_outside)


def _found(path: Path, folder: str, test_name: str | None, allow_outside: bool) -> Found:
    """The files that are not for test."""
    return find_files(path, folder, exclude=[] if test_name is None else [test_name], allow_outside=allow_outside)


def _say_labels_of(found: Found, classes: Sequence[str]) -> None:
    if set(found.classes) & set(classes):
        measures = remedy("test_with_labels=True", "fastclf eval RUN DATA/test")
        log(f"{found.folder} has folders of the classes, which are not used: {measures} measures on them")


def _of_files(path: Path, tfms: Transforms, names: Sequence[str], labels: Labels, ignored: dict[str, int]) -> Dataset:
    return Dataset(FileSource(path, names), labels, tfms, ignored=ignored)


def _split(
    path: Path,
    tfms: Tfms,
    names: Sequence[str],
    labels: Labels,
    groups: Groups,
    val_idxs: npt.NDArray[np.int64],
    ignored: dict[str, int],
) -> tuple[Dataset, Dataset]:
    trn_idxs, val_idxs = np.setdiff1d(np.arange(len(names)), val_idxs), np.sort(val_idxs)
    trn = _of_files(path, tfms[0], [names[i] for i in trn_idxs], labels.take(trn_idxs), ignored)
    val = _of_files(path, tfms[1], [names[i] for i in val_idxs], labels.take(val_idxs), {})
    if groups is None:
        return trn, val
    numbers = numbered(groups)
    return replace(trn, groups=numbers[trn_idxs]), replace(val, groups=numbers[val_idxs])


def _numbers(groups: Groups) -> npt.NDArray[np.int64] | None:
    return None if groups is None else numbered(groups)


def _groups_of(found: Found, names: Sequence[str], groups: GroupFunc) -> Groups:
    """Return the group of each name, relative to the folder of the images, as the user's function says."""
    return None if groups is None else _asked_groups([found.inner(name) for name in names], groups)


def with_groups(rows: Mapping[str, LabelledRows], groups: Callable[[str], Hashable]) -> dict[str, LabelledRows]:
    """Return rows with the group of each, as the user's function says of the names of training and validation."""
    return {
        part: one if part == "test" else replace(one, groups=_asked_groups(one.source.names, groups))
        for part, one in rows.items()
    }


def _asked_groups(names: Sequence[str], groups: Callable[[str], Hashable]) -> list[Hashable]:
    """Return the group of each name, as the user's function says.

    Raises:
        LabelError: it fails, or gives none; names the name.
    """
    given = [asked(groups, "groups", name) for name in names]
    for name, group in zip(names, given, strict=True):
        if is_missing(group):
            raise LabelError(f"groups gives {group!r} for {name!r}. Return a group of its own, such as the name.")
    return given


def _with_groups(trn: Dataset, trn_groups: Groups, val: Dataset, val_groups: Groups) -> tuple[Dataset, Dataset]:
    """Return the sets with the numbers of their groups: a group that is in both has one number."""
    if trn_groups is None:
        return trn, val
    both = numbered([*trn_groups, *(val_groups or ())])
    return replace(trn, groups=both[: len(trn)]), replace(val, groups=both[len(trn) :] if val_groups else None)


def _unlabelled(found: Found, labels: Labels, tfms: Tfms) -> Dataset:
    """The images of a test folder, with zeros for labels."""
    names = images_in(found)
    ignored = found.ignored | {"other files": len(found.others)}
    return _of_files(found.path, tfms[1], names, labels.zeros(len(names)), ignored)
