"""Images in parquet files: bytes, as Hugging Face writes them too, or the paths of files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.files import FileSource
from fastclf.data.sources.ignored import tag_as_cache
from fastclf.data.sources.names import Names, some
from fastclf.data.sources.row_labels import LabelledRows, Value, read_labels
from fastclf.data.sources.source import Source, Version
from fastclf.data.sources.tar_index import Stamp
from fastclf.data.sources.values import encoded
from fastclf.errors import DataError, LabelError
from fastclf.files import publish
from fastclf.interop import needed
from fastclf.report import log_once

_KEPT = 1 << 28  # bytes of row groups that are kept, unless one alone has more
_MOST_MAPPED = 1 << 13  # decoded copies: a process may map some ten thousand files


class RowGroup(NamedTuple):
    """One column of a row group.

    Attributes:
        root: the folder of the data, below which a decoded copy may be kept.
        path: of the file.
        stamp: which version of it.
        number: of the row group.
        column: its name.
    """

    root: str
    path: str
    stamp: Stamp
    number: int
    column: str


class ParquetSource(Source):
    """Images in a column of parquet files; `name` is the file's, a colon, and the row in it.

    Of another column than 'image', its name stands between, as a file may hold several: 'pairs.parquet:left:12'.

    Rows in their order are read fast. In random order, row groups that are no more than `_KEPT` bytes are too; where
    there are more, decoded copies of them are kept below the root.
    """

    def __init__(self, root: Path, files: Sequence[Path], column: str) -> None:
        self._files, self._column = [*files], column
        self._stamps = [Stamp.of(file.stat()) for file in files]
        groups = [_groups(file) for file in files]
        self._firsts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in groups]
        counts = [int(first[-1]) for first in self._firsts]
        self._file = np.repeat(np.arange(len(files), dtype=np.int32), counts)
        self._row = np.concatenate([np.arange(n) for n in counts]) if counts else np.zeros(0, np.int64)
        between = ":" if column == "image" else f":{column.replace('/', ':')}:"  # names are paths of smaller copies
        shown = [file.relative_to(root).as_posix() + between for file in files]
        super().__init__(root, Names(f"{name}{row}" for name, n in zip(shown, counts, strict=True) for row in range(n)))

    def stat(self, row: int) -> Version:
        """See `Source.stat`: an image is as old as its file; the size is the file's.

        Raises:
            OSError: the file is gone, or was changed: its rows may be others now.
        """
        k = int(self._file[row])
        status = os.stat(self._files[k])  # noqa: PTH116  # some times faster
        if (status.st_size, status.st_mtime_ns) != self._stamps[k][:2]:
            raise OSError(errno.ESTALE, "its file was changed; make the data anew")
        return Version.of(status)

    def read(self, row: int) -> bytes:
        """See `Source.read`."""
        k, place = int(self._file[row]), int(self._row[row])
        group = int(np.searchsorted(self._firsts[k], place, side="right")) - 1
        values = _groups_read.get(RowGroup(str(self.root), str(self._files[k]), self._stamps[k], group, self._column))
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
    parquet, arrow = needed("pyarrow.parquet", "fastclf[parquet]"), needed("pyarrow", "fastclf[parquet]")
    try:
        return parquet.ParquetFile(file)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{file} is no parquet file, or is damaged: {error}. Fetch or write it anew.") from error


class _RowGroups:
    """The row groups that were read last, shared by all sources and threads of this process.

    A row group is decoded whole. Where a group is wanted again after it had to go, so that images come in random
    order, it is written down decoded, and mapped from then on: processes on one machine share its pages.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[RowGroup, Any] = OrderedDict()
        self._mapped: OrderedDict[RowGroup, Any] = OrderedDict()
        self._gone: set[RowGroup] = set()
        self._lock = threading.Lock()

    def get(self, group: RowGroup) -> Any:
        """Return a column of a row group.

        Raises:
            OSError: it cannot be read.
        """
        with self._lock:
            for held in (self._kept, self._mapped):
                if group in held:
                    held.move_to_end(group)
                    return held[group]
            values, is_mapped = _unpacked(group) if group in self._gone else (_decoded(group), False)
            if is_mapped:
                self._mapped[group] = values
                if len(self._mapped) > _MOST_MAPPED:
                    self._mapped.popitem(last=False)
                return values
            self._kept[group] = values
            while len(self._kept) > 1 and sum(values.nbytes for values in self._kept.values()) > _KEPT:
                self._gone.add(self._kept.popitem(last=False)[0])
            return values

    def forget(self) -> None:
        """Begin anew, in a forked process: another thread may have held the lock."""
        self.__init__()  # type: ignore[misc]


