"""What is done to a picture, declared as plain data.

A `Transforms` says how a picture becomes `[3, sz, sz]` numbers; `draws` turns its random parts into parameters and
`pipeline` draws the pixels. All geometry is about the middle of the cut-out window, which makes it one 2 x 2 matrix.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

Floats: TypeAlias = npt.NDArray[np.float64]
Stats: TypeAlias = tuple[Sequence[float], Sequence[float]]


class CropType(enum.Enum):
    """How a picture of any shape becomes a square.

    RANDOM and CENTER cut a square out, NO squashes the whole picture, GOOGLENET cuts out a random rectangle of 8 to
    100 % of the area with sides between 3:4 and 4:3.
    """

    RANDOM = 1
    CENTER = 2
    NO = 3
    GOOGLENET = 4


def _check(function: str, argument: str, value: float, low: float, high: float, fix: str) -> None:
    if not (isinstance(value, int | float | np.number) and low <= value <= high):
        raise ValueError(f"{function}: {argument} must be a number from {low:g} to {high:g}, got {value!r}. {fix}")


@dataclass(frozen=True)
class Geometry:
    """A random linear map about the middle of the window.

    Attributes:
        n_draws: how many uniform numbers one picture takes.
    """

    n_draws: ClassVar[int] = 1

    def matrices(self, u: Floats) -> Floats:
        """Maps window to picture: `[N, n_draws]` uniform numbers to `[N, 2, 2]` matrices over (x, y)."""
        raise NotImplementedError

    def reach(self) -> float:
        """How far the map can reach: the largest sum of absolute values in a matrix row."""
        return 1.0


@dataclass(frozen=True)
class RandomFlip(Geometry):
    """Mirrors left and right with probability 0.5."""

    def matrices(self, u: Floats) -> Floats:
        """See `Geometry.matrices`."""
        out = np.tile(np.eye(2), (len(u), 1, 1))
        out[u[:, 0] < 0.5, 0, 0] = -1
        return out


@dataclass(frozen=True)
class RandomDihedral(Geometry):
    """One of the eight symmetries of the square, all equally likely."""

    def matrices(self, u: Floats) -> Floats:
        """See `Geometry.matrices`."""
        eye, quarter = np.eye(2), np.array([[0.0, -1.0], [1.0, 0.0]])
        turns = [np.linalg.matrix_power(quarter, k) for k in range(4)]
        symmetries = np.stack([turn @ mirror for mirror in (eye, np.diag([-1.0, 1.0])) for turn in turns])
        return symmetries[(u[:, 0] * 8).astype(np.int64)]


@dataclass(frozen=True)
class RandomRotate(Geometry):
    """Turns by an angle uniform in +-deg degrees with probability p; beyond the border the picture is mirrored."""

    deg: float
    p: float = 0.75
    n_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check("RandomRotate", "deg", self.deg, 0, 180, "Pass degrees, e.g. RandomRotate(10).")
        _check("RandomRotate", "p", self.p, 0, 1, "Pass a probability.")

    def matrices(self, u: Floats) -> Floats:
        """See `Geometry.matrices`."""
        angle = np.where(u[:, 0] < self.p, np.deg2rad((2 * u[:, 1] - 1) * self.deg), 0.0)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], axis=1)

    def reach(self) -> float:
        """See `Geometry.reach`."""
        angle = math.radians(min(self.deg, 45.0))
        return math.cos(angle) + math.sin(angle)


@dataclass(frozen=True)
class RandomStretch(Geometry):
    """Stretches by 1 + U(0, max_stretch) along x or along y."""

    max_stretch: float
    n_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check("RandomStretch", "max_stretch", self.max_stretch, 0, 10, "Pass a share, e.g. RandomStretch(0.1).")

    def matrices(self, u: Floats) -> Floats:
        """See `Geometry.matrices`."""
        shrink, along_x = 1 / (1 + u[:, 1] * self.max_stretch), u[:, 0] < 0.5
        out = np.zeros((len(u), 2, 2))
        out[:, 0, 0] = np.where(along_x, shrink, 1.0)
        out[:, 1, 1] = np.where(along_x, 1.0, shrink)
        return out


@dataclass(frozen=True)
class RandomZoom:
    """Enlarges by 1 + U(zoom_min, zoom_max), as part of the one resize; the window is then cut from the larger picture."""

    zoom_max: float
    zoom_min: float = 0.0
    n_draws: ClassVar[int] = 1

    def __post_init__(self) -> None:
        _check("RandomZoom", "zoom_min", self.zoom_min, 0, 10, "A picture is only ever enlarged, e.g. RandomZoom(0.1).")
        _check("RandomZoom", "zoom_max", self.zoom_max, self.zoom_min, 10, "Pass zoom_max >= zoom_min.")

    def factors(self, u: Floats) -> Floats:
        """Computes the enlargement: `[N, 1]` uniform numbers to `[N]`."""
        return 1 + self.zoom_min + u[:, 0] * (self.zoom_max - self.zoom_min)


@dataclass(frozen=True)
class RandomLighting:
    """Changes brightness and contrast: clip((x - m) * c + m + b, 0, 1), m the mean of the picture's window.

    b is uniform in +-balance; with u uniform in +-contrast, c = 1 + u if u >= 0, else 1 / (1 - u).
    """

    balance: float
    contrast: float
    n_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        _check("RandomLighting", "balance", self.balance, 0, 1, "Pass a share of the full range, e.g. 0.05.")
        _check("RandomLighting", "contrast", self.contrast, 0, 10, "Pass a share, e.g. 0.05.")

    def values(self, u: Floats) -> Floats:
        """Computes b and c: `[N, 2]` uniform numbers to `[N, 2]`."""
        change = (2 * u[:, 1] - 1) * self.contrast
        factor = np.where(change >= 0, 1 + change, 1 / (1 + np.abs(change)))
        return np.stack([(2 * u[:, 0] - 1) * self.balance, factor], axis=1)


@dataclass(frozen=True)
class RandomBlur:
    """Blurs with probability p by a Gaussian over 2 k - 1 pixels, k drawn from `strengths`."""

    strengths: int | Sequence[int] = 5
    p: float = 0.5
    n_draws: ClassVar[int] = 2

    def __post_init__(self) -> None:
        strengths = (self.strengths,) if isinstance(self.strengths, int) else tuple(self.strengths)
        if not strengths or any(not isinstance(k, int) or not 1 <= k <= 50 for k in strengths):
            raise ValueError(
                f"RandomBlur: strengths must be whole numbers from 1 to 50, got {self.strengths!r}. "
                "Pass e.g. RandomBlur(3) or RandomBlur([2, 3, 4])."
            )
        _check("RandomBlur", "p", self.p, 0, 1, "Pass a probability.")
        object.__setattr__(self, "strengths", strengths)

    def windows(self, u: Floats) -> npt.NDArray[np.int32]:
        """Computes the width of the Gaussian, 1 for none: `[N, 2]` uniform numbers to `[N]`."""
        widths = 2 * np.array(self.strengths, np.int32) - 1
        return np.where(u[:, 0] < self.p, widths[(u[:, 1] * len(widths)).astype(np.int64)], np.int32(1))


@dataclass(frozen=True)
class Cutout:
    """Blackens n_holes squares of `length` pixels, each about a random pixel, in the finished window."""

    n_holes: int
    length: int

    def __post_init__(self) -> None:
        for name, value in (("n_holes", self.n_holes), ("length", self.length)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"Cutout: {name} must be a whole number of at least 1, got {value!r}. Pass e.g. Cutout(1, 16)."
                )

    @property
    def n_draws(self) -> int:
        """Two numbers per hole."""
        return 2 * self.n_holes

    def corners(self, u: Floats, sz: int) -> Floats:
        """Computes the holes' upper left corners: `[N, 2 n_holes]` uniform numbers to `[N, 2 n_holes]` (y, x, y, x, ...)."""
        return np.floor(u * sz) - self.length // 2


