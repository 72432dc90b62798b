"""What is done to a picture, declared as plain data.

A `Transforms` says how a picture becomes `[3, sz, sz]` numbers; `draws` turns its random parts into parameters and
`pipeline` draws the pixels. All geometry is about the middle of the cut-out window, which makes it one 2 x 2 matrix.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.transforms.augmentations import (
    Augmentation,
    Cutout,
    Geometry,
    RandomBlur,
    RandomDihedral,
    RandomFlip,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    RandomZoom,
    check_range,
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "CropType",
    "Cutout",
    "RandomBlur",
    "RandomDihedral",
    "RandomFlip",
    "RandomLighting",
    "RandomRotate",
    "RandomStretch",
    "RandomZoom",
    "Transforms",
    "tfms_from_stats",
    "transforms_basic",
    "transforms_side_on",
    "transforms_top_down",
]

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
    def places(self) -> bool:
        """Whether the window's place in the scaled picture is drawn, not its middle."""
        return self.train and self.crop_type is not CropType.CENTER

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
        self, picture: npt.NDArray[Any] | Image.Image, *, seed: int = 0, epoch: int = 0, row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Transforms one picture exactly as the loaders do.

        Args:
            picture: `[H, W, 3]` uint8, or float in 0..1 as from `open_image`; or a PIL image, whose EXIF orientation
                is applied.
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
        check_range("tfms_from_stats", "max_zoom", max_zoom, 1, 10, "Pass e.g. max_zoom=1.1, or None for no zoom.")
    augs = _as_augmentations(aug_tfms)
    crop_type = CropType.RANDOM if crop_type is None else crop_type
    if not isinstance(crop_type, CropType):
        raise ValueError(f"tfms_from_stats: crop_type must be a CropType such as CropType.NO, got {crop_type!r}.")
    trn = Transforms(int(sz), mean, std, crop_type, augs, max_zoom, pad, train=True)
    if trn.margin > sz:
        raise ValueError(f"tfms_from_stats: aug_tfms must not turn so often, got {augs!r}. Keep one RandomRotate.")
    check_range(
        "tfms_from_stats", "pad", pad, 0, (sz - trn.margin) // 2, "A wider border would mirror the picture twice."
    )
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