_groups_read = _RowGroups()
os.register_at_fork(after_in_child=_groups_read.forget)


def _decoded(group: RowGroup) -> Any:
    try:
        with _opened(Path(group.path)) as file:
            return file.read_row_group(group.number, columns=[group.column]).column(group.column)
    except (DataError, needed("pyarrow", "fastclf[parquet]").ArrowException) as error:
        raise OSError(errno.EIO, f"its row group is damaged: {error}") from error


def _unpacked(group: RowGroup) -> tuple[Any, bool]:
    """Return a row group, and whether it is mapped: from its decoded copy, which is made where there is room for it."""
    arrow = needed("pyarrow", "fastclf[parquet]")
    folder = Path(group.root, "tmp", "row_groups")
    own = hashlib.sha256(repr((group.path, group.stamp, group.number, group.column)).encode()).hexdigest()[:32]
    place = folder / f"{own}.arrow"
    with suppress(OSError, arrow.ArrowInvalid):  # it is not there yet, or is damaged
        return _mapped(place), True
    values = _decoded(group)
    try:
        tag_as_cache(folder)
        publish(place, partial(_write_arrow, arrow.table({group.column: values})))
        return _mapped(place), True
    except OSError as error:
        log_once(
            f"{folder} cannot be written ({error.strerror or error}): images of {Path(group.path).name} in random "
            "order are read slowly, a row group for each. Make room there, or write row groups of 100 rows."
        )
    return values, False


def _mapped(place: Path) -> Any:
    arrow = needed("pyarrow", "fastclf[parquet]")
    return arrow.ipc.open_file(arrow.memory_map(str(place))).read_all().column(0)


def _write_arrow(table: Any, file: Path) -> None:
    arrow = needed("pyarrow", "fastclf[parquet]")
    with arrow.OSFile(str(file), "wb") as out, arrow.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def read_parquet(
    root: Path, files: dict[str, list[Path]], image_col: str, label_col: str, group_col: str | None = None
) -> dict[str, LabelledRows]:
    """Find the images and labels of parquet files.

    Args:
        root: above all files.
        files: 'train' and, where there are some, 'valid' and 'test'.
        image_col: the column of the images.
        label_col: that of the labels, which a test set may lack.
        group_col: that of groups of training and validation rows; None for none.

    Raises:
        DataError: a file or a column cannot be used.
        LabelError: there is no column of labels, or a value in it is none.
    """
    rows = {part: _rows_of(root, those, image_col, label_col, part) for part, those in files.items()}
    if group_col is not None:
        for part in rows.keys() - {"test"}:
            rows[part] = replace(rows[part], groups=_groups_in(files[part], group_col))
    return rows


def _groups_in(files: Sequence[Path], column: str) -> list[Any]:
    groups: list[Any] = []
    for file in files:
        with _opened(file) as held:
            if column not in held.schema_arrow.names:
                raise DataError(f"from_parquet: groups must be one of {some(held.schema_arrow.names)}, got {column!r}.")
            groups += held.read(columns=[column]).column(column).to_pylist()
    return groups


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
    types = needed("pyarrow", "fastclf[parquet]").types
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
