"""Decoded images that stay in a device's memory: from the second epoch on nobody reads or decodes them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.sources.source import Version
from fastclf.ops.crop_resize import Image
from fastclf.report import log

_FREE = 0.5  # of a device's memory, which stays free: when a body is unfrozen, training takes many times as much
_SLAB = 1 << 28  # bytes that are taken at once, so that no other tensor lies between images


@dataclass(frozen=True, eq=False)
class KeptImage:
    """An image that may have been decoded before.

    Attributes:
        encoded: returns what decoders are fed.
        pixels: `[H, W, 3] uint8` on the device; None where it must be decoded.
        keep: takes the decoded pixels, and keeps them where there is room.
    """

    encoded: Callable[[], npt.NDArray[np.uint8]]
    pixels: torch.Tensor | None
    keep: Callable[[Image], None]


class ImageMemory:
    """Decoded images on a device, as long as half of its memory stays free.

    They are freed with this object, and with those that share them.

    Args:
        device: where they are kept.
        limits: returns how many bytes are free there, and how many there are, as `torch.cuda.mem_get_info` does.
    """

    def __init__(self, device: torch.device, limits: Callable[[], tuple[int, int]]) -> None:
        self._device, self._limits = device, limits
        self._kept: dict[Hashable, tuple[Version, torch.Tensor]] = {}
        self._slab = torch.empty(0, dtype=torch.uint8)  # what is left of the last one
        self._is_full = False

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles begin empty."""
        return type(self), (self._device, self._limits)

    def shares(self, other: ImageMemory) -> None:
        """Know from now on what another memory of this device keeps, and let it know what this one keeps."""
        self._kept = other._kept

    def image(self, key: Hashable, version: Version | None, encoded: Callable[[], npt.NDArray[np.uint8]]) -> KeptImage:
        """Return an image, with its pixels where those of this version are kept.

        Args:
            key: stands for the image.
            version: a change of the image must show in it; with None the image is not kept.
            encoded: see `KeptImage`.
        """
        known, pixels = self._kept.get(key, (None, None))
        is_known = known is not None and known == version
        return KeptImage(encoded, pixels if is_known else None, partial(self._keep, key, version))

    def _keep(self, key: Hashable, version: Version | None, pixels: Image) -> None:
        if version is None or (key in self._kept and self._kept[key][0] == version):
            return
        self._kept.pop(key, None)  # an older version, whose place in its slab stays empty
        with torch.inference_mode(False):  # whatever the mode of whoever takes the batch
            decoded = torch.as_tensor(pixels)
            room = self._room(decoded.numel())
            if room is not None:
                self._kept[key] = version, room.view(decoded.shape).copy_(decoded)

    def _room(self, n: int) -> torch.Tensor | None:
        """Return memory for an image of n bytes, or None."""
        if n <= len(self._slab):
            room, self._slab = self._slab[:n], self._slab[n:]
            return room
        size = max(n, _SLAB)
        if self._is_full or not self._has_free(size):
            return None
        fresh = torch.empty(size, dtype=torch.uint8, device=self._device)
        self._slab = max(fresh[n:], self._slab, key=len)
        return fresh[:n]

    def _has_free(self, size: int) -> bool:
        """Return whether half of the memory is left free; where it is not, that is logged, and not asked again."""
        if not self._kept:
            torch.cuda.empty_cache()  # torch holds the memory of images that are gone, such as those of other data
        free, total = self._limits()
        self._is_full = free - size < _FREE * total
        if self._is_full:
            log(
                f"{len(self):,} decoded images stay in the memory of {self._device}, half of which is left free; the "
                "others are decoded in every epoch"
            )
        return not self._is_full


def memory_of(device: torch.device) -> ImageMemory | None:
    """Return a new memory for images on a GPU; None on the processor, whose memory is for the system to manage."""
    return ImageMemory(device, partial(torch.cuda.mem_get_info, device)) if device.type == "cuda" else None
