"""The file of cached activations: ``KEY/rows.bin`` ([N, F] fp16 or fp32, row-major) and ``KEY/manifest.json``.

A folder named by its key either holds a whole file or does not exist: everything is written into a temporary folder
beside it, which is renamed at the end. Readers map it, so it may be larger than memory.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.errors import ActivationFileError
from fastclf.files import publish, sync_folder, temporary_sibling

SCHEMA = 1
DTYPES = ("float16", "float32")
ROWS, MANIFEST = "rows.bin", "manifest.json"


class ActivationWriter:
    """Fills one activation file, block by block in row order, then publishes it.

    Use as a context manager: leaving it without `finish`, by an error or an interrupt, leaves nothing behind.

    Args:
        folder: where activation files are kept; made if it does not exist.
        key: the file's fingerprint, and its name.
        shape: rows and features, ``(N, F)``.
        dtype: ``float16`` or ``float32``.

    Raises:
        OSError: the folder cannot be written, or the disk cannot hold the file (its whole size is taken at once).
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int], dtype: str) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"ActivationWriter: dtype must be one of {DTYPES}, got {dtype!r}")
        self.final, self.key, self.shape, self.dtype = folder / key, key, shape, np.dtype(dtype)
        self.rows_done = 0
        self._blocks: list[dict[str, int]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_sibling(self.final)
        self._temporary.mkdir(mode=0o700)
        self._file = (self._temporary / ROWS).open("wb")
        try:
            self._allocate(shape[0] * shape[1] * self.dtype.itemsize)
        except BaseException:
            self._drop()
            raise

    def _allocate(self, size: int) -> None:
        try:
            if size:
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            free = shutil.disk_usage(self._temporary).free
            raise OSError(
                errno.ENOSPC, f"activations need {size:,} bytes, {free:,} are free in", str(self.final.parent)
            ) from error

    def write(self, rows: NDArray[Any]) -> None:
        """Appends rows ``[B, F]``; values are rounded to the file's dtype.

        Raises:
            ActivationFileError: a value is not finite, or too large for fp16.
        """
        if rows.ndim != 2 or rows.shape[1] != self.shape[1] or self.rows_done + len(rows) > self.shape[0]:
            raise ValueError(f"write: rows must fit into {self.shape} after row {self.rows_done}, got {rows.shape}")
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(rows, dtype=self.dtype)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            row = self.rows_done + int(np.argmin(finite))
            hint = " Pass dtype='float32'." if np.isfinite(rows).all() else ""
            raise ActivationFileError(f"activations of row {row} are not finite in {self.dtype}.{hint}")
        data = block.tobytes()
        self._file.write(data)
        self._blocks.append({"first": self.rows_done, "rows": len(block), "crc32": zlib.crc32(data)})
        self.rows_done += len(block)

    def finish(self) -> None:
        """Publishes the file; if another process has published the same one meanwhile, that one stays."""
        if self.rows_done != self.shape[0]:
            raise ValueError(f"finish: {self.shape[0]} rows were announced, {self.rows_done} written")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        manifest = {
            "schema": SCHEMA,
            "key": self.key,
            "dtype": self.dtype.name,
            "shape": list(self.shape),
            "blocks": self._blocks,
        }
        publish(self._temporary / MANIFEST, lambda path: path.write_text(json.dumps(manifest)))
        try:
            self._temporary.rename(self.final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        sync_folder(self.final.parent)

    def _drop(self) -> None:
        self._file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()


def open_activations(
    folder: Path, key: str, shape: tuple[int, int], dtype: str, *, verify: bool = False
) -> NDArray[Any] | None:
    """Maps the activation file ``folder/key`` read-only, ``[N, F]``; None when there is none that can be used.

    A file that is damaged (no manifest, another schema, key, shape or size) is moved out of the way, so that it is
    computed again. ``verify`` also checks every block's checksum.
    """
    place = folder / key
    if not place.is_dir():
        return None
    try:
        _check(place, key, shape, dtype, verify=verify)
    except (ActivationFileError, OSError, ValueError, KeyError, TypeError):
        _discard(place)
        return None
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(place / ROWS, dtype=dtype, mode="r", shape=shape)


def _check(place: Path, key: str, shape: tuple[int, int], dtype: str, *, verify: bool) -> None:
    manifest = json.loads((place / MANIFEST).read_text())
    told = (manifest["schema"], manifest["key"], tuple(manifest["shape"]), manifest["dtype"])
    if told != (SCHEMA, key, shape, dtype):
        raise ActivationFileError(f"{place}: the manifest tells of another file")
    row_bytes = shape[1] * np.dtype(dtype).itemsize
    if (place / ROWS).stat().st_size != shape[0] * row_bytes:
        raise ActivationFileError(f"{place / ROWS}: has not the size that its manifest tells")
    if verify:
        with (place / ROWS).open("rb") as file:
            for block in manifest["blocks"]:
                if zlib.crc32(file.read(block["rows"] * row_bytes)) != block["crc32"]:
                    raise ActivationFileError(f"{place / ROWS}: rows from {block['first']} on are damaged")


def _discard(place: Path) -> None:
    """Removes a folder that readers may still have mapped: their pages stay valid."""
    aside = temporary_sibling(place)
    try:
        place.rename(aside)
    except FileNotFoundError:
        return  # another process has just done the same
    shutil.rmtree(aside, ignore_errors=True)
