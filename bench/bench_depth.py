"""Layer group 1 and the head after `freeze_to(1)`: on cached feature maps, and on the images."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import photographs
from fastclf import ConvLearner, CropType, ImageClassifierData, accuracy, efficientnet_lite0, tfms_from_model

RATES = [0, 1e-3, 1e-2]
EPOCHS = 10


@pytest.mark.parametrize("sz", [96, 224])
def bench_depth(benchmark: Any, tmp_path: Path, threads: int, quick: bool, sz: int) -> None:
    torch.set_num_threads(threads)
    folder = photographs.catsdogs(tmp_path / "photos", 40 if quick else None)
    tfms = tfms_from_model(efficientnet_lite0, sz, crop_type=CropType.CENTER)
    data = ImageClassifierData.from_paths(folder, tfms=tfms, test_name=None, seed=0, device="cpu")
    data.scan()  # both need it
    epochs = 2 if quick else EPOCHS
    runs: dict[str, Any] = {}

    def everything() -> None:
        for way, precompute in (("feature maps", True), ("images", False)):
            runs[way] = trained(data, precompute, epochs)

    benchmark.pedantic(everything, rounds=1)
    maps, images = runs["feature maps"], runs["images"]
    benchmark.extra_info |= {"sz": sz, "images": len(data.trn_ds), "epochs": epochs, "runs": runs}
    assert maps["loss"] == pytest.approx(images["loss"], abs=0.1)  # maps are rounded to fp16, and sums go otherwise


def trained(data: ImageClassifierData, precompute: bool, epochs: int) -> dict[str, float]:
    """Seconds of the pass and of an epoch with its validation, megabytes of maps, and what the last epoch gave."""
    learn = ConvLearner.pretrained(efficientnet_lite0, data, metrics=[accuracy])
    learn.freeze_to(1)
    start = time.perf_counter()
    learn.precompute = precompute
    cached, processor = time.perf_counter(), time.process_time()
    loss, metric = learn.fit(RATES, 1, cycle_len=epochs)
    end, processor = time.perf_counter(), time.process_time() - processor
    rows = [ds.rows for ds in (learn.data.trn_ds, learn.data.val_ds) if ds.rows is not None]
    return {
        "pass seconds": cached - start,
        "epoch seconds": (end - cached) / epochs,
        "epoch processor seconds": processor / epochs,  # other work on the machine does not count
        "mb": sum(math.prod(part.shape) * part.dtype.itemsize for part in rows) / 1e6,
        "loss": loss,
        "accuracy": metric,
    }
