"""The random parameters of a batch of pictures: a pure function of (transforms, seed, epoch, split, rows)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.data.transforms.augmentations import Cutout, Floats, Geometry, RandomBlur, RandomLighting, RandomZoom
from fastclf.data.transforms.spec import CropType, Transforms
from fastclf.philox import uniforms

Parameters: TypeAlias = dict[str, npt.NDArray[Any]]

_ZOOM_P = 0.75
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_SLOTS = 256  # streams per split
_SLOT_ZOOM, _SLOT_WINDOW, _SLOT_GOOGLENET, _SLOT_AUGS = 0, 1, 2, 8


class Split(enum.IntEnum):
    """Part of the data; keeps the draws of row i in train, valid and test apart."""

    TRAIN = 0
    VALID = 1
    TEST = 2


def draw(tfms: Transforms, seed: int, epoch: int, split: Split, rows: npt.NDArray[np.int64]) -> Parameters:
    """Draws what `pipeline` needs beside the picture itself.

    Returns:
        One array of N entries per input of the graph:
        `scaled [N] int64`, the shorter side after scaling (a side for NO; absent for GOOGLENET);
        `area`, `aspect [N]` and `corner [N, 2]` of the GOOGLENET rectangle, as shares of the picture;
        `place [N, 2]`, where the window lies between the first and the last possible place (y, x);
        `linear [N, 2, 2]` and `middle [N, 2]`, the composed geometry and what it makes of the window's middle;
        `aug<i>` for the i-th augmentation, when it changes values: lighting `[N, 2]`, blur `[N]`, holes `[N, 2 n]`.
    """

    def stream(slot: int, n: int) -> Floats:
        return uniforms(seed, epoch, rows, int(split) * _SLOTS + slot, n)

    zoom = _zoom(tfms, stream, len(rows))
    out: Parameters = {}
    if tfms.crop_type is CropType.GOOGLENET:
        u = stream(_SLOT_GOOGLENET, 4)
        out["area"] = _AREA[0] + u[:, 0] * (_AREA[1] - _AREA[0])
        out["area"] /= zoom**2
        out["aspect"] = np.exp(np.log(_ASPECT[0]) + u[:, 1] * np.log(_ASPECT[1] / _ASPECT[0]))
        out["corner"] = u[:, 2:]
    else:
        out["scaled"] = np.rint(tfms.sz * zoom).astype(np.int64)
    if tfms.places:
        out["place"] = np.minimum(stream(_SLOT_WINDOW, 2), 1 - 2.0**-24)  # stays below 1 as float32
    if tfms.geometry:
        out["linear"] = _linear(tfms, stream, len(rows))
        out["middle"] = out["linear"].sum(axis=2) * (tfms.sz / 2)
    for i, aug in enumerate(tfms.augs):
        if isinstance(aug, RandomLighting):
            out[f"aug{i}"] = aug.values(stream(_SLOT_AUGS + i, aug.n_draws))
        elif isinstance(aug, RandomBlur):
            out[f"aug{i}"] = aug.windows(stream(_SLOT_AUGS + i, aug.n_draws))
        elif isinstance(aug, Cutout):
            out[f"aug{i}"] = aug.corners(stream(_SLOT_AUGS + i, aug.n_draws), tfms.sz)
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in out.items()}


def _zoom(tfms: Transforms, stream: Callable[[int, int], Floats], n: int) -> Floats:
    zoom = np.ones(n)
    if tfms.max_zoom is not None:
        u = stream(_SLOT_ZOOM, 2)
        zoom = np.where(u[:, 0] < _ZOOM_P, 1 + u[:, 1] * (tfms.max_zoom - 1), zoom)
    for i, aug in enumerate(tfms.augs):
        if isinstance(aug, RandomZoom):
            zoom = zoom * aug.factors(stream(_SLOT_AUGS + i, aug.n_draws))
    return zoom


def _linear(tfms: Transforms, stream: Callable[[int, int], Floats], n: int) -> Floats:
    linear: Floats = np.tile(np.eye(2), (n, 1, 1))
    for i, aug in enumerate(tfms.augs):
        if isinstance(aug, Geometry):  # from window to picture: what is applied last meets the window first
            linear = linear @ aug.matrices(stream(_SLOT_AUGS + i, aug.n_draws))
    return linear
