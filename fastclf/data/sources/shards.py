"""Images in tar archives, several files of one name to a sample: the image, and its label."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf import ranks
from fastclf.data.sources.listing import is_image
from fastclf.data.sources.names import Names, printable, some
from fastclf.data.sources.row_labels import LabelledRows, Value, as_value
from fastclf.data.sources.source import Source, Version
from fastclf.data.sources.tar_index import Stamp, TarIndex, tar_index
from fastclf.errors import DataError, LabelError
from fastclf.interrupts import finaliser
from fastclf.report import warn

_LABELS = ("cls", "txt", "json")
_FIELDS = ("cls", "class", "label")
_OPEN = 32  # archives held open; a system may allow a process no more than 64 files
_READ_AT_ONCE = 8  # archives: on a disk of the network each header is a wait


class ShardSource(Source):
    """Images in tar archives; `name` is the archive's, a slash, and the name in it."""

    def __init__(self, root: Path, shards: Sequence[Path], indexes: Sequence[TarIndex], members: Members) -> None:
        self._shards = [str(shard) for shard in shards]
        self._stamps = {k: index.stamp for k, index in enumerate(indexes)}
        self._layouts = [index.layout for index in indexes]
        self._shard, self._offset, self._size = members.shard, members.offset, members.size
        super().__init__(root, members.names)

    def stat(self, row: int) -> Version:
        """See `Source.stat`: an image is as old as its archive.

        Raises:
            OSError: the archive is gone, or its files lie elsewhere in it now.
        """
        k = int(self._shard[row])
        status = os.stat(self._shards[k])  # noqa: PTH116  # some times faster
        if Stamp.of(status) != self._stamps[k]:
            self._accept(k)
        return Version.of(status)._replace(size=int(self._size[row]))

    def _accept(self, k: int) -> None:
        """Go on with another version of an archive where only pixels differ: then all its images are looked at anew."""
        try:
            index = tar_index(Path(self._shards[k]))
        except DataError as error:
            raise OSError(errno.EIO, f"its archive is unusable: {error}") from error
        if index.layout != self._layouts[k]:
            raise OSError(errno.ESTALE, "other files or labels are in its archive now; make the data anew")
        self._stamps[k] = index.stamp

    def read(self, row: int) -> bytes:
        """See `Source.read`."""
        k = int(self._shard[row])
        archive = _opened(self._shards[k], self._stamps[k])
        size = int(self._size[row])
        content = os.pread(archive.handle, size, int(self._offset[row]))
        if len(content) != size:
            raise OSError(errno.EIO, "its archive is cut off")
        return content

    def take(self, rows: npt.NDArray[np.int64]) -> ShardSource:
        """See `Source.take`."""
        taken = super().take(rows)
        taken._shard, taken._offset, taken._size = self._shard[rows], self._offset[rows], self._size[rows]
        return taken


