"""Nodes of the DALI graph that draw the part of a picture which is seen. Used by `pipeline` alone."""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvidia.dali import fn, math, types

from fastclf.data.transforms.crop_geometry import Seen, seen_of
from fastclf.data.transforms.spec import Transforms


def number_input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    """One of the graph's inputs, fed by name for every batch."""
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, device="cpu")


def as_float(node: Any) -> Any:
    """Converts whole numbers to float32."""
    return fn.cast(node, dtype=types.FLOAT)


class Nodes:
    """Numbers as nodes of the graph that is being built, see `placing.Algebra`; parameters are its inputs."""

    def whole_number(self, name: str) -> Any:
        """See `Algebra`."""
        return number_input(name, 0, types.INT64)

    def number(self, name: str) -> Any:
        """See `Algebra`."""
        return number_input(name, 0, types.FLOAT)

    def pair(self, name: str) -> tuple[Any, Any]:
        """See `Algebra`."""
        both = number_input(name, 1, types.FLOAT)
        return both[0], both[1]

    def as_float(self, number: Any) -> Any:
        """See `Algebra`."""
        return as_float(number)

    def floor(self, number: Any) -> Any:
        """See `Algebra`."""
        return fn.cast(math.floor(number), dtype=types.INT64)

    def least(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return math.min(a, b)

    def most(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return math.max(a, b)

    def sqrt(self, number: Any) -> Any:
        """See `Algebra`."""
        return math.sqrt(number)


def window(tfms: Transforms, picture: Any) -> Any:
    """Draws the sz x sz window: scale, place, border and geometry, in one or two resamplings."""
    spread, shape = tfms.margin + tfms.pad, picture.shape(dtype=types.INT64)
    seen = seen_of(tfms, shape[0], shape[1], Nodes())
    picture = fn.resize(
        picture,
        roi_start=fn.stack(*(axis.source_low for axis in seen)),
        roi_end=fn.stack(*(axis.source_high for axis in seen)),
        size=fn.stack(*(as_float(axis.high - axis.low) for axis in seen)),
        dtype=types.FLOAT,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        subpixel_scale=False,
    )
    if spread:
        picture = _mirrored(picture, spread)
    if tfms.geometry:
        return fn.warp_affine(picture, matrix=_matrix(tfms, seen, spread), size=[float(tfms.sz)] * 2)
    if spread:
        start = fn.stack(*(fn.cast(axis.start - axis.low + spread, dtype=types.INT32) for axis in seen))
        return fn.slice(picture, start=start, shape=[tfms.sz] * 2, axes=[0, 1])
    return picture


def _mirrored(picture: Any, width: int) -> Any:
    """Mirrors the outermost pixels outwards; DALI's warp would repeat the last one."""
    shape = picture.shape(dtype=types.INT32)
    top = fn.flip(picture[:width], horizontal=0, vertical=1)
    bottom = fn.flip(picture[shape[0] - width :], horizontal=0, vertical=1)
    tall = fn.cat(top, picture, bottom, axis=0)
    left = fn.flip(tall[:, :width], horizontal=1, vertical=0)
    right = fn.flip(tall[:, shape[1] - width :], horizontal=1, vertical=0)
    return fn.cat(left, tall, right, axis=1)


def _matrix(tfms: Transforms, seen: Sequence[Seen], spread: int) -> Any:
    """Builds the `[2, 3]` map from window to resized picture, over (x, y), that keeps the window's middle in place."""
    start = fn.stack(*(as_float(axis.start - axis.low) + float(spread) for axis in reversed(seen)))
    shift = fn.reshape(start + tfms.sz / 2 - number_input("middle", 1, types.FLOAT), shape=[2, 1])
    return fn.cat(number_input("linear", 2, types.FLOAT), shift, axis=1)


def lighting(picture: Any, values: Any, top: float) -> Any:
    """Changes the light of a batch by `[2]` brightness and contrast, see `RandomLighting`."""
    values = values.gpu() if picture.device == "gpu" else values
    brightness, contrast = values[0] * top, values[1]
    mean = fn.reductions.mean(picture)
    return math.clamp(picture * contrast + (mean * (1.0 - contrast) + brightness), 0.0, top)
