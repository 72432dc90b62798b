"""The augmentations of fastclf: each a class with its arguments, its random parameters and what it does with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.argument_checks import check_count, check_range
from fastclf.arrays import Floats
from fastclf.data.transforms.base import (
    Augmentation,
    GeometricAugmentation,
    PixelAugmentation,
    ZoomAugmentation,
)
from fastclf.ops.crop_resize import PixelOp


@dataclass(frozen=True)
class RandomFlip(GeometricAugmentation):
    """Mirrors left and right with probability 0.5."""

    exact = True

    def parameters(self, u: Floats, sz: int) -> Floats:
        """See `GeometricAugmentation`."""
        out = np.tile(np.eye(2), (len(u), 1, 1))
        out[u[:, 0] < 0.5, 0, 0] = -1
        return out


@dataclass(frozen=True)
class RandomDihedral(GeometricAugmentation):
    """One of the eight symmetries of the square, all equally likely."""

    exact = True

    def parameters(self, u: Floats, sz: int) -> Floats:
        """See `GeometricAugmentation`."""
        eye, quarter = np.eye(2), np.array([[0.0, -1.0], [1.0, 0.0]])
        turns = [np.linalg.matrix_power(quarter, k) for k in range(4)]
        symmetries = np.stack([turn @ mirror for mirror in (eye, np.diag([-1.0, 1.0])) for turn in turns])
        return symmetries[(u[:, 0] * 8).astype(np.int64)]


@dataclass(frozen=True)
class RandomRotate(GeometricAugmentation):
    """Turns by an angle uniform in +-deg degrees with probability p; beyond the border the image is mirrored."""

    deg: float
    p: float = 0.75
    n_uniforms = 2

    def __post_init__(self) -> None:
        check_range("RandomRotate", "deg", self.deg, 0, 180, "Pass degrees, e.g. RandomRotate(10).")
        check_range("RandomRotate", "p", self.p, 0, 1, "Pass a probability.")

    def parameters(self, u: Floats, sz: int) -> Floats:
        """See `GeometricAugmentation`."""
        angle = np.where(u[:, 0] < self.p, np.deg2rad((2 * u[:, 1] - 1) * self.deg), 0.0)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)

    def reach(self) -> float:
        """See `GeometricAugmentation.reach`."""
        angle = math.radians(min(self.deg, 45.0))
        return math.cos(angle) + math.sin(angle)


@dataclass(frozen=True)
class RandomStretch(GeometricAugmentation):
    """Stretches by 1 + U(0, max_stretch) along x or along y."""

    max_stretch: float
    n_uniforms = 2

    def __post_init__(self) -> None:
        check_range("RandomStretch", "max_stretch", self.max_stretch, 0, 10, "Pass a share, e.g. RandomStretch(0.1).")

    def parameters(self, u: Floats, sz: int) -> Floats:
        """See `GeometricAugmentation`."""
        shrink, along_x = 1 / (1 + u[:, 1] * self.max_stretch), u[:, 0] < 0.5
        out = np.zeros((len(u), 2, 2))
        out[:, 0, 0] = np.where(along_x, shrink, 1.0)
        out[:, 1, 1] = np.where(along_x, 1.0, shrink)
        return out


@dataclass(frozen=True)
class RandomZoom(ZoomAugmentation):
    """Enlarges by 1 + U(zoom_min, zoom_max), as part of the one resize, before the crop is cut out."""

    zoom_max: float
    zoom_min: float = 0.0

    def __post_init__(self) -> None:
        check_range(
            "RandomZoom", "zoom_min", self.zoom_min, 0, 10, "An image is only ever enlarged, e.g. RandomZoom(0.1)."
        )
        check_range("RandomZoom", "zoom_max", self.zoom_max, self.zoom_min, 10, "Pass zoom_max >= zoom_min.")

    def parameters(self, u: Floats, sz: int) -> Floats:
        """See `ZoomAugmentation`."""
        return 1 + self.zoom_min + u[:, 0] * (self.zoom_max - self.zoom_min)


@dataclass(frozen=True)
class RandomLighting(PixelAugmentation):
    """Changes brightness and contrast: clip((x - m) * c + m + b, 0, 1), m the mean of the image's crop.

    b is uniform in +-balance; with u uniform in +-contrast, c = 1 + u if u >= 0, else 1 / (1 - u).
    """

    balance: float
    contrast: float
    n_uniforms = 2
    native = PixelOp.BRIGHTNESS_CONTRAST

    def __post_init__(self) -> None:
        check_range("RandomLighting", "balance", self.balance, 0, 1, "Pass a share of the full range, e.g. 0.05.")
        check_range("RandomLighting", "contrast", self.contrast, 0, 10, "Pass a share, e.g. 0.05.")

    def parameters(self, u: Floats, sz: int) -> Floats:
        """Return b and c, ``[N, 2]``.

        Args:
            u: see `Augmentation.parameters`, as ``sz``.
            sz: see there.
        """
        change = (2 * u[:, 1] - 1) * self.contrast
        factor = np.where(change >= 0, 1 + change, 1 / (1 + np.abs(change)))
        return np.stack([(2 * u[:, 0] - 1) * self.balance, factor], axis=1)

    def nodes(self, dali: Any, images: Any, parameters: Any, white: float) -> Any:
        """See `PixelAugmentation.nodes`."""
        parameters = parameters.gpu() if images.device == "gpu" else parameters
        brightness, contrast = parameters[0] * white, parameters[1]
        mean = dali.fn.reductions.mean(images)
        return dali.math.clamp(images * contrast + (mean * (1.0 - contrast) + brightness), 0.0, white)


@dataclass(frozen=True)
class RandomBlur(PixelAugmentation):
    """Blurs with probability p by a Gaussian over 2 k - 1 pixels, k one of `strengths`."""

    strengths: int | Sequence[int] = 5
    p: float = 0.5
    n_uniforms = 2

    def __post_init__(self) -> None:
        given = self.strengths if isinstance(self.strengths, Iterable) else (self.strengths,)
        fix = "Pass e.g. RandomBlur(3) or RandomBlur([2, 3, 4])."
        strengths = tuple(check_count("RandomBlur", "each of strengths", k, 1, 50, fix=fix) for k in given)
        if not strengths:
            raise ValueError(f"RandomBlur: strengths must not be empty. {fix}")
        check_range("RandomBlur", "p", self.p, 0, 1, "Pass a probability.")
        object.__setattr__(self, "strengths", strengths)

    def parameters(self, u: Floats, sz: int) -> npt.NDArray[np.int32]:
        """Return the width of the Gaussian, ``[N]``; 1 for none.

        Args:
            u: see `Augmentation.parameters`, as ``sz``.
            sz: see there.
        """
        widths = 2 * np.array(self.strengths, np.int32) - 1
        return np.where(u[:, 0] < self.p, widths[(u[:, 1] * len(widths)).astype(np.int64)], np.int32(1))

    def nodes(self, dali: Any, images: Any, parameters: Any, white: float) -> Any:
        """See `PixelAugmentation.nodes`."""
        return dali.fn.gaussian_blur(images, window_size=parameters)


@dataclass(frozen=True)
class Cutout(PixelAugmentation):
    """Blackens n_holes squares of `length` pixels, each about a random pixel, in the finished crop."""

    n_holes: int
    length: int

    def __post_init__(self) -> None:
        for name, value in (("n_holes", self.n_holes), ("length", self.length)):
            whole = check_count("Cutout", name, value, fix="Pass e.g. Cutout(1, 16).")
            object.__setattr__(self, name, whole)

    @property
    def n_uniforms(self) -> int:
        """Two numbers per hole."""
        return 2 * self.n_holes

    def parameters(self, u: Floats, sz: int) -> Floats:
        """Return the holes' upper left corners (y, x, y, x, ...), ``[N, 2 n_holes]``.

        Args:
            u: see `Augmentation.parameters`, as ``sz``.
            sz: see there.
        """
        return np.floor(u * sz) - self.length // 2

    def nodes(self, dali: Any, images: Any, parameters: Any, white: float) -> Any:
        """See `PixelAugmentation.nodes`."""
        shape = [float(self.length)] * (2 * self.n_holes)
        return dali.fn.erase(images, anchor=parameters, shape=shape, axes=[0, 1], fill_value=0.0)


transforms_basic: list[Augmentation] = [RandomRotate(10), RandomLighting(0.05, 0.05)]
"""Small turns and changes of brightness and contrast."""
transforms_side_on: list[Augmentation] = [*transforms_basic, RandomFlip()]
"""For photographs taken from the side."""
transforms_top_down: list[Augmentation] = [*transforms_basic, RandomDihedral()]
"""For images taken from above: satellites, microscopes."""
