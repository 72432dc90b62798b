"""Nodes of the DALI graph that make the crop of an image. Used by `graphs` alone."""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from fastclf.data.transforms.crop_geometry import CropBox, crop_box
from fastclf.data.transforms.sampling import Split, sample
from fastclf.data.transforms.spec import TransformSpec

_TYPES = {np.dtype(np.float32): types.FLOAT, np.dtype(np.int64): types.INT64, np.dtype(np.int32): types.INT32}


def number_input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    """Return one of the graph's inputs, fed by name for every batch."""
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, device="cpu")


def as_float(node: Any) -> Any:
    """Convert whole numbers to float32."""
    return fn.cast(node, dtype=types.FLOAT)


class Nodes:
    """Numbers as nodes of the graph that is being built, see `crop_geometry.Algebra`; parameters are its inputs."""

    def __init__(self, tfms: TransformSpec) -> None:
        self._example = sample(tfms, 0, 0, Split.TRAIN, np.zeros(1, np.int64))

    def parameter(self, name: str) -> Any:
        """See `Algebra`; the input has the shape and type of what is sampled."""
        values = self._example[name]
        return number_input(name, values.ndim - 1, _TYPES[values.dtype])

    def pair(self, name: str) -> tuple[Any, Any]:
        """See `Algebra`."""
        both = self.parameter(name)
        return both[0], both[1]

    def as_float(self, number: Any) -> Any:
        """See `Algebra`."""
        return as_float(number)

    def floor(self, number: Any) -> Any:
        """See `Algebra`."""
        return fn.cast(math.floor(number), dtype=types.INT64)

    def minimum(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return math.min(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return math.max(a, b)

    def sqrt(self, number: Any) -> Any:
        """See `Algebra`."""
        return math.sqrt(number)


def crop(tfms: TransformSpec, image: Any, of: Nodes) -> Any:
    """Make the sz x sz crop: scale, place, border and geometry, in one or two resamplings."""
    spread, shape = tfms.margin + tfms.pad, image.shape(dtype=types.INT64)
    box = crop_box(tfms, shape[0], shape[1], of)
    image = fn.resize(
        image,
        roi_start=fn.stack(*(side.source_low for side in box)),
        roi_end=fn.stack(*(side.source_high for side in box)),
        size=fn.stack(*(as_float(side.high - side.low) for side in box)),
        dtype=types.FLOAT,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        subpixel_scale=False,
    )
    if spread:
        image = _mirrored(image, spread)
    if tfms.moves_pixels:
        return fn.warp_affine(image, matrix=_matrix(tfms, box, spread, of), size=[float(tfms.sz)] * 2)
    if spread:
        start = fn.stack(*(fn.cast(side.start - side.low + spread, dtype=types.INT32) for side in box))
        return fn.slice(image, start=start, shape=[tfms.sz] * 2, axes=[0, 1])
    return image


def _mirrored(image: Any, width: int) -> Any:
    """Mirror the outermost pixels outwards; DALI's warp would repeat the last one."""
    shape = image.shape(dtype=types.INT32)
    top = fn.flip(image[:width], horizontal=0, vertical=1)
    bottom = fn.flip(image[shape[0] - width :], horizontal=0, vertical=1)
    tall = fn.cat(top, image, bottom, axis=0)
    left = fn.flip(tall[:, :width], horizontal=1, vertical=0)
    right = fn.flip(tall[:, shape[1] - width :], horizontal=1, vertical=0)
    return fn.cat(left, tall, right, axis=1)


def _matrix(tfms: TransformSpec, box: CropBox, spread: int, of: Nodes) -> Any:
    """Build the `[2, 3]` map from crop to resized part, over (x, y), that keeps the crop's middle in place."""
    start = fn.stack(*(as_float(side.start - side.low) + float(spread) for side in (box.x, box.y)))
    shift = fn.reshape(start + tfms.sz / 2 - of.parameter("middle"), shape=[2, 1])
    return fn.cat(of.parameter("linear"), shift, axis=1)
