"""Smaller copies of the images, made once, so that later epochs decode less."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclf.arrays import RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Source
from fastclf.data.validation.dataset_images import DatasetImages
from fastclf.files import temporary_sibling
from fastclf.report import Progress

if TYPE_CHECKING:
    from fastclf.data.decode.graphs import ShrinkPipeline

_QUALITY = 95
_FILES_AT_ONCE = 32
_PHOTOGRAPHS = (".jfif", ".mpo", ".heic", ".heif", ".hif", ".avif")


def resized(ds: Dataset, sz: int, folder: Path, num_threads: int) -> Dataset:
    """Copy the images of a data set so that the shorter side is at most sz.

    A copy has the orientation applied and keeps the relative name and the time of modification. Copies with the time
    of their image stay, unless another image has taken its place since: an interrupted run is taken up again. Every
    copy appears whole or not at all.

    Args:
        ds: images in files.
        sz: in pixels. Smaller images are not enlarged.
        folder: where the copies go.
        num_threads: threads that decode and write.

    Returns:
        The same data set over the copies.

    Raises:
        BadImageError: images cannot be decoded and may not be skipped; names them.
    """
    copies = FileSource(folder, ds.source.names)
    todo = [row for row in ds.bad.good_rows().tolist() if not _is_copied(ds.source, copies, row)]
    if todo:
        _copy(ds, np.array(todo, np.int64), sz, copies, num_threads)
    return replace(ds, source=copies)


def _is_copied(source: Source, copies: Source, row: int) -> bool:
    """Return whether a copy has the image's time, and no other image has come in its place since."""
    try:
        made, now = copies.stat(row), source.stat(row)
    except OSError:
        return False
    return made.mtime_ns == now.mtime_ns and made.ctime_ns >= now.ctime_ns


def _copy(ds: Dataset, rows: RowNumbers, sz: int, copies: FileSource, num_threads: int) -> None:
    shrink, what = _Shrink(ds, sz, num_threads), f"copies in {copies.root}"
    with ThreadPoolExecutor(num_threads) as pool, Progress(len(rows), what, "images") as progress:
        for start in range(0, len(rows), _FILES_AT_ONCE):
            block = rows[start : start + _FILES_AT_ONCE]
            good, images, times = shrink(block)
            list(pool.map(_write, images, [Path(copies.path(row)) for row in good.tolist()], times))
            progress.advance(len(block))


class _Shrink:
    """Decoded and shrunk images of some rows, without the bad ones."""

    def __init__(self, ds: Dataset, sz: int, num_threads: int) -> None:
        self._ds, self._sz, self._num_threads = ds, sz, num_threads
        self._images = DatasetImages(ds, num_threads)
        self._graph: ShrinkPipeline | None = None

    def __call__(self, rows: RowNumbers) -> tuple[RowNumbers, list[npt.NDArray[np.uint8]], list[int]]:
        """Return the rows that are good, their images, and when the files were modified."""
        from fastclf.data.decode.graphs import ShrinkPipeline

        rows = self._images.without_bad(rows, None)
        while len(rows):
            source = self._ds.source
            by_path = source.has_paths
            self._graph = self._graph or ShrinkPipeline(self._sz, _FILES_AT_ONCE, self._num_threads, by_path=by_path)
            try:
                times = [source.stat(row).mtime_ns for row in rows.tolist()]
                return rows, self._graph([*self._images.inputs(rows)]), times
            except (DecodeError, OSError) as error:
                self._graph = None  # an error ends a graph's life
                rows = self._images.without_bad(rows, error)
        return rows, [], []


def _write(image: npt.NDArray[Any], file: Path, mtime_ns: int) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(file)
    try:
        # Formats that DALI decodes, whatever the extension: decoders look at the content alone.
        form = Image.registered_extensions().get(file.suffix.lower(), "")
        form = form if form in ("JPEG", "PNG", "WEBP") else "JPEG" if file.suffix.lower() in _PHOTOGRAPHS else "PNG"
        Image.fromarray(image).save(temporary, format=form, quality=_QUALITY)
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
