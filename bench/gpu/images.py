"""Images: batches from files and from the GPU's memory, DALI's graph and torchvision's decoder, and a whole pass.

From files the GPU decodes, or the processor does, and a kernel makes the crops; or DALI's graph does all.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.gpu.photographs import written
from bench.gpu.timing import REHEARSED_ARCH, Bench, Work, ratio
from bench.images_setting import MAX_ZOOM, MEAN, STD
from fastclf import ConvLearner, ImageClassifierData, tfms_from_stats, transforms_side_on
from fastclf.data.decode.gpu_tuning import Tuning
from fastclf.data.image_loader import ImageLoader
from fastclf.data.loader import Loader
from fastclf.errors import BackendError
from fastclf.threads import available_processors, available_threads

ARCH = "torchvision:resnet50"
PEER = "torchvision CUDA"
OURS = "files, plain"


def tunings() -> dict[str, Tuning]:
    """Return the ways to make batches from files, by name."""
    first = Tuning(available_threads())
    return {
        "files": first,
        "files, the processor decodes": replace(first, num_threads=available_processors(), on_processor=True),
        "files, DALI's graph": replace(first, by_graph=True),
    }


class Images:
    """The files, and ways to go through those of the training set once."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench = bench
        self.sz, self.bs = (32, 4) if bench.small else (224, 128)
        folder = written(bench, folder, *((12, 2) if bench.small else (4000, 2)))
        self.folder = folder
        tfms = tfms_from_stats((MEAN, STD), self.sz, transforms_side_on, MAX_ZOOM)
        self.data, self.kept = (
            ImageClassifierData.from_paths(
                folder, self.bs, tfms, test_name=None, device=bench.device, keep_decoded=keep_decoded
            )
            for keep_decoded in (False, True)
        )

    def batches(self, augment: bool, by: Tuning) -> Work:
        """From files, each time."""
        from fastclf.data.decode.graphs import GraphInput
        from fastclf.data.decode.renderer import renderer_of

        loader = self.data.trn_dl if augment else self.data.fix_dl
        assert isinstance(loader, ImageLoader)
        renderer = renderer_of(loader.tfms, GraphInput(), self.bs, self.bench.device, by)

        def run() -> float:
            loader.close()
            loader.return_renderer(renderer)
            return self._epoch(loader)

        return run

    def from_memory(self, augment: bool) -> Work:
        """The first time, which is not counted, the files are decoded."""
        loader = self.kept.trn_dl if augment else self.kept.fix_dl
        return lambda: self._epoch(loader)

    def _epoch(self, loader: Loader) -> float:
        total = torch.zeros((), device=self.bench.device)
        for x, _ in loader:
            total += x[:, :, ::16, ::16].mean()
        return float(total)

    def whole_pass(self) -> Work:
        def run() -> None:
            shutil.rmtree(self.folder / "tmp", ignore_errors=True)
            arch = REHEARSED_ARCH if self.bench.small else ARCH
            ConvLearner.pretrained(arch, self.data, precompute=True, pretrained=False)

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


def race(bench: Bench, _limits: dict[str, float], folder: Path) -> dict[str, Any]:
    """Images per second of each way; the reason alone where DALI is missing."""
    try:
        return _race(bench, Images(bench, folder))
    except BackendError as error:
        return {"skipped": {"images": str(error)}}


def _race(bench: Bench, images: Images) -> dict[str, Any]:
    ways: dict[str, Callable[[], Work]] = {
        f"{name}, {'augmented' if augment else 'plain'}": partial(images.batches, augment, by)
        for name, by in tunings().items()
        for augment in (False, True)
    }
    ways |= {
        "from memory, plain": lambda: images.from_memory(augment=False),
        "from memory, augmented": lambda: images.from_memory(augment=True),
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
        "ratios": {name: ratio(seconds[OURS], seconds[name]) for name in (PEER,) if name in seconds},
        "skipped": skipped,
        "seconds": seconds,
    }
