"""Smaller copies of the pictures, made once, so that later epochs decode less."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset
from fastclf.data.validation.verified import DatasetFiles, Rows
from fastclf.files import temporary_sibling
from fastclf.report import Progress

if TYPE_CHECKING:
    from fastclf.data.decode.graphs import ShrinkPipeline

_QUALITY = 95
_FILES_AT_ONCE = 32
_PHOTOGRAPHS = (".jfif", ".mpo", ".heic", ".heif", ".hif", ".avif")


def resized(ds: Dataset, sz: int, folder: Path, num_threads: int) -> Dataset:
    """Copies the pictures of a data set so that the shorter side is at most sz.

    A copy has the orientation applied and keeps the relative name and the time of modification. Copies with the time
    of their picture stay, unless another picture has taken its place since: an interrupted run is taken up again. Every
    copy appears whole or not at all.

    Args:
        ds: pictures in files.
        sz: in pixels. Smaller pictures are not enlarged.
        folder: where the copies go.
        num_threads: threads that decode and write.

    Returns:
        The same data set over the copies.

    Raises:
        BadImageError: when pictures cannot be decoded and may not be skipped; names them.
    """
    names = ((row, ds.fnames[row]) for row in ds.bad.good_rows().tolist())
    todo = [row for row, name in names if not _is_copy(folder / name, ds.path / name)]
    if todo:
        _copy(ds, np.array(todo, np.int64), sz, folder, num_threads)
    return replace(ds, path=folder)


def _is_copy(copy: Path, picture: Path) -> bool:
    """Tells whether it has the picture's time, and the picture is the one it was made from: none has come later."""
    try:
        made, now = copy.stat(), picture.stat()
    except FileNotFoundError:
        return False
    return made.st_mtime_ns == now.st_mtime_ns and made.st_ctime_ns >= now.st_ctime_ns


def _copy(ds: Dataset, rows: Rows, sz: int, folder: Path, num_threads: int) -> None:
    shrink = _Shrink(ds, sz, num_threads)
    with ThreadPoolExecutor(num_threads) as pool, Progress(len(rows), f"copies in {folder}", "pictures") as progress:
        for start in range(0, len(rows), _FILES_AT_ONCE):
            block = rows[start : start + _FILES_AT_ONCE]
            good, pictures, times = shrink(block)
            list(pool.map(_write, pictures, [folder / ds.fnames[row] for row in good], times))
            progress.advance(len(block))


class _Shrink:
    """Decodes and shrinks the pictures of some rows, all but the bad ones."""

    def __init__(self, ds: Dataset, sz: int, num_threads: int) -> None:
        self._ds, self._sz, self._num_threads = ds, sz, num_threads
        self._files = DatasetFiles(ds, num_threads)
        self._graph: ShrinkPipeline | None = None

    def __call__(self, rows: Rows) -> tuple[Rows, list[npt.NDArray[np.uint8]], list[int]]:
        """Returns the rows that are good, their pictures, and when the files were modified."""
        from fastclf.data.decode.graphs import ShrinkPipeline

        rows = self._files.without_bad(rows, None)
        while len(rows):
            files = [self._ds.path / self._ds.fnames[row] for row in rows]
            self._graph = self._graph or ShrinkPipeline(self._sz, _FILES_AT_ONCE, self._num_threads)
            try:
                times = [file.stat().st_mtime_ns for file in files]
                return rows, self._graph(self._files.paths(rows)), times
            except (RuntimeError, OSError) as error:
                self._graph = None  # an error ends a graph's life
                rows = self._files.without_bad(rows, error)
        return rows, [], []


def _write(picture: npt.NDArray[Any], file: Path, mtime_ns: int) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(file)
    try:
        # Formats that DALI decodes, whatever the extension: decoders look at the content alone.
        form = Image.registered_extensions().get(file.suffix.lower(), "")
        form = form if form in ("JPEG", "PNG", "WEBP") else "JPEG" if file.suffix.lower() in _PHOTOGRAPHS else "PNG"
        Image.fromarray(picture).save(temporary, format=form, quality=_QUALITY)
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
