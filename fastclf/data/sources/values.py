"""Encoded images as tables of parquet files and Hugging Face hold them: bytes, a path, or {bytes, path}."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def encoded(value: Any, folder: Path) -> bytes:
    """Return the encoded image that a cell holds.

    Args:
        value: bytes, or a mapping with ``bytes``, or else with the ``path`` of a file.
        folder: that paths are relative to.

    Raises:
        OSError: there is no image, or its file cannot be read.
    """
    path = None
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if path is None:
        raise OSError(errno.ENODATA, "no image in this row")
    return Path(folder, str(path)).read_bytes()


def fingerprint(content: bytes) -> int:
    """Return a number of 63 bits that differs where images do: the version of one that is in no file."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") >> 1