class _Archive:
    """An open archive; closed when nobody reads it any more. Reads have places of their own, so threads share it."""

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _close(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    __del__ = finaliser(_close)


@lru_cache(maxsize=_OPEN)
def _opened(path: str, stamp: Stamp) -> _Archive:
    archive = _Archive(path)
    if Stamp.of(os.fstat(archive.handle)) != stamp:
        raise OSError(errno.ESTALE, "its archive is being changed")
    return archive


@dataclass(frozen=True)
class Members:
    """The images of some archives, `[N]`.

    Attributes:
        names: the archive's name below the root, a slash, and the name in it.
        shard: which archive, `int32`.
        offset: where in it, `int64`.
        size: in bytes, `int64`.
    """

    names: Names
    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShardRules:
    """Which files of a sample are what; see `ImageClassifierData.from_shards`."""

    image: str | None = None
    label: str | None = None


def indexes_of(shards: Sequence[Path]) -> list[TarIndex]:
    """Return the indexes of archives; of several processes each reads the headers of a part, once.

    Raises:
        DataError: see `tar_index`.
    """
    with ThreadPoolExecutor(_READ_AT_ONCE) as pool:
        if ranks.size() > 1:
            errors = ranks.gather(_first_error(pool, shards[ranks.share(len(shards))]))
            for error in errors:
                if error is not None:  # in all processes, wherever it was found
                    raise error
        indexes = list(pool.map(tar_index, shards))
    for shard, index in zip(shards, indexes, strict=True):
        if index.remark:
            warn(f"{printable(str(shard))} {index.remark}.")
        if index.links:
            warn(f"{printable(str(shard))}: {index.links:,} symbolic link(s) are left out.")
    return indexes


def _first_error(pool: ThreadPoolExecutor, shards: Sequence[Path]) -> DataError | OSError | None:
    try:
        list(pool.map(tar_index, shards))
    except (DataError, OSError) as error:
        return error
    return None


def read_shards(root: Path, shards: dict[str, list[Path]], rules: ShardRules) -> dict[str, LabelledRows]:
    """Find the images and labels of archives.

    Args:
        root: above all archives.
        shards: by set: 'train' or the only one tells what the labels are; 'test' needs none.
        rules: which files of a sample are what.

    Raises:
        DataError: an archive or a sample cannot be used.
        LabelError: a label cannot be read.
    """
    indexes = {part: indexes_of(files) for part, files in shards.items()}
    first = "train" if "train" in indexes else next(iter(indexes))
    extension, field = _label_of(indexes[first], rules, needed=first != "test")
    return {part: _rows_of(root, files, indexes[part], rules.image, extension, field) for part, files in shards.items()}


def _label_of(indexes: Sequence[TarIndex], rules: ShardRules, *, needed: bool) -> tuple[str, str | None]:
    """Return which files hold the labels, and which field of them where that is given."""
    extension, _, field = (rules.label or "").partition(":")
    there = {name for index in indexes for name in index.extensions}
    if rules.label is None:
        extension = next((name for name in _LABELS if name in there), "")
    if extension not in there and needed:
        wanted = f".{extension}" if extension else " or ".join(f".{name}" for name in _LABELS)
        raise LabelError(
            f"from_shards: samples must have a label in a file {wanted}, got files {some(sorted(there - {''}))}. Pass "
            "label='extension', or 'json:field'."
        )
    return extension, field or None


def _rows_of(
    root: Path, files: Sequence[Path], indexes: Sequence[TarIndex], image: str | None, label: str, field: str | None
) -> LabelledRows:
    prefixes = [f"{file.relative_to(root).as_posix()}/" for file in files]
    names: list[Names] = []
    places: list[tuple[npt.NDArray[Any], ...]] = []
    values: list[Value] = []
    ignored = {"samples without an image": 0, "files of no sample": 0}
    reader = _LabelReader(label, field)
    for k, (file, prefix, index) in enumerate(zip(files, prefixes, indexes, strict=True)):
        rows = _images_in(index, file, image)
        names.append(index.names.take(rows).prefixed(prefix))
        places.append((np.full(len(rows), k, np.int32), index.offset[rows], index.size[rows]))
        values += reader.read(index, rows, file)
        ignored["samples without an image"] += len(index.keys) - len(rows)
        ignored["files of no sample"] += int((index.sample < 0).sum())
    if not values:
        raise DataError(f"from_shards: there is no image in {some([str(file) for file in files])}. Check the pattern.")
    if ignored["samples without an image"]:
        warn(f"{ignored['samples without an image']:,} sample(s) of the archives have no image and are left out.")
    shard, offset, size = (np.concatenate(part) for part in zip(*places, strict=True))
    source = ShardSource(root, files, indexes, Members(Names.joined(names), shard, offset, size))
    return LabelledRows(source, values, ignored)


def _images_in(index: TarIndex, file: Path, image: str | None) -> npt.NDArray[np.int64]:
    """Return which files of an archive are the images of its samples, in its order."""
    wanted = None if image is None else {one.lower().removeprefix(".") for one in image.split(";")}
    fits = [is_image(f".{name}") if wanted is None else name in wanted for name in index.extensions]
    rows = np.flatnonzero(np.array(fits, bool)[index.extension] & (index.sample >= 0))
    repeated = np.flatnonzero(np.bincount(index.sample[rows], minlength=1) > 1)
    if len(repeated):
        key = int(repeated[0])
        those = [index.names[row] for row in rows[index.sample[rows] == key].tolist()]
        raise DataError(
            f"{file}: {len(repeated)} sample(s) have several images: {printable(index.keys[key])}: {some(those)}. "
            "A sample's name ends at its first dot. Pass image='jpg' to choose, or rename the files."
        )
    return rows


class _LabelReader:
    """Reads the labels of samples; the same text is read once."""

    def __init__(self, extension: str, field: str | None) -> None:
        self._extension, self._field = extension, field
        self._known: dict[str, Value] = {}

    def read(self, index: TarIndex, rows: npt.NDArray[np.int64], file: Path) -> Iterator[Value]:
        """Yield the labels of the samples that images belong to; None for one without."""
        number = index.extensions.index(self._extension) if self._extension in index.extensions else -1
        files = np.flatnonzero((index.extension == number) & (index.sample >= 0))
        of_sample = np.full(len(index.keys), -1, np.int64)
        of_sample[index.sample[files]] = files
        for place in of_sample[index.sample[rows]].tolist():
            yield None if place < 0 else self._value(index, place, file)

    def _value(self, index: TarIndex, place: int, file: Path) -> Value:
        text = index.small[place] if index.has_small[place] else _text(index, place, file)
        if text in self._known:
            return self._known[text]
        value = self._parsed(text, index.names[place], file)
        if index.has_small[place]:
            self._known[text] = value
        return value

    def _parsed(self, text: str, name: str, file: Path) -> Value:
        text = text.removeprefix("\ufeff").strip()
        if self._extension.rpartition(".")[2] != "json":
            return as_value(text)
        try:
            content = json.loads(text)
            return as_value(self._in_field(content) if isinstance(content, dict) else content)
        except (ValueError, TypeError, KeyError) as error:
            why = f"has no {error.args[0]}" if isinstance(error, KeyError) else f"is no label: {error}"
            raise LabelError(
                f"{file}: {printable(name)} {why}. Pass label='json:field' with the field of the class."
            ) from error

    def _in_field(self, content: dict[str, Any]) -> Any:
        wanted = _FIELDS if self._field is None else (self._field,)
        name = next((name for name in wanted if name in content), None)
        if name is None:
            raise KeyError(f"{' or '.join(map(repr, wanted))} among {some([*content])}")
        return content[name]


def _text(index: TarIndex, place: int, file: Path) -> str:
    with file.open("rb") as handle:
        handle.seek(int(index.offset[place]))
        return handle.read(int(index.size[place])).decode("utf-8", "surrogateescape")
