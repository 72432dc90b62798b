"""A pass over images that keeps a frozen body's activations: as a share of the slower of loader and body alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.gpu.photographs import written
from bench.gpu.timing import REHEARSED_ARCH, Bench, Work
from fastclf import ConvLearner, ImageClassifierData, quiet, tfms_from_model
from fastclf.activations.fill import places_for
from fastclf.activations.precompute import activations
from fastclf.models.precision import autocast

ARCHS = {
    "lite0": "fastclf:efficientnet_lite0",
    "resnet50": "torchvision:resnet50",
    "vit-s": "timm:vit_small_patch16_224",
}
IMAGES = 8000
ROUNDS = 4


class _Pass:
    def __init__(self, bench: Bench, arch: str, folder: Path) -> None:
        self.bench, self.bs = bench, 4 if bench.small else 128
        tfms = tfms_from_model(arch, 64 if bench.small else 224)
        self.data = ImageClassifierData.from_paths(
            folder, self.bs, tfms, test_name=None, device=bench.device, keep_decoded=False
        )
        self.learn = ConvLearner.pretrained(arch, self.data, pretrained=False)
        self.loader = self.data.fix_dl
        self.n = self.loader.n

    def loader_alone(self) -> None:
        for x, _ in self.loader.batches(0):
            last = x
        float(last[0, 0, 0, 0])

    def body_alone(self) -> Work:
        """As many images as there are, but always the same batch of them, on the device."""
        (x, _), net = next(iter(self.loader.batches(0))), self.learn.model.eval()

        def run() -> None:
            with torch.inference_mode(), autocast(self.bench.device):
                for _ in range(-(-self.n // self.bs)):
                    features = net.features(x).float()
            float(features[0, 0])

        return run

    def whole(self) -> None:
        shutil.rmtree(self.data.path / "tmp", ignore_errors=True)
        activations(self.learn.model, self.loader, places_for(self.data.path / "tmp"), dtype="float16", what="train")


def race(arch: str, bench: Bench, _limits: dict[str, float], folder: Path) -> dict[str, Any]:
    """Images per second of the loader alone, the body alone, and both with what keeps the rows."""
    quiet()
    arch = REHEARSED_ARCH if bench.small else arch
    a_pass = _Pass(bench, arch, written(bench, folder, *((12, 2) if bench.small else (IMAGES, 2))))
    ways: dict[str, Work] = {
        "loader": a_pass.loader_alone,
        "body": a_pass.body_alone(),
        "pass": a_pass.whole,
    }
    seconds = bench.interleaved(ways, rounds=2 if bench.small else ROUNDS)
    batches = -(-a_pass.n // a_pass.bs) * a_pass.bs / a_pass.n  # the body alone has whole batches only
    rates = {name: a_pass.n / median(taken) for name, taken in seconds.items()}
    rates["body"] *= batches
    return {
        "arch": arch,
        "images": a_pass.n,
        "images_per_second": rates,
        "share_of_slower": rates["pass"] / min(rates["loader"], rates["body"]),
        "seconds": seconds,
    }
