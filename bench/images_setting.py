"""One race over images: the files, and what is done to them. The same for all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MAX_ZOOM, DEGREES, LIGHT = 1.1, 10, 0.05
N_IMAGES = 1400  # in a round


@dataclass(frozen=True)
class ImagesSetting:
    """Photographs, threads (or worker processes), and whether the lesson's augmentations apply."""

    folder: Path
    threads: int
    augment: bool
    sz: int = 224
    batch: int = 64

    def files(self) -> list[str]:
        """The training images, sorted."""
        return sorted(map(str, self.folder.glob("train/*/*.jpg")))

    def bytes(self) -> int:
        """Of all training images."""
        return sum(Path(file).stat().st_size for file in self.files())


def sampled_mean(batches: Iterable[torch.Tensor]) -> list[float]:
    """Uses every batch `[B, 3, sz, sz]` as cheaply as can be: number of images and mean of every 1024th pixel."""
    n, total = 0, 0.0
    for x in batches:
        n += len(x)
        total += float(x[:, :, 16::32, 16::32].mean(dtype=torch.float64)) * len(x)
    return [float(n), total / n]
