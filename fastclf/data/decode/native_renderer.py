"""The renderer that decodes first: a decoder, DALI's or Pillow, decodes; the native module makes the crops."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.decode.kept_images import KeptImage
from fastclf.data.decode.parts import Images, Parts
from fastclf.data.transforms.crop_geometry import Arrays, CropBox, crop_box
from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import TransformSpec
from fastclf.ops.crop_resize import CropFormat, Crops, Image, crop_resize

AHEAD = 3
"""Batches in the making on a processor while one is used."""


class Decoder(Protocol):
    """What decodes the images of batches, in the order in which they are fed."""

    def feed(self, images: Images) -> None:
        """Start one batch, see `graphs.DecodePipeline`."""

    def take(self) -> Sequence[Image]:
        """Wait for the oldest batch: each image `[H, W, 3]`, where the batches are."""


class KeepingDecoder:
    """Decodes, of images that may be kept in a device's memory, those that are not there; all of others.

    Args:
        decoder: decodes images.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._batches: deque[list[KeptImage]] = deque()  # in the making; empty for images that cannot be kept

    def feed(self, images: Images) -> None:
        """See `Decoder.feed`."""
        kept = [image for image in images if isinstance(image, KeptImage)]
        missing = [image.encoded() for image in kept if image.pixels is None]
        if missing or not kept:
            self._decoder.feed(missing or images)
        self._batches.append(kept)

    def take(self) -> Sequence[Image]:
        """See `Decoder.take`."""
        images = self._batches.popleft()
        if not images:
            return self._decoder.take()
        decoded = iter(self._decoder.take() if any(image.pixels is None for image in images) else ())
        made: list[Image] = []
        for image in images:
            made.append(next(decoded) if image.pixels is None else image.pixels)
            if image.pixels is None:
                image.keep(made[-1])
        return made


class NativeRenderer:
    """Decoded images to normalised batches, for augmentations that the native module knows; see `Renderer`.

    Args:
        tfms: how an image becomes x.
        decoder: decodes the images.
        white: the value of full white.
        num_threads: that make crops on a processor.
        device: where images and batches are.
        ahead: see `Renderer.ahead`.
    """

    keeps = True

    def __init__(
        self, tfms: TransformSpec, decoder: Decoder, white: float, num_threads: int, device: torch.device, ahead: int
    ) -> None:
        self.ahead = ahead
        keeping = self._decoder = KeepingDecoder(decoder)
        self._parts = Parts(lambda images, _: keeping.feed(images))  # not of self: its threads end with the last user
        self._tfms, self._threads = tfms, num_threads
        self._form = CropFormat(tfms.sz, white, tfms.mean, tfms.std)
        self._sizes: deque[int] = deque()  # of the batches in the making
        on_gpu = partial(torch.empty, dtype=torch.float32, device=device)
        self._empty = BatchMemory().floats if device.type == "cpu" else on_gpu

    def feed(self, images: Images, parameters: Parameters, pixels: Sequence[int]) -> None:
        """See `Renderer.feed`."""
        self._sizes.append(len(pixels))
        self._parts.feed(images, parameters, pixels)

    def take(self) -> torch.Tensor:
        """See `Renderer.take`."""
        out = self._empty(self._sizes.popleft(), 3, self._form.sz, self._form.sz)
        start = 0
        for images, parameters in self._parts.take(self._decoder.take):
            end = start + len(images)
            shapes = np.array([image.shape[:2] for image in images], np.int64)
            crop_resize(images, crops_of(self._tfms, shapes, parameters), self._form, out[start:end], self._threads)
            start = end
        return out


def crops_of(tfms: TransformSpec, shapes: npt.NDArray[np.int64], parameters: Parameters) -> Crops:
    """Return the crops of images of `shapes [N, 2]` with the parameters of `sampling.sample`."""
    box = crop_box(tfms, shapes[:, 0], shapes[:, 1], Arrays(parameters))
    part = np.stack([box.y.source_low, box.x.source_low, box.y.source_high, box.x.source_high], axis=1)
    size = np.stack([side.high - side.low for side in box], axis=1)
    pixel_ops = [(aug.native, parameters[f"aug{i}"]) for i, aug in tfms.rendered if aug.native is not None]
    return Crops(part, size, _matrix(tfms, box, parameters), pixel_ops)


def _matrix(tfms: TransformSpec, box: CropBox, parameters: Parameters) -> npt.NDArray[np.float32] | None:
    """The map from crop to resized part that keeps the crop's middle in place; None where it does nothing."""
    if not (tfms.moves_pixels or tfms.pad):
        return None
    start = np.stack([side.start - side.low for side in (box.x, box.y)], axis=1).astype(np.float32)
    if not tfms.moves_pixels:
        return np.concatenate([np.tile(np.eye(2, dtype=np.float32), (len(start), 1, 1)), start[:, :, None]], axis=2)
    shift = start + np.float32(tfms.sz / 2) - parameters["middle"]
    return np.concatenate([parameters["linear"], shift[:, :, None]], axis=2)


class BatchMemory:
    """Memory of batches, which is used again once nobody holds the batch: fresh pages take as long as a crop."""

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.float32]] = deque(maxlen=AHEAD + 1)

    def floats(self, *shape: int) -> torch.Tensor:
        """Return a tensor whose memory nobody else holds; what is in it is not defined."""
        n = math.prod(shape)
        block = self._free.pop() if self._free else _aligned(n)
        if len(block) < n:
            block = _aligned(n)
        held = block[:n]  # lives as long as any tensor or array over it
        weakref.finalize(held, self._free.append, block).atexit = False
        return torch.from_numpy(held).view(shape)


def _aligned(n: int) -> npt.NDArray[np.float32]:
    """Make an array that begins with a line of the cache, as PyTorch's memory does and NumPy's does not."""
    memory: npt.NDArray[np.float32] = torch.empty(n, dtype=torch.float32, device="cpu").numpy()
    return memory
