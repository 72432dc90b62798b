"""Which part of a picture a window shows: worked out once, over NumPy arrays here or over the nodes of a DALI graph.

The same sums run in both because both have operators; what else they need is an `Algebra`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import CropType, Transforms


class Algebra(Protocol):
    """What the sums need beside operators. A number is one per picture of a batch."""

    def whole_number(self, name: str) -> Any:
        """The parameter of this name, int64."""

    def number(self, name: str) -> Any:
        """The parameter of this name, float32."""

    def pair(self, name: str) -> tuple[Any, Any]:
        """Both numbers of the parameter of this name, float32: of y and of x."""

    def as_float(self, number: Any) -> Any:
        """Converts whole numbers to float32."""

    def floor(self, number: Any) -> Any:
        """The largest whole number that is not above, int64."""

    def least(self, a: Any, b: Any) -> Any:
        """The smaller one."""

    def most(self, a: Any, b: Any) -> Any:
        """The larger one."""

    def sqrt(self, number: Any) -> Any:
        """The square root."""


class Arrays:
    """Numbers as arrays `[N]`, with the parameters of `draws.draw`."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def whole_number(self, name: str) -> npt.NDArray[np.int64]:
        """See `Algebra`."""
        return self._parameters[name]

    def number(self, name: str) -> npt.NDArray[np.float32]:
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

    def least(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return np.minimum(a, b)

    def most(self, a: Any, b: Any) -> Any:
        """See `Algebra`."""
        return np.maximum(a, b)

    def sqrt(self, number: Any) -> Any:
        """See `Algebra`."""
        return np.sqrt(number)


class Seen(NamedTuple):
    """One axis of the part that is seen.

    Attributes:
        start: where the window begins, in scaled pixels.
        low: where the part begins that is resized, in scaled pixels.
        high: where it ends.
        source_low: where it begins in the picture's own pixels.
        source_high: where it ends there.
    """

    start: Any
    low: Any
    high: Any
    source_low: Any
    source_high: Any


def seen_of(tfms: Transforms, height: Any, width: Any, of: Algebra) -> tuple[Seen, Seen]:
    """Works out what is seen of pictures of a shape: the axes y and x."""
    places = of.pair("place") if tfms.places else (None, None)
    axes = (_rectangle if tfms.crop_type is CropType.GOOGLENET else _scaled)(tfms, height, width, of)
    return _seen(axes[0], tfms, places[0], of), _seen(axes[1], tfms, places[1], of)


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


def _scaled(tfms: Transforms, height: Any, width: Any, of: Algebra) -> list[_Axis]:
    """Scales the shorter side, or for NO both sides, to `scaled`; the longer side is rounded down."""
    target = of.whole_number("scaled")
    short = of.least(height, width)
    axes = []
    for n in (height, width):
        scaled = target if tfms.crop_type is CropType.NO else n * target // short
        axes.append(_Axis(scaled, 0, scaled, 0.0, of.as_float(n) / of.as_float(scaled)))
    return axes


def _rectangle(tfms: Transforms, height: Any, width: Any, of: Algebra) -> list[_Axis]:
    """Scales a rectangle of a drawn area and aspect, shrunk where it does not fit, to the window."""
    corner, sides = of.pair("corner"), (of.as_float(height), of.as_float(width))
    area, aspect = of.number("area") * sides[0] * sides[1], of.number("aspect")
    wanted = of.sqrt(area / aspect), of.sqrt(area * aspect)
    fit = of.least(1.0, of.least(sides[0] / wanted[0], sides[1] / wanted[1]))
    axes = []
    for i, side in enumerate(sides):
        extent = wanted[i] * fit
        step, origin = extent / float(tfms.sz), corner[i] * (side - extent)
        axes.append(_Axis(tfms.sz, -of.floor(origin / step), of.floor((side - origin) / step + 1e-3), origin, step))
    return axes


def _seen(axis: _Axis, tfms: Transforms, place: Any | None, of: Algebra) -> Seen:
    room = axis.n - tfms.sz
    if place is None:  # the middle; an odd pixel goes to the even side, as in torchvision's CenterCrop
        start = (room + ((room // 2) & 1)) // 2
    else:
        start = of.floor(place * of.as_float(room + 2 * tfms.pad + 1)) - tfms.pad
    low, high = start, start + tfms.sz
    if tfms.margin + tfms.pad:
        low, high = of.most(axis.first, start - tfms.margin), of.least(axis.last, start + tfms.sz + tfms.margin)
    source_low, source_high = (axis.origin + of.as_float(end) * axis.step for end in (low, high))
    return Seen(start, low, high, source_low, source_high)
