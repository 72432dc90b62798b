"""The transforms that users make and call: a `TransformSpec` that runs on one image through the loaders' renderers."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.argument_checks import check_count, check_range
from fastclf.data.sources.arrays import pixels_hint
from fastclf.data.transforms.base import Augmentation
from fastclf.data.transforms.own import PixelFunction, as_augmentations
from fastclf.data.transforms.sampling import Split, sample
from fastclf.data.transforms.spec import CropType, TransformSpec

if TYPE_CHECKING:
    from PIL import Image

    from fastclf.data.decode.renderer import Renderer

Stats: TypeAlias = tuple[Sequence[float], Sequence[float]]
AugTfms: TypeAlias = Augmentation | PixelFunction | Sequence[Augmentation | PixelFunction] | None


@dataclass(frozen=True)
class Transforms(TransformSpec):
    """How an image becomes `[3, sz, sz]` float32, see `TransformSpec`; call it to transform one."""

    def __call__(
        self, image: npt.NDArray[Any] | Image.Image, *, seed: int = 0, epoch: int = 0, row: int = 0
    ) -> npt.NDArray[np.float32]:
        """Transform one image exactly as the loaders do.

        Args:
            image: `[H, W, 3]` uint8, or float in 0..1 as from `open_image`; or a PIL image, whose EXIF orientation
                is applied.
            seed: with epoch and row, decides the random numbers of training transforms.
            epoch: see seed.
            row: see seed.

        Returns:
            `[3, sz, sz] float32`, normalised.

        Raises:
            ValueError: the image is not of that form.
        """
        pixels = _checked(image)
        parameters = sample(self, seed, epoch, Split.TRAIN, np.array([row]))
        with _Renderers(self, pixels.dtype == np.uint8).one() as renderer:
            renderer.feed([pixels], parameters, [pixels.shape[0] * pixels.shape[1]])
            return renderer.take()[0].numpy()


def _checked(image: npt.NDArray[Any] | Image.Image) -> npt.NDArray[np.uint8] | npt.NDArray[np.float32]:
    """Return pixels `[H, W, 3]`, contiguous, uint8 or float32 in 0..1."""
    from PIL import Image

    if isinstance(image, str | os.PathLike):
        raise ValueError(f"Transforms: image must be pixels, got the file name {image!r}. Pass open_image(fn).")
    pixels = _pixels(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"Transforms: image must be [H, W, 3], got {list(pixels.shape)}. Pass one image, as from open_image."
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.dtype.kind not in "fb":
        raise ValueError(
            f"Transforms: image must be uint8, or float in 0..1, got {pixels.dtype}. {pixels_hint(pixels.dtype)}"
        )
    floats = np.ascontiguousarray(pixels, np.float32)
    low, high = floats.min(), floats.max()
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 1):
        raise ValueError(f"Transforms: image of floats must be in 0..1, got {low:g}..{high:g}. Divide by 255.")
    return floats


def _pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the pixels of a PIL image, as `open_image` reads them from a file."""
    from fastclf.data.decode.worker import BadFileError, upright_rgb

    try:
        return upright_rgb(image)
    except BadFileError as error:
        raise ValueError(f"Transforms: a PIL image of mode {image.mode} has {error}. Convert it to RGB.") from error


@functools.lru_cache(maxsize=8)
class _Renderers:
    """The renderers of one kind of image, each of them one call's at a time."""

    def __init__(self, tfms: Transforms, as_bytes: bool) -> None:
        self._tfms, self._white = tfms, 255.0 if as_bytes else 1.0
        self._idle: deque[Renderer] = deque(maxlen=4)

    @contextmanager
    def one(self) -> Iterator[Renderer]:
        """Give a block a renderer of its own; one that is left amid an image is not used again."""
        try:
            renderer = self._idle.pop()
        except IndexError:
            renderer = self._new()
        try:
            yield renderer
        except BaseException:
            with suppress(Exception):  # a graph must not be torn down while it runs
                renderer.take()
            raise
        self._idle.append(renderer)

    def _new(self) -> Renderer:
        from fastclf.data.decode.graphs import GraphInput
        from fastclf.data.decode.renderer import cpu_renderer

        return cpu_renderer(self._tfms, GraphInput(files=False, white=self._white), 1, 1)


def tfms_from_stats(
    stats: Stats,
    sz: int,
    aug_tfms: AugTfms = None,
    max_zoom: float | None = None,
    pad: int = 0,
    crop_type: CropType | None = None,
) -> tuple[Transforms, Transforms]:
    """Make the training and the validation transforms.

    Args:
        stats: mean and deviation of the three channels, of values 0..1.
        sz: side of the square the model sees, in pixels.
        aug_tfms: augmentations of training, e.g. ``transforms_side_on``. Your own may stand among them: a class derived
            from ``GeometricAugmentation`` or ``PixelAugmentation``, or a function ``f(x, u)`` that takes crops
            ``x [B, 3, sz, sz] float32`` in 0..1 and for each of them 16 uniform numbers ``u [B, 16]``, and returns the
            changed crops. Functions run in torch, after all others, on the processor and on a GPU. To keep cached views
            (``views=``) of them, give each a version: ``f.version = 1``.
        max_zoom: with probability 0.75 the training image is enlarged by U(1, max_zoom).
        pad: mirrored border of training images, in pixels.
        crop_type: how training takes the square (RANDOM by default). Validation squashes for NO, else cuts the centre.

    Returns:
        (training, validation).

    Raises:
        ValueError: an argument is out of its range, or an augmentation of your own fails on random numbers.
    """
    mean, std = (tuple(float(v) for v in values) for values in stats)
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"tfms_from_stats: stats must be (mean, std) of 3 channels, std > 0, got {stats!r}.")
    sz = check_count("tfms_from_stats", "sz", sz, 4, 8192, fix="Pass e.g. sz=224.")
    if max_zoom is not None:
        check_range("tfms_from_stats", "max_zoom", max_zoom, 1, 10, "Pass e.g. max_zoom=1.1, or None for no zoom.")
    augs = as_augmentations(aug_tfms, sz)
    crop_type = CropType.RANDOM if crop_type is None else crop_type
    if not isinstance(crop_type, CropType):
        raise ValueError(f"tfms_from_stats: crop_type must be a CropType such as CropType.NO, got {crop_type!r}.")
    trn = Transforms(sz, mean, std, crop_type, augs, max_zoom, pad, train=True)
    if trn.margin > sz:
        raise ValueError(f"tfms_from_stats: aug_tfms must not turn so often, got {augs!r}. Keep one RandomRotate.")
    check_range(
        "tfms_from_stats", "pad", pad, 0, (sz - trn.margin) // 2, "A wider border would mirror the image twice."
    )
    val_crop = CropType.NO if crop_type is CropType.NO else CropType.CENTER
    return trn, Transforms(sz, mean, std, val_crop)
