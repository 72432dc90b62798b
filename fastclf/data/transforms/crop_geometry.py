"""Which part of an image a crop shows: worked out once, over NumPy arrays here or over the nodes of a DALI graph.

The same sums run in both because both have operators; what else they need is an `Algebra`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import CropType, TransformSpec


class Algebra(Protocol):
    """What the sums need beside operators. A number is one per image of a batch."""

    def parameter(self, name: str) -> Any:
        """Return the parameter of this name, see `sampling.sample`."""

    def pair(self, name: str) -> tuple[Any, Any]:
        """Return both numbers of the parameter of this name: of y and of x."""

    def as_float(self, number: Any) -> Any:
        """Convert whole numbers to float32."""

    def floor(self, number: Any) -> Any:
        """Return the largest whole number that is not above, int64."""

    def minimum(self, a: Any, b: Any) -> Any:
        """Return the smaller one."""

    def maximum(self, a: Any, b: Any) -> Any:
        """Return the larger one."""

    def sqrt(self, number: Any) -> Any:
        """Return the square root."""


class Arrays:
    """Numbers as arrays `[N]`, with the parameters of `sampling.sample`."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def parameter(self, name: str) -> npt.NDArray[Any]:
        """See `Algebra`."""
        return self._parameters[name]

    def pair(self, name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """See `Algebra`."""
        return self._parameters[name][:, 0], self._parameters[name][:, 1]

    def as_float(self, number: Any) -> npt.NDArray[np.float32]:
        """See `Algebra`."""
        return np.asarray(number, np.float32)

    def floor(self, number: Any) -> npt.NDArray[np.int64]:
        """See `Algebra`."""
        found: npt.NDArray[np.int64] = np.floor(number).astype(np.int64)
        return found

    def minimum(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return np.minimum(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return np.maximum(a, b)

    def sqrt(self, number: Any) -> Any:
        """See `Algebra`."""
        return np.sqrt(number)


class Side(NamedTuple):
    """One axis of a crop box.

    Attributes:
        start: where the crop begins, in scaled pixels.
        low: where the part begins that is resized, in scaled pixels.
        high: where it ends.
        source_low: where it begins in the image's own pixels.
        source_high: where it ends there.
    """

    start: Any
    low: Any
    high: Any
    source_low: Any
    source_high: Any


class CropBox(NamedTuple):
    """Where the crop lies, and the part around it that has to be resized."""

    y: Side
    x: Side


def crop_box(tfms: TransformSpec, height: Any, width: Any, of: Algebra) -> CropBox:
    """Return where the crops of images of a shape lie."""
    places = of.pair("place") if tfms.random_place else (None, None)
    y, x = (_rectangle if tfms.crop_type is CropType.GOOGLENET else _scaled)(tfms, height, width, of)
    return CropBox(_side(y, tfms, places[0], of), _side(x, tfms, places[1], of))


@dataclass(frozen=True)
class _Axis:
    """One axis of the scaled image.

    Attributes:
        n: how many scaled pixels the crop may be placed in.
        first: first scaled pixel that the image has; negative when it goes on before pixel 0.
        last: end of the scaled pixels that the image has.
        origin: where scaled pixel 0 lies in the image, in its own pixels.
        step: the image's pixels per scaled pixel.
    """

    n: Any
    first: Any
    last: Any
    origin: Any
    step: Any


def _scaled(tfms: TransformSpec, height: Any, width: Any, of: Algebra) -> list[_Axis]:
    """Scale the shorter side, or for NO both sides, to `scaled`; the longer side is rounded down."""
    target = of.parameter("scaled")
    short = of.minimum(height, width)
    axes = []
    for n in (height, width):
        scaled = target if tfms.crop_type is CropType.NO else n * target // short
        axes.append(_Axis(scaled, 0, scaled, 0.0, of.as_float(n) / of.as_float(scaled)))
    return axes


def _rectangle(tfms: TransformSpec, height: Any, width: Any, of: Algebra) -> list[_Axis]:
    """Scale a rectangle of a random area and aspect, shrunk where it does not fit, to the crop."""
    corner, sides = of.pair("corner"), (of.as_float(height), of.as_float(width))
    area, aspect = of.parameter("area") * sides[0] * sides[1], of.parameter("aspect")
    wanted = of.sqrt(area / aspect), of.sqrt(area * aspect)
    fit = of.minimum(1.0, of.minimum(sides[0] / wanted[0], sides[1] / wanted[1]))
    axes = []
    for i, side in enumerate(sides):
        extent = wanted[i] * fit
        step, origin = extent / float(tfms.sz), corner[i] * (side - extent)
        axes.append(_Axis(tfms.sz, -of.floor(origin / step), of.floor((side - origin) / step + 1e-3), origin, step))
    return axes


def _side(axis: _Axis, tfms: TransformSpec, place: Any | None, of: Algebra) -> Side:
    spare = axis.n - tfms.sz
    if place is None:  # the middle; an odd pixel goes to the even side, as in torchvision's CenterCrop
        start = (spare + ((spare // 2) & 1)) // 2
    else:
        start = of.floor(place * of.as_float(spare + 2 * tfms.pad + 1)) - tfms.pad
    low, high = start, start + tfms.sz
    if tfms.margin + tfms.pad:
        low, high = of.maximum(axis.first, start - tfms.margin), of.minimum(axis.last, start + tfms.sz + tfms.margin)
    source_low, source_high = (axis.origin + of.as_float(end) * axis.step for end in (low, high))
    return Side(start, low, high, source_low, source_high)
