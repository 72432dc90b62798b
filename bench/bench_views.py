"""Cached views: accuracy and loss with four against one over five seeds, what they cost, and what they save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from bench import photographs
from bench.race import summary
from fastclf import (
    ConvLearner,
    ImageClassifierData,
    accuracy,
    accuracy_thresh,
    efficientnet_lite0,
    tfms_from_model,
    transforms_side_on,
    transforms_top_down,
)

VIEWS = 4
EPOCHS = 10
SEEDS = range(5)
LR = 1e-2


@dataclass(frozen=True)
class Images:
    """A data set of photographs: how it is made, and what is measured on it."""

    folder: Path
    make: Callable[[Path, int], ImageClassifierData]
    metric: Callable[..., Any]

    def learner(self, views: int, seed: int) -> ConvLearner:
        data = self.make(self.folder, seed)
        return ConvLearner.pretrained(efficientnet_lite0, data, precompute=True, views=views, metrics=[self.metric])


def catsdogs(folder: Path, n: int | None) -> Images:
    def make(folder: Path, seed: int) -> ImageClassifierData:
        tfms = tfms_from_model(efficientnet_lite0, 224, aug_tfms=transforms_side_on, max_zoom=1.1)
        return ImageClassifierData.from_paths(folder, tfms=tfms, test_name=None, seed=seed, device="cpu")

    return Images(photographs.catsdogs(folder, n), make, accuracy)


def scenes(folder: Path, n: int | None) -> Images:
    def make(folder: Path, seed: int) -> ImageClassifierData:
        table = folder / "train_tags.csv"
        rows = len(table.read_text().splitlines()) - 1
        valid = np.random.default_rng(0).permutation(rows)[: rows // 5]  # the same for every seed
        tfms = tfms_from_model(efficientnet_lite0, 128, aug_tfms=transforms_top_down, max_zoom=1.05)
        return ImageClassifierData.from_csv(
            folder, "train", table, tfms=tfms, suffix=".jpg", val_idxs=valid, seed=seed, device="cpu"
        )

    return Images(photographs.scenes(folder, n), make, accuracy_thresh(0.5))


@pytest.mark.parametrize("make", [catsdogs, scenes])
def bench_views(benchmark: Any, tmp_path: Path, threads: int, quick: bool, make: Any) -> None:
    torch.set_num_threads(threads)
    images = make(tmp_path / "photos", 30 if quick else None)
    seeds, epochs = (range(1), 2) if quick else (SEEDS, EPOCHS)
    found: dict[str, Any] = {}

    def everything() -> None:
        found["one view"] = [trained(images.learner(1, seed), epochs) for seed in seeds]
        found["views"] = [trained(images.learner(VIEWS, seed), epochs) for seed in seeds]
        found.update(compared(images, epochs))

    benchmark.pedantic(everything, rounds=1)
    benchmark.extra_info |= {
        "images": make.__name__,
        "views": VIEWS,
        "epochs": epochs,
        **{
            f"{what} of {name}": summary([run[what] for run in found[name]])
            for name in ("one view", "views")
            for what in ("loss", "accuracy", "tta loss", "tta accuracy", "seconds", "file mb", "pass seconds")
            if what in found[name][0]
        },
        "without precompute": found["without precompute"],
        "times faster": found["without precompute"]["seconds"] / median(run["seconds"] for run in found["views"]),
        "tta": found["tta"],
    }
    assert found["tta"]["largest difference"] < 0.05  # of a probability: the views are rounded to fp16


def trained(learn: ConvLearner, epochs: int) -> dict[str, float]:
    """Loss, metric and time of a fit of the head, and the size of the file of the training set."""
    start = time.perf_counter()
    loss, metric = learn.fit(LR, epochs)
    seconds = time.perf_counter() - start
    rows = learn.data.trn_ds.rows
    assert rows is not None
    mb = math.prod(rows.shape) * rows.dtype.itemsize / 1e6
    run = {"loss": loss, "accuracy": metric, "seconds": seconds, "file mb": mb}
    if learn.views > 1:
        preds, y = learn.TTA(n_aug=VIEWS)
        run |= averaged(learn, preds, y)
    return run


def averaged(learn: ConvLearner, preds: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Loss and metric of the mean prediction over the views."""
    mean = preds.mean(0) if learn.data.is_multi else np.log(np.exp(preds).mean(0))
    score, target = torch.from_numpy(mean), torch.from_numpy(y)
    loss = learn.crit(score, target)
    return {"tta loss": float(loss), "tta accuracy": float(learn.metrics[0](score, target))}


def compared(images: Images, epochs: int) -> dict[str, Any]:
    """Ten epochs on images, and test-time augmentation from images, on the learner that the views have trained."""
    learn = images.learner(VIEWS, 0)
    learn.fit(LR, epochs)
    start = time.perf_counter()
    views, y = learn.TTA(n_aug=VIEWS)
    from_views = time.perf_counter() - start
    learn.precompute = False
    start = time.perf_counter()
    drawn, _ = learn.TTA(n_aug=VIEWS)
    from_images = time.perf_counter() - start
    to_probability = (lambda p: p) if learn.data.is_multi else np.exp
    tta = {
        "seconds from views": from_views,
        "seconds from images": from_images,
        "from views": averaged(learn, views, y),
        "from images": averaged(learn, drawn, y),
        "largest difference": float(np.abs(to_probability(views) - to_probability(drawn)).max()),
    }
    fresh = images.learner(1, 0)
    fresh.precompute = False
    start = time.perf_counter()
    loss, metric = fresh.fit(LR, epochs)
    return {
        "tta": tta,
        "without precompute": {"seconds": time.perf_counter() - start, "loss": loss, "accuracy": metric},
    }
