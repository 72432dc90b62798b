"""Smaller copies of the pictures, made once, so that later epochs decode less."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.bad_images import explain
from fastclf.data.samples import Dataset
from fastclf.files import temporary_sibling
from fastclf.progress import Progress

_QUALITY = 95
_FILES_AT_ONCE = 32


def resized(ds: Dataset, sz: int, folder: Path, num_threads: int) -> Dataset:
    """Copies the pictures of a data set so that the shorter side is at most sz.

    A copy has the orientation applied and keeps the relative name and the time of modification. Copies with the time
    of their picture stay: an interrupted run is taken up again. Every copy appears whole or not at all.

    Args:
        ds: pictures in files.
        sz: in pixels. Smaller pictures are not enlarged.
        folder: where the copies go.
        num_threads: threads that decode and write.

    Returns:
        The same data set over the copies.

    Raises:
        BadImageError: when a picture cannot be decoded; names it.
    """
    todo = [row for row, name in enumerate(ds.fnames) if not _is_copy(folder / name, ds.path / name)]
    if todo:
        _copy(ds, np.array(todo, np.int64), sz, folder, num_threads)
    return replace(ds, path=folder)


def _is_copy(copy: Path, picture: Path) -> bool:
    try:
        return copy.stat().st_mtime_ns == picture.stat().st_mtime_ns
    except FileNotFoundError:
        return False


def _copy(ds: Dataset, rows: npt.NDArray[np.int64], sz: int, folder: Path, num_threads: int) -> None:
    from fastclf.data.pipeline import ShrinkPipeline

    shrink = ShrinkPipeline(sz, _FILES_AT_ONCE, num_threads)
    with ThreadPoolExecutor(num_threads) as pool, Progress(len(rows), f"copies in {folder}", "pictures") as progress:
        for start in range(0, len(rows), _FILES_AT_ONCE):
            block = rows[start : start + _FILES_AT_ONCE]
            names = [ds.fnames[row] for row in block]
            try:
                times = [(ds.path / name).stat().st_mtime_ns for name in names]
                pictures = shrink([os.fsencode(ds.path / name) for name in names])
            except (RuntimeError, OSError) as error:
                raise explain(ds, block, error) from error
            list(pool.map(_write, pictures, [folder / name for name in names], times))
            progress.advance(len(block))


def _write(picture: npt.NDArray[Any], file: Path, mtime_ns: int) -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(file)
    try:
        # The extension names the format, as far as Pillow knows it: DALI looks at the content alone.
        form = Image.registered_extensions().get(file.suffix.lower(), "JPEG")
        Image.fromarray(picture).save(temporary, format=form, quality=_QUALITY)
        os.utime(temporary, ns=(mtime_ns, mtime_ns))
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
