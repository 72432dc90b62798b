"""How an image becomes the square that the model sees, declared as plain data.

`sampling` turns the random parts of a `TransformSpec` into parameters, `crop_geometry` works out which part of an image
is seen, and the renderers of `fastclf.data.decode` make the pixels. All geometry is about the middle of the crop, which
makes it one 2 x 2 matrix.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.transforms.base import Augmentation, GeometricAugmentation, PixelAugmentation

A = TypeVar("A", bound=Augmentation)


class CropType(enum.Enum):
    """How an image of any shape becomes a square.

    RANDOM and CENTER cut a square out, NO squashes the whole image, GOOGLENET cuts out a random rectangle of 8 to
    100 % of the area with sides between 3:4 and 4:3.
    """

    RANDOM = 1
    CENTER = 2
    NO = 3
    GOOGLENET = 4


@dataclass(frozen=True)
class TransformSpec:
    """How an image becomes `[3, sz, sz]` float32.

    Attributes:
        sz: side of the square, in pixels.
        mean: what is subtracted, per channel, of values 0..1.
        std: what is divided by, per channel.
        crop_type: how the square is taken.
        augs: the augmentations. The geometric ones are composed, in order, and resample once. Those that change values
            follow: the ones that renderers make, in order, then those of the user's own, in order.
        max_zoom: in training, the scale is multiplied by U(1, max_zoom) with probability 0.75.
        pad: in training, mirrored border in pixels around the scaled image.
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
        """Whether an image can look different in two epochs."""
        moves = self.crop_type in (CropType.RANDOM, CropType.GOOGLENET) or self.max_zoom is not None or self.pad > 0
        return self.train and (moves or bool(self.augs))

    @property
    def random_place(self) -> bool:
        """Whether the crop's place in the scaled image is random, not its middle."""
        return self.train and self.crop_type is not CropType.CENTER

    def augs_of(self, kind: type[A]) -> list[tuple[int, A]]:
        """Return the augmentations of a kind, in order, each with its index in ``augs``."""
        return [(i, aug) for i, aug in enumerate(self.augs) if isinstance(aug, kind)]

    @property
    def rendered(self) -> list[tuple[int, PixelAugmentation]]:
        """The augmentations of values that renderers make."""
        return [(i, aug) for i, aug in self.augs_of(PixelAugmentation) if aug.has_nodes]

    @property
    def in_torch(self) -> list[tuple[int, PixelAugmentation]]:
        """The augmentations of values that run in torch, after the renderer."""
        return [(i, aug) for i, aug in self.augs_of(PixelAugmentation) if not aug.has_nodes]

    @property
    def moves_pixels(self) -> bool:
        """Whether there is a geometric augmentation."""
        return bool(self.augs_of(GeometricAugmentation))

    @property
    def margin(self) -> int:
        """How many pixels beyond the crop the geometry may look."""
        geometry = self.augs_of(GeometricAugmentation)
        reach = math.prod(aug.reach() for _, aug in geometry)
        return 0 if all(aug.exact for _, aug in geometry) else math.ceil(self.sz / 2 * (reach - 1)) + 1

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same with another mean and deviation."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the pixels, as JSON values: part of the fingerprint of activations.

        Raises:
            ValueError: an augmentation outside fastclf has no version, see `Augmentation.describe`.
        """
        return {
            "sz": self.sz,
            "mean": list(self.mean),
            "std": list(self.std),
            "crop_type": self.crop_type.name,
            "augs": [aug.describe() for aug in self.augs],
            "max_zoom": self.max_zoom,
            "pad": self.pad,
            "train": self.train,
        }

    def denorm(self, x: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.float32]:
        """Undo the normalisation: `[..., 3, h, w]` to `[..., h, w, 3] float32` in 0..1."""
        values = x.detach().float().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float32)
        if values.ndim not in (3, 4) or values.shape[-3] != len(self.mean):
            raise ValueError(
                f"denorm: x must be images of shape [N, 3, h, w] or [3, h, w], got {list(values.shape)}. "
                "Pass a batch as the loaders give it."
            )
        images = np.moveaxis(values, -3, -1) * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        return images.clip(0, 1)
