"""Images of a set that are nearly the same as one of train, though not byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]

_AT_ONCE = 1024  # rows
_MOST_PRODUCTS = 4e11  # multiplications of all rows with all: some seconds
_GREY = 16  # side of the thumbnails that are compared
_ALIKE = 0.97  # correlation of thumbnails


def nearest(train: Array, rows: Array) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return for each row of activations ``[n, F]`` the nearest one of ``train [N, F]``, and the cosine between them.

    Cosines are those of rows less the mean of train. Of very many rows the first are looked at, so fewer may return.
    """
    centre = train.astype(np.float32).mean(0)
    reference = _unit(train, centre)
    n = min(len(rows), max(1, int(_MOST_PRODUCTS / max(reference.numel(), 1))))
    best = [(_unit(rows[i : min(i + _AT_ONCE, n)], centre) @ reference.T).max(1) for i in range(0, n, _AT_ONCE)]
    return (
        np.concatenate([found.indices.numpy() for found in best]),
        np.concatenate([found.values.numpy() for found in best]),
    )


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


def _unit(rows: Array, centre: Array) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32) - centre))
