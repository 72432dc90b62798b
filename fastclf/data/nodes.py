"""Nodes of the DALI graph that work out which part of a picture is seen, and draw it. Used by `pipeline` alone."""

# DALI makes most of its functions at run time, so its types are not known.
# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, math, types

from fastclf.data.transforms import CropType, Transforms


def number_input(name: str, ndim: int, dtype: Any, layout: str | None = None) -> Any:
    """One of the graph's inputs, fed by name for every batch."""
    return fn.external_source(name=name, ndim=ndim, dtype=dtype, layout=layout, device="cpu")


def as_float(node: Any) -> Any:
    """Converts whole numbers to float32."""
    return fn.cast(node, dtype=types.FLOAT)


def window(tfms: Transforms, picture: Any) -> Any:
    """Draws the sz x sz window: scale, place, border and geometry, in one or two resamplings."""
    spread = tfms.margin + tfms.pad
    placed = placed_in(tfms, picture.shape(dtype=types.INT64))
    picture = fn.resize(
        picture,
        roi_start=placed.low,
        roi_end=placed.high,
        size=placed.size,
        dtype=types.FLOAT,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        subpixel_scale=False,
    )
    if spread:
        picture = _mirrored(picture, spread)
    if tfms.geometry:
        return fn.warp_affine(picture, matrix=matrix_of(tfms, placed.seen, spread), size=[float(tfms.sz)] * 2)
    if spread:
        start = fn.stack(*(fn.cast(part.start - part.low + spread, dtype=types.INT32) for part in placed.seen))
        return fn.slice(picture, start=start, shape=[tfms.sz] * 2, axes=[0, 1])
    return picture


class Placed(NamedTuple):
    """The part that is seen: its corners in the picture's own pixels, the size it is resized to, and its two axes."""

    low: Any
    high: Any
    size: Any
    seen: list[_Seen]


def placed_in(tfms: Transforms, shape: Any) -> Placed:
    """Works out what is seen of a picture of a shape, with the parameters that are fed."""
    place = number_input("place", 1, types.FLOAT) if tfms.places else None
    axes = _rectangle(tfms, shape) if tfms.crop_type is CropType.GOOGLENET else _scaled(tfms, shape)
    seen = [_seen(axis, tfms, None if place is None else place[i]) for i, axis in enumerate(axes)]
    return Placed(
        fn.stack(*(axis.source(part.low) for axis, part in zip(axes, seen, strict=True))),
        fn.stack(*(axis.source(part.high) for axis, part in zip(axes, seen, strict=True))),
        fn.stack(*(as_float(part.high - part.low) for part in seen)),
        seen,
    )


@dataclass(frozen=True)
class _Axis:
    """One axis of the scaled picture.

    Attributes:
        n: how many scaled pixels the window may be placed in.
        first: first scaled pixel that the picture has; negative when it goes on before pixel 0.
        last: end of the scaled pixels that the picture has.
        origin: where scaled pixel 0 lies in the picture, in its own pixels.
        step: the picture's pixels per scaled pixel.
    """

    n: Any
    first: Any
    last: Any
    origin: Any
    step: Any

    def source(self, position: Any) -> Any:
        """Maps a position in the scaled picture to the picture's own pixels."""
        return self.origin + as_float(position) * self.step


@dataclass(frozen=True)
class _Seen:
    """What one axis of the window needs: it begins at `start`, and `low`..`high` is resized; all in scaled pixels."""

    start: Any
    low: Any
    high: Any


def asas_float(node: Any) -> Any:
    """Converts whole numbers to float32."""
    return fn.cast(node, dtype=types.FLOAT)


def _scaled(tfms: Transforms, shape: Any) -> list[_Axis]:
    """Scales the shorter side, or for NO both sides, to `scaled`; the longer side is rounded down."""
    target = number_input("scaled", 0, types.INT64)
    short = math.min(shape[0], shape[1])
    axes = []
    for n in (shape[0], shape[1]):
        scaled = target if tfms.crop_type is CropType.NO else n * target // short
        axes.append(_Axis(scaled, 0, scaled, 0.0, as_float(n) / as_float(scaled)))
    return axes


def _rectangle(tfms: Transforms, shape: Any) -> list[_Axis]:
    """Scales a rectangle of a drawn area and aspect, shrunk where it does not fit, to the window."""
    corner, sides = number_input("corner", 1, types.FLOAT), [as_float(shape[0]), as_float(shape[1])]
    area = number_input("area", 0, types.FLOAT) * sides[0] * sides[1]
    aspect = number_input("aspect", 0, types.FLOAT)
    wanted = [math.sqrt(area / aspect), math.sqrt(area * aspect)]
    fit = math.min(1.0, math.min(sides[0] / wanted[0], sides[1] / wanted[1]))
    axes = []
    for i, side in enumerate(sides):
        extent = wanted[i] * fit
        step, origin = extent / float(tfms.sz), corner[i] * (side - extent)
        first = -fn.cast(math.floor(origin / step), dtype=types.INT64)
        last = fn.cast(math.floor((side - origin) / step + 1e-3), dtype=types.INT64)
        axes.append(_Axis(tfms.sz, first, last, origin, step))
    return axes


def _seen(axis: _Axis, tfms: Transforms, place: Any | None) -> _Seen:
    room = axis.n - tfms.sz
    if place is None:  # the middle; an odd pixel goes to the even side, as in torchvision's CenterCrop
        start = (room + ((room // 2) & 1)) // 2
    else:
        start = fn.cast(math.floor(place * as_float(room + 2 * tfms.pad + 1)), dtype=types.INT64) - tfms.pad
    if tfms.margin + tfms.pad == 0:
        return _Seen(start, start, start + tfms.sz)
    low = math.max(axis.first, start - tfms.margin)
    return _Seen(start, low, math.min(axis.last, start + tfms.sz + tfms.margin))


def _mirrored(picture: Any, width: int) -> Any:
    """Mirrors the outermost pixels outwards; DALI's warp would repeat the last one."""
    shape = picture.shape(dtype=types.INT32)
    top = fn.flip(picture[:width], horizontal=0, vertical=1)
    bottom = fn.flip(picture[shape[0] - width :], horizontal=0, vertical=1)
    tall = fn.cat(top, picture, bottom, axis=0)
    left = fn.flip(tall[:, :width], horizontal=1, vertical=0)
    right = fn.flip(tall[:, shape[1] - width :], horizontal=1, vertical=0)
    return fn.cat(left, tall, right, axis=1)


def matrix_of(tfms: Transforms, seen: list[_Seen], spread: int) -> Any:
    """Builds the `[2, 3]` map from window to resized picture, over (x, y), that keeps the window's middle in place."""
    start = fn.stack(*(as_float(part.start - part.low) + float(spread) for part in reversed(seen)))
    if not tfms.geometry:
        return fn.cat(types.Constant(np.eye(2, dtype=np.float32)), fn.reshape(start, shape=[2, 1]), axis=1)
    shift = fn.reshape(start + tfms.sz / 2 - number_input("middle", 1, types.FLOAT), shape=[2, 1])
    return fn.cat(number_input("linear", 2, types.FLOAT), shift, axis=1)


def lighting(picture: Any, values: Any, top: float) -> Any:
    """Changes the light of a batch by `[2]` brightness and contrast, see `RandomLighting`."""
    values = values.gpu() if picture.device == "gpu" else values
    brightness, contrast = values[0] * top, values[1]
    mean = fn.reductions.mean(picture)
    return math.clamp(picture * contrast + (mean * (1.0 - contrast) + brightness), 0.0, top)
