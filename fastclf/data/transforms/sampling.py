"""The random parameters of a batch of images: a pure function of (transforms, seed, epoch, split, rows)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.arrays import Floats
from fastclf.data.transforms.base import GeometricAugmentation, PixelAugmentation, ZoomAugmentation
from fastclf.data.transforms.spec import CropType, TransformSpec
from fastclf.philox import uniforms

Parameters: TypeAlias = dict[str, npt.NDArray[Any]]

_ZOOM_P = 0.75
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_SLOTS = 256  # streams per split
_SLOT_ZOOM, _SLOT_PLACE, _SLOT_GOOGLENET, _SLOT_AUGS = 0, 1, 2, 8


class Split(enum.IntEnum):
    """Part of the data; keeps the random numbers of row i in train, valid and test apart."""

    TRAIN = 0
    VALID = 1
    TEST = 2


def sample(tfms: TransformSpec, seed: int, epoch: int, split: Split, rows: npt.NDArray[np.int64]) -> Parameters:
    """Return what renderers need beside the images themselves.

    Returns:
        Arrays with one entry per image:
        `scaled [N] int64`, the shorter side after scaling (a side for NO; absent for GOOGLENET);
        `area`, `aspect [N]` and `corner [N, 2]` of the GOOGLENET rectangle, as shares of the image;
        `place [N, 2]`, where the crop lies between the first and the last possible place (y, x);
        `linear [N, 2, 2]` and `middle [N, 2]`, the composed geometry and what it makes of the crop's middle;
        `aug<i>`, the parameters of the i-th augmentation, where it changes values.
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
    if tfms.random_place:
        out["place"] = np.minimum(stream(_SLOT_PLACE, 2), 1 - 2.0**-24)  # stays below 1 as float32
    if tfms.moves_pixels:
        out["linear"] = _linear(tfms, stream, len(rows))
        out["middle"] = out["linear"].sum(axis=2) * (tfms.sz / 2)
    for i, aug in tfms.augs_of(PixelAugmentation):
        out[f"aug{i}"] = aug.parameters(stream(_SLOT_AUGS + i, aug.n_uniforms), tfms.sz)
    return {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in out.items()}


def _zoom(tfms: TransformSpec, stream: Callable[[int, int], Floats], n: int) -> Floats:
    zoom = np.ones(n)
    if tfms.max_zoom is not None:
        u = stream(_SLOT_ZOOM, 2)
        zoom = np.where(u[:, 0] < _ZOOM_P, 1 + u[:, 1] * (tfms.max_zoom - 1), zoom)
    for i, aug in tfms.augs_of(ZoomAugmentation):
        zoom = zoom * aug.parameters(stream(_SLOT_AUGS + i, aug.n_uniforms), tfms.sz)
    return zoom


def _linear(tfms: TransformSpec, stream: Callable[[int, int], Floats], n: int) -> Floats:
    linear: Floats = np.tile(np.eye(2), (n, 1, 1))
    for i, aug in tfms.augs_of(GeometricAugmentation):  # from crop to image: what is applied last meets the crop first
        linear = linear @ aug.parameters(stream(_SLOT_AUGS + i, aug.n_uniforms), tfms.sz)
    return linear
