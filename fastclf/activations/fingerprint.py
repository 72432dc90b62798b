"""The key of an activation file: everything that its rows depend on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fastclf.activations.store import SCHEMA
from fastclf.data.dataset import Dataset
from fastclf.data.decode import PIPELINE_VERSION
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
        "pictures": ds.source.sha256(),  # a key on disk: another would have all be computed anew
    }
    return sha256_of(description)


def sha256_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``description``."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