Pixelwise: TypeAlias = RandomLighting | RandomBlur | Cutout
Augmentation: TypeAlias = Geometry | RandomZoom | Pixelwise

transforms_basic: list[Augmentation] = [RandomRotate(10), RandomLighting(0.05, 0.05)]
"""Small turns and changes of light."""
transforms_side_on: list[Augmentation] = [*transforms_basic, RandomFlip()]
"""For photographs taken from the side."""
transforms_top_down: list[Augmentation] = [*transforms_basic, RandomDihedral()]
"""For pictures taken from above: satellites, microscopes."""


@dataclass(frozen=True)
class Transforms:
    """How a picture becomes `[3, sz, sz]` float32.

    Attributes:
        sz: side of the square, in pixels.
        mean: what is subtracted, per channel, of values 0..1.
        std: what is divided by, per channel.
        crop_type: how the square is taken.
        augs: the augmentations, in order. The geometric ones are composed and drawn at once, the others follow.
        max_zoom: in training, the scale is multiplied by U(1, max_zoom) with probability 0.75.
        pad: in training, mirrored border in pixels around the scaled picture.
        train: whether the random parts apply.
    """

    sz: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_type: CropType = CropType.CENTER
    augs: tuple[Augmentation, ...] = ()
    max_zoom: float | None = None
    pad: int = 0
    train: bool = field(default=False, kw_only=True)

    @property
    def augments(self) -> bool:
        """Whether two draws of one picture can differ."""
        moves = self.crop_type in (CropType.RANDOM, CropType.GOOGLENET) or self.max_zoom is not None or self.pad > 0
        return self.train and (moves or bool(self.augs))

    @property
    def geometry(self) -> tuple[Geometry, ...]:
        """The augmentations that move pixels, in order."""
        return tuple(aug for aug in self.augs if isinstance(aug, Geometry))

    @property
    def margin(self) -> int:
        """How many pixels beyond the window the geometry may look."""
        reach = math.prod(aug.reach() for aug in self.geometry)
        inexact = any(not isinstance(aug, RandomFlip | RandomDihedral) for aug in self.geometry)
        return math.ceil(self.sz / 2 * (reach - 1)) + 1 if inexact else 0

    def describe(self) -> dict[str, Any]:
        """Says everything that decides the pixels, as JSON would: part of the fingerprint of activations."""
        return {
            "sz": self.sz,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_type": self.crop_type.name,
            "augs": [[type(aug).__name__, _jsonable(asdict(aug))] for aug in self.augs],
            "max_zoom": self.max_zoom,
            "pad": self.pad,
            "train": self.train,
        }

    def __call__(
        self, picture: npt.NDArray[Any], *, seed: int = 0, epoch: int = 0, row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Transforms one picture exactly as the loaders do.

        Args:
            picture: `[H, W, 3]` uint8, or float in 0..1 as from `open_image`.
            seed: with epoch and row, names the random draw of training transforms.
            epoch: see seed.
            row: see seed.

        Returns:
            `[3, sz, sz] float32`, normalised.

        Raises:
            ValueError: when the picture is not of that form.
        """
        from fastclf.data.image import transform_image

        return transform_image(self, picture, seed=seed, epoch=epoch, row=row)

    def denorm(self, x: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.float32]:
        """Undoes the normalisation: `[..., 3, h, w]` to `[..., h, w, 3] float32` in 0..1."""
        values = x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32)
        if values.ndim not in (3, 4) or values.shape[-3] != len(self.mean):
            raise ValueError(
                f"denorm: x must be pictures of shape [N, 3, h, w] or [3, h, w], got {list(values.shape)}. "
                "Pass a batch as the loaders give it."
            )
        pictures = np.moveaxis(values, -3, -1) * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        return pictures.clip(0, 1)


def _jsonable(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def tfms_from_stats(
    stats: Stats,
    sz: int,
    aug_tfms: Augmentation | Sequence[Augmentation] | None = None,
    max_zoom: float | None = None,
    pad: int = 0,
    crop_type: CropType | None = None,
) -> tuple[Transforms, Transforms]:
    """Declares the training and the validation transforms.

    Args:
        stats: mean and deviation of the three channels, of values 0..1.
        sz: side of the square the model sees, in pixels.
        aug_tfms: augmentations of training, e.g. `transforms_side_on`.
        max_zoom: with probability 0.75 the training picture is enlarged by U(1, max_zoom).
        pad: mirrored border of training pictures, in pixels.
        crop_type: how training takes the square (RANDOM by default). Validation squashes for NO, else cuts the centre.

    Returns:
        (training, validation).

    Raises:
        ValueError: when an argument is out of its range.
    """
    mean, std = (tuple(float(v) for v in values) for values in stats)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"tfms_from_stats: stats must be (mean, std) of 3 channels, std > 0, got {stats!r}.")
    if isinstance(sz, bool) or not isinstance(sz, int | np.integer) or not 4 <= sz <= 8192:
        raise ValueError(f"tfms_from_stats: sz must be a whole number from 4 to 8192, got {sz!r}. Pass e.g. sz=224.")
    if max_zoom is not None:
        _check("tfms_from_stats", "max_zoom", max_zoom, 1, 10, "Pass e.g. max_zoom=1.1, or None for no zoom.")
    augs = _as_augmentations(aug_tfms)
    crop_type = CropType.RANDOM if crop_type is None else CropType(crop_type)
    trn = Transforms(int(sz), mean, std, crop_type, augs, max_zoom, pad, train=True)
    if trn.margin > sz:
        raise ValueError(f"tfms_from_stats: aug_tfms must not turn so often, got {augs!r}. Keep one RandomRotate.")
    _check("tfms_from_stats", "pad", pad, 0, (sz - trn.margin) // 2, "A wider border would mirror the picture twice.")
    val_crop = CropType.NO if crop_type is CropType.NO else CropType.CENTER
    return trn, Transforms(int(sz), mean, std, val_crop)


def _as_augmentations(aug_tfms: Augmentation | Sequence[Augmentation] | None) -> tuple[Augmentation, ...]:
    if aug_tfms is None:
        return ()
    augs = (aug_tfms,) if isinstance(aug_tfms, Augmentation) else tuple(aug_tfms)
    for aug in augs:
        if not isinstance(aug, Augmentation):
            raise ValueError(
                f"tfms_from_stats: aug_tfms must hold augmentations such as RandomFlip(), got {aug!r}. "
                "Pass one of the lists, e.g. transforms_side_on."
            )
    return augs
