"""The key of an activation file: everything that its rows depend on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from fastclf.activations.store import SCHEMA
from fastclf.data.dataset import Dataset
from fastclf.data.version import PIPELINE_VERSION
from fastclf.models.body import Body


def fingerprint(
    body: Body,
    ds: Dataset,
    transforms: Mapping[str, Any],
    *,
    dtype: str,
    precision: str,
    views: Mapping[str, Any] | None = None,
) -> str:
    """Return the SHA-256 (hex) of the canonical description of an activation file.

    Covers the architecture, every weight and buffer of the body and how it pools, the transforms, the number of
    augmented views and the seed that they are sampled with, the versions of the image pipeline and of the file, the
    dtypes of the forward pass and of the file, and the images in their order: relative path, size in bytes, and the
    times when contents and entry were changed, or, for arrays, a hash of their values. Labels have no part in it.
    """
    description = {
        "schema": SCHEMA,
        "pipeline": PIPELINE_VERSION,
        "arch": body.arch,
        "weights": body.state_sha256(),
        "features": body.pooling,
        "transforms": transforms,
        "views": views,
        "dtype": dtype,
        "precision": precision,
        "pictures": _images(ds),  # the key of every file so far
    }
    return sha256_of(description)


def sha256_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``description``."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _images(ds: Dataset) -> str:
    if ds.images is not None:
        return _sha256_of_array(ds.images)
    return _sha256_of_stats(_stat(ds, name) for name in ds.fnames)


def _stat(ds: Dataset, name: str) -> tuple[str, int, int, int]:
    """Return numbers that change with a file's contents.

    Archives, ``cp -p`` and ``mv`` bring other contents with the old time of modification, but nobody can set the time
    of the last change of the entry. (Inode numbers are left out: mounted anew, some file systems give others.)
    """
    try:
        stat = (ds.path / name).stat()
    except OSError:
        return name, -1, -1, -1  # the loader reports it
    return name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _sha256_of_stats(stats: Iterable[tuple[str, int, int, int]]) -> str:
    digest = hashlib.sha256()
    for name, *numbers in stats:
        digest.update(f"{name}\0{numbers}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _sha256_of_array(images: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(f"{images.shape}{images.dtype}".encode())
    for image in images:
        digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
