"""What rows depend on beside their image, and the names that follow from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from fastclf.activations.segment import SCHEMA
from fastclf.data.decode import PIPELINE_VERSION
from fastclf.models.body import Body


def describe(
    body: Body, transforms: Mapping[str, Any], *, dtype: str, precision: str, weights: str | None = None
) -> dict[str, Any]:
    """Return everything that decides the row of an image, as JSON values.

    That is the architecture, every weight and buffer of the body and how it pools, the transforms, the versions of the
    image pipeline and of the store, and the dtypes of the forward pass and of the rows. The weights are hashed where
    ``weights`` is None.
    """
    return {
        "schema": SCHEMA,
        "pipeline": PIPELINE_VERSION,
        "arch": body.arch,
        "weights": body.state_sha256() if weights is None else weights,
        "pooling": body.pooling,
        "width": body.n_features,
        "transforms": transforms,
        "precision": precision,
        "dtype": dtype,
    }


def sha256_of(description: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of ``description``."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def view_key(image: bytes, seed: int, split: int, view: int, row: int) -> bytes:
    """Return the key of an augmented view, whose random numbers are a function of seed, split, view and row."""
    text = b"%s %d %d %d %d" % (image.hex().encode(), seed, split, view, row)
    return hashlib.blake2b(text, digest_size=32, person=b"fastclf view").digest()
