"""Images from files: batches made on the GPU against torchvision's decoder there, and a whole pass through a body."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.gpu.timing import Bench, Work, ratio
from bench.images_setting import MAX_ZOOM, MEAN, STD
from fastclf import ConvLearner, ImageClassifierData, tfms_from_stats, transforms_side_on
from fastclf.errors import BackendError

ARCH = "torchvision:resnet50"
PEER = "torchvision CUDA"


def write_images(folder: Path, n: int, size: tuple[int, int]) -> None:
    """JPEGs of smooth noise, about as large as photographs of their size; the same files in every run."""
    rng = np.random.default_rng(0)
    for i in range(n):
        small = Image.fromarray(rng.integers(0, 256, (size[0] // 4, size[1] // 4, 3), dtype=np.uint8))
        target = folder / ("valid" if i < 2 else "train") / "ab"[i % 2] / f"{i:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        small.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(target, quality=85)


class Images:
    """The files, and ways to go through those of the training set once."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.sz, self.bs = (32, 4) if bench.small else (224, 128)
        write_images(folder, 12 if bench.small else 4000, (60, 80) if bench.small else (375, 500))
        tfms = tfms_from_stats((MEAN, STD), self.sz, transforms_side_on, MAX_ZOOM)
        self.data = ImageClassifierData.from_paths(folder, self.bs, tfms, test_name=None, device=bench.device)

    def batches(self, augment: bool) -> Work:
        loader, epochs = (self.data.trn_dl if augment else self.data.fix_dl), itertools.count()

        def run() -> float:
            total = torch.zeros((), device=self.bench.device)
            for x, _ in loader.batches(next(epochs)):
                total += x[:, :, ::16, ::16].mean()
            return float(total)

        return run

    def whole_pass(self) -> Work:
        def run() -> None:
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)
            ConvLearner.pretrained(ARCH, self.data, precompute=True, pretrained=False)

        return run

    def torchvision_cuda(self) -> Work:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
        from torchvision.transforms import v2

        if self.bench.small:
            raise RuntimeError("not rehearsed: it needs a GPU")
        files = [str(file) for file in sorted(self.folder.glob("train/*/*.jpg"))]
        place = v2.Compose([v2.Resize(self.sz, antialias=True), v2.CenterCrop(self.sz)])
        finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

        def run() -> float:
            total = torch.zeros((), device=self.bench.device)
            for first in range(0, len(files), self.bs):
                encoded = [read_file(file) for file in files[first : first + self.bs]]
                decoded = decode_jpeg(encoded, ImageReadMode.RGB, device=self.bench.device)
                total += finish(torch.stack([place(x) for x in decoded]))[:, :, ::16, ::16].mean()
            return float(total)

        return run


def race(bench: Bench) -> dict[str, Any]:
    """Images per second of each way; the reason alone where DALI is missing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _race(bench, Images(bench, Path(folder)))
        except BackendError as error:
            return {"skipped": {"images": str(error)}}


def _race(bench: Bench, images: Images) -> dict[str, Any]:
    ways: dict[str, Callable[[], Work]] = {
        "plain": lambda: images.batches(augment=False),
        "augmented": lambda: images.batches(augment=True),
        "whole pass": images.whole_pass,
        PEER: images.torchvision_cuda,
    }
    runners, skipped = {}, {}
    for name, make in ways.items():
        try:
            runners[name] = make()
        except (RuntimeError, ImportError) as error:
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    seconds = bench.interleaved(runners)
    n = images.data.trn_dl.n
    return {
        "images_per_second": {name: n / median(taken) for name, taken in seconds.items()},
        "ratios": {name: ratio(seconds["plain"], seconds[name]) for name in (PEER,) if name in seconds},
        "skipped": skipped,
        "seconds": seconds,
    }
