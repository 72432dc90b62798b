"""The file of cached activations: ``KEY/rows.bin`` ([N, F] fp16 or fp32, row-major) and ``KEY/manifest.jsonl``.

A folder named by its key either holds a whole file or does not exist: everything is written into a temporary folder
beside it (see `writer`), which is renamed at the end. Readers map it, so it may be larger than memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf import files
from fastclf.activations.manifest import Block, crc32_of, read_header, read_manifest

SCHEMA = 2
DTYPES = ("float16", "float32")
ROWS, MANIFEST = "rows.bin", "manifest.jsonl"

Accept = Callable[[Mapping[int, str]], bool]
_checked: set[tuple[int, ...]] = set()  # files whose checksums agreed in this process


def accept_all(_bad: Mapping[int, str]) -> bool:
    """Accept a file whichever of its rows could not be computed."""
    return True


def header_of(key: str, shape: tuple[int, int], dtype: str) -> dict[str, Any]:
    """Return the first line of a file's manifest, as a dict."""
    return {"schema": SCHEMA, "key": key, "shape": list(shape), "dtype": dtype}


def row_bytes(shape: tuple[int, int], dtype: str) -> int:
    """Return the bytes of a row."""
    return shape[1] * np.dtype(dtype).itemsize


def open_activations(
    folder: Path, key: str, shape: tuple[int, int], dtype: str, accept: Accept = accept_all
) -> NDArray[Any] | None:
    """Map the activation file ``folder/key`` read-only, ``[N, F]``; None when there is none that can be used.

    The first time that a process opens a file, every block's checksum is computed: about a second for 2 GB. A file
    that is damaged is moved aside, where the next `ActivationWriter` finds what is left of it.

    Args:
        folder: where activation files are kept.
        key: the file's fingerprint.
        shape: rows and features, ``(N, F)``.
        dtype: ``float16`` or ``float32``.
        accept: called with row -> reason of the rows that could not be computed; whether the file may be used.
    """
    place = folder / key
    if not place.is_dir():
        return None
    try:
        blocks = _whole(place, key, shape, dtype)
    except FileNotFoundError:
        blocks = None
    if blocks is None or not accept({row: why for block in blocks for row, why in block.bad.items()}):
        _set_aside(place)
        return None
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(place / ROWS, dtype=dtype, mode="r", shape=shape)


def _whole(place: Path, key: str, shape: tuple[int, int], dtype: str) -> list[Block] | None:
    """Return the blocks of a file that is whole: right manifest, right size, right checksums."""
    blocks = read_manifest(place / MANIFEST, header_of(key, shape, dtype))
    if blocks is None or sum(block.rows for block in blocks) != shape[0]:
        return None
    width = row_bytes(shape, dtype)
    with (place / ROWS).open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        if stat.st_size != shape[0] * width:
            return None
        identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if identity not in _checked:
            if any(crc32_of(file, block.rows * width) != block.crc32 for block in blocks):
                return None
            _checked.add(identity)
    return blocks


def _set_aside(place: Path) -> None:
    """Rename a folder; readers may still have its file mapped, and their pages stay valid."""
    try:
        files.on_disk(place.rename, files.given_up_sibling(place))
    except FileNotFoundError:
        return  # another process has just done the same


def older_files(folder: Path) -> list[Path]:
    """Return the activation files in ``folder`` that another version of the library has written."""
    names = [place for place in folder.iterdir() if place.is_dir() and ".tmp-" not in place.name]
    headers = {place: read_header(place / MANIFEST) for place in names}
    return sorted(
        place for place, header in headers.items() if not isinstance(header, dict) or header.get("schema") != SCHEMA
    )
