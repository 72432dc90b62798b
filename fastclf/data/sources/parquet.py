"""Images in parquet files: bytes, as Hugging Face writes them too, or the paths of files."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.files import FileSource
from fastclf.data.sources.names import Names, some
from fastclf.data.sources.row_labels import LabelledRows, Value, read_labels
from fastclf.data.sources.source import Source, Version
from fastclf.data.sources.tar_index import Stamp
from fastclf.data.sources.values import encoded, needed
from fastclf.errors import DataError, LabelError

_KEPT = 1 << 28  # bytes of row groups that are kept, unless one alone has more


class ParquetSource(Source):
    """Images in a column of parquet files; `name` is the file's, a colon, and the row in it.

    A row group is read whole: rows in their order, or those of a few groups, are read fast, and those of many groups at
    random as often as there are rows.
    """

    def __init__(self, root: Path, files: Sequence[Path], column: str) -> None:
        self._files, self._column = [*files], column
        self._stamps = [Stamp.of(file.stat()) for file in files]
        groups = [_groups(file) for file in files]
        self._firsts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in groups]
        counts = [int(first[-1]) for first in self._firsts]
        self._file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._row = np.concatenate([np.arange(n) for n in counts]) if counts else np.zeros(0, np.int64)
        shown = [file.relative_to(root).as_posix() for file in files]
        super().__init__(
            root, Names(f"{name}:{row}" for name, n in zip(shown, counts, strict=True) for row in range(n))
        )

    def stat(self, row: int) -> Version:
        """See `Source.stat`: an image is as old as its file; the size is the file's.

        Raises:
            OSError: the file is gone, or was changed: its rows may be others now.
        """
        k = int(self._file[row])
        status = os.stat(self._files[k])  # noqa: PTH116  # some times faster
        if (status.st_size, status.st_mtime_ns) != self._stamps[k][:2]:
            raise OSError(errno.ESTALE, "its file was changed; make the data anew")
        return Version(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def read(self, row: int) -> bytes:
        """See `Source.read`."""
        k, place = int(self._file[row]), int(self._row[row])
        group = int(np.searchsorted(self._firsts[k], place, side="right")) - 1
        values = _groups_read.get((str(self._files[k]), self._stamps[k], group, self._column))
        return encoded(values[place - int(self._firsts[k][group])].as_py(), self._files[k].parent)

    def take(self, rows: npt.NDArray[np.int64]) -> ParquetSource:
        """See `Source.take`."""
        taken = super().take(rows)
        taken._file, taken._row = self._file[rows], self._row[rows]
        return taken


def _groups(file: Path) -> list[int]:
    """Return how many rows each row group of a file has."""
    about = _opened(file).metadata
    return [about.row_group(i).num_rows for i in range(about.num_row_groups)]


def _opened(file: Path) -> Any:
    parquet, arrow = needed("pyarrow.parquet", "parquet"), needed("pyarrow", "parquet")
    try:
        return parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{file} is no parquet file, or is damaged: {error}. Fetch or write it anew.") from error


_Key = tuple[str, Stamp, int, str]


class _RowGroups:
    """The row groups that were read last, shared by all sources and threads of this process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[_Key, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> Any:
        """Return a column of a row group.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._read(key)
            self._kept.move_to_end(key)
            while len(self._kept) > 1 and sum(values.nbytes for values in self._kept.values()) > _KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _read(self, key: _Key) -> Any:
        path, _, group, column = key
        try:
            with _opened(Path(path)) as file:
                return file.read_row_group(group, columns=[column]).column(column)
        except (DataError, needed("pyarrow", "parquet").ArrowException) as error:
            raise OSError(errno.EIO, f"its row group is damaged: {error}") from error

    def forget(self) -> None:
        """Begin anew, in a forked process: another thread may have held the lock."""
        self.__init__()  # type: ignore[misc]


_groups_read = _RowGroups()
os.register_at_fork(after_in_child=_groups_read.forget)


def read_parquet(root: Path, files: dict[str, list[Path]], image_col: str, label_col: str) -> dict[str, LabelledRows]:
    """Find the images and labels of parquet files.

    Args:
        root: above all files.
        files: 'train' and, where there are some, 'valid' and 'test'.
        image_col: the column of the images.
        label_col: that of the labels, which a test set may lack.

    Raises:
        DataError: a file or a column cannot be used.
        LabelError: there is no column of labels, or a value in it is none.
    """
    return {part: _rows_of(root, those, image_col, label_col, part) for part, those in files.items()}


def _rows_of(root: Path, files: Sequence[Path], image_col: str, label_col: str, part: str) -> LabelledRows:
    values: list[Value] = []
    classes: list[str] | None = None
    paths: list[str] = []
    kinds = set()
    for k, file in enumerate(files):
        with _opened(file) as held:
            schema = held.schema_arrow
            kinds.add(_kind(schema, image_col, file))
            if kinds == {"path"}:
                cells = held.read(columns=[image_col]).column(image_col).to_pylist()
                paths += [_below(root, file, cell, row) for row, cell in enumerate(cells)]
            names = _class_names(schema, label_col)
            if k and names != classes:
                raise LabelError(f"from_parquet: {file} has other classes than {files[0]}. Load them one by one.")
            classes = names
            if label_col in schema.names:
                cells = held.read(columns=[label_col]).column(label_col).to_pylist()
                values += read_labels(cells, str(file), numbered=names is not None)
            elif part == "test":
                values += [None] * held.metadata.num_rows
            else:
                raise LabelError(
                    f"from_parquet: label_col must be one of {some(schema.names)} in {file}, got {label_col!r}."
                )
    if len(kinds) > 1:
        raise DataError(f"from_parquet: {image_col!r} must hold bytes in all files, or paths, got both.")
    if not values:
        raise DataError(f"from_parquet: there is no row in {some([str(file) for file in files])}. Check the pattern.")
    source = FileSource(root, paths) if kinds == {"path"} else ParquetSource(root, files, image_col)
    return LabelledRows(source, values, {}, classes)


def _kind(schema: Any, column: str, file: Path) -> str:
    """Return whether a column holds bytes or paths."""
    types = needed("pyarrow", "parquet").types
    if column not in schema.names:
        raise DataError(f"from_parquet: image_col must be one of {some(schema.names)} in {file}, got {column!r}.")
    kind = schema.field(column).type
    if types.is_string(kind) or types.is_large_string(kind):
        return "path"
    fields = {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else set()
    if types.is_binary(kind) or types.is_large_binary(kind) or "bytes" in fields:
        return "bytes"
    raise DataError(
        f"from_parquet: column {column!r} of {file} must hold encoded images (binary, or a struct of bytes, path) or "
        f"paths (string), got {kind}. image_col= names another."
    )


def _below(root: Path, file: Path, cell: str | None, row: int) -> str:
    """Return the name below the root of the file that a cell names, relative to the folder of the table."""
    if not cell:
        raise DataError(f"from_parquet: {file}:{row} names no file. Leave this row out.")
    path = os.path.normpath(file.parent / cell)
    if not Path(path).is_relative_to(root):
        raise DataError(
            f"from_parquet: {file}:{row} names a file outside {root}: {cell!r}. Put the table above the images, or "
            "write paths relative to it."
        )
    return Path(path).relative_to(root).as_posix()


def _class_names(schema: Any, column: str) -> list[str] | None:
    """Return the names of classes that Hugging Face has written into a file, or None."""
    about = (schema.metadata or {}).get(b"huggingface")
    if about is None:
        return None
    feature = json.loads(about).get("info", {}).get("features", {}).get(column, {})
    feature = feature.get("feature", feature)  # of a list
    return feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
