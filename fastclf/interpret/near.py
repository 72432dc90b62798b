"""Images of a set that are nearly the same as one of train, though not byte for byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Array, RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.interpret import neighbours
from fastclf.interpret.neighbours import RowPool

_MOST_PRODUCTS = 4e11  # multiplications of all rows with all: some seconds
_GREY = 16  # side of the thumbnails that are compared
_ALIKE = 0.97  # correlation of thumbnails


def nearest_in(train: Dataset, ds: Dataset) -> tuple[RowNumbers, RowNumbers, NDArray[np.float32]]:
    """Return rows of a set over activations, the nearest row of train to each, and the cosine between them, ``[n]``.

    Cosines are those of rows less the mean of train. Of very many rows the first are looked at.
    """
    assert train.rows is not None
    pool, rows = RowPool([train], centred=True), RowPool([ds])
    n = min(len(rows), max(1, int(_MOST_PRODUCTS / max(len(pool) * train.rows.shape[1], 1))))
    found = [neighbours.nearest(block[: n - first], pool, 1) for first, block in rows.blocks() if first < n]
    numbers, cosines = (np.concatenate(part)[:, 0] for part in zip(*found, strict=True))
    return rows.row[:n], pool.row[numbers], cosines


def look_alike(one: Array, other: Array) -> bool:
    """Return whether two images ``[h, w, 3]`` of 0..1 show the same when they are small and grey, mirrored or not."""
    a, b = (_thumbnail(image) for image in (one, other))
    return max(float((a * b).mean()), float((a * b[:, ::-1]).mean())) > _ALIKE


def _thumbnail(image: Array) -> Array:
    from PIL import Image

    grey = Image.fromarray((image * 255).round().astype(np.uint8)).convert("L").resize((_GREY, _GREY))
    values = np.asarray(grey, np.float64)
    spread = values.std()
    return (values - values.mean()) / spread if spread else np.zeros_like(values)
