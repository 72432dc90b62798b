"""Images of Hugging Face data sets: folders that `save_to_disk` has written, and `Dataset` objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.names import Names, some
from fastclf.data.sources.row_labels import LabelledRows, read_labels
from fastclf.data.sources.set_names import SETS, named_as
from fastclf.data.sources.source import Source, Version
from fastclf.data.sources.values import encoded, fingerprint
from fastclf.errors import DataError, LabelError
from fastclf.interop import needed
from fastclf.paths import given_path

_TIMES = 10**18  # nanoseconds: times that have passed, as nothing changes any more


class HfSource(Source):
    """Encoded images of a split, as they were written; `name` is the split, a colon, and the row.

    Rows are in mapped or immutable memory, so that a version is a hash of the bytes, computed once.
    """

    def __init__(self, root: Path, rows: Any, column: str, split: str) -> None:
        features = needed("datasets", "fastclf[hf]").Image(decode=False)
        self._rows = rows.with_format(None).select_columns([column]).cast_column(column, features)
        self._column = column
        self._index = np.arange(len(rows))
        self._versions = np.zeros((len(rows), 2), np.int64)  # size and hash; of size 0 until somebody asked
        super().__init__(root, Names(f"{split}:{row}" for row in range(len(rows))))

    def stat(self, row: int) -> Version:
        """See `Source.stat`."""
        if not self._versions[row].any():
            content = self.read(row)
            self._versions[row] = len(content), fingerprint(content)
        size, number = self._versions[row].tolist()
        return Version(size, 1 + number % _TIMES, 1, number)  # this time alone tells smaller copies apart

    def read(self, row: int) -> bytes:
        """See `Source.read`."""
        return encoded(self._rows[int(self._index[row])][self._column], self.root)

    def take(self, rows: npt.NDArray[np.int64]) -> HfSource:
        """See `Source.take`."""
        taken = super().take(rows)
        taken._index, taken._versions = self._index[rows], self._versions[rows]
        return taken


def splits_of(data: Any, val: str | None, test: str | None) -> tuple[Path | None, dict[str, tuple[str, Any]]]:
    """Return the folder of a data set, or None, and for 'train', 'valid' and 'test' the name of a split and its rows.

    Args:
        data: a folder, a ``Dataset`` or a ``DatasetDict``.
        val: the split for validation; by default one with a usual name, where there is one.
        test: the same for test.

    Raises:
        FileNotFoundError: there is no such folder.
        DataError: the folder is no data set.
        ValueError: there is no such split, or it would be two sets.
        TypeError: it is nothing of the three.
    """
    datasets = needed("datasets", "fastclf[hf]")
    folder = given_path(data).absolute() if isinstance(data, str | os.PathLike) else None
    if folder is not None:
        data = _loaded(datasets, folder)
    if isinstance(data, datasets.Dataset):
        if val is not None or test is not None:
            raise ValueError("from_hf: val and test name splits of a DatasetDict, got one Dataset. Leave them out.")
        return folder, {"train": ("train", data)}
    if not isinstance(data, Mapping) or not all(isinstance(one, datasets.Dataset) for one in data.values()):
        raise TypeError(
            "from_hf: dataset must be a folder that save_to_disk has written, a Dataset or a DatasetDict, got a "
            f"{type(data).__name__}. Of a stream, keep a part: Dataset.from_list(list(stream.take(n)))."
        )
    found: dict[str, tuple[str, Any]] = {}
    for part, given in zip(SETS, (None, val, test), strict=True):
        used = {name for name, _ in found.values()}
        taken = {*used, val, test} if used else used
        name = given or next((name for name in named_as(part, data) if name not in taken), None)
        if name is None:
            continue
        if name not in data:
            raise ValueError(f"from_hf: there is no split {name!r}, but {some([*data])}.")
        if name in used:
            raise ValueError(f"from_hf: val and test must be splits of their own, got {name!r} twice.")
        found[part] = name, data[name]
    if "train" not in found:
        raise ValueError(f"from_hf: there must be a split 'train', got {some([*data])}. Pass DatasetDict(train=...).")
    return folder, found


def _loaded(datasets: Any, folder: Path) -> Any:
    if not folder.is_dir():
        raise FileNotFoundError(f"from_hf: there is no folder {folder}. Check the path.")
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"from_hf: {folder} is no data set that save_to_disk has written. For parquet files use from_parquet; for "
            "class folders, from_paths."
        )
    return datasets.load_from_disk(str(folder))


def read_hf(
    root: Path, splits: dict[str, tuple[str, Any]], image_col: str, label_col: str, group_col: str | None = None
) -> dict[str, LabelledRows]:
    """Find the images and labels of splits.

    Args:
        root: paths are relative to it, and what scans find is kept by it.
        splits: see `splits_of`.
        image_col: the column of the images.
        label_col: that of the labels, which a test set may lack.
        group_col: that of groups of training and validation rows; None for none.

    Raises:
        DataError: a column cannot be used.
        LabelError: there is no column of labels, or a value in it is none.
    """
    rows = {part: _rows_of(root, *split, image_col, label_col, part == "test") for part, split in splits.items()}
    if group_col is not None:
        for part in rows.keys() - {"test"}:
            own = splits[part][1]
            if group_col not in own.features:
                raise DataError(f"from_hf: groups must be one of {some(own.column_names)}, got {group_col!r}.")
            rows[part] = replace(rows[part], groups=_column(own, group_col))
    return rows


def _column(rows: Any, name: str) -> Any:
    return list(rows.with_format(None).select_columns([name])[:][name])


def _rows_of(root: Path, split: str, rows: Any, image_col: str, label_col: str, is_test: bool) -> LabelledRows:
    datasets = needed("datasets", "fastclf[hf]")
    if image_col not in rows.features:
        raise DataError(f"from_hf: image_col must be one of {some(rows.column_names)}, got {image_col!r}.")
    kind = rows.features[image_col]
    if not isinstance(kind, datasets.Image) and getattr(kind, "dtype", "") not in ("string", "binary", "large_binary"):
        raise DataError(f"from_hf: column {image_col!r} must hold images, got {kind}. image_col= names another.")
    if not len(rows):
        raise DataError(f"from_hf: split {split!r} has no row.")
    source = HfSource(root, rows, image_col, split)
    if label_col not in rows.features:
        if is_test:
            return LabelledRows(source, [None] * len(rows))
        raise LabelError(f"from_hf: label_col must be one of {some(rows.column_names)}, got {label_col!r}.")
    label = rows.features[label_col]
    label = getattr(label, "feature", label)  # of a list
    names = label.names if isinstance(label, datasets.ClassLabel) else None
    return LabelledRows(source, read_labels(_column(rows, label_col), split, numbered=names is not None), {}, names)
