"""Accuracy before and after the lesson's unfreeze step: BatchNorm as it is by default, and with `bn_freeze(False)`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)
from fastclf.demo import write_digits

SEEDS = range(3)
RATES = [1e-4, 1e-3, 1e-2]
WAYS = {"default": None, "bn_freeze(False)": False}


def catsdogs(target: Path, n: int, seed: int) -> ImageClassifierData:
    """The first `n` photographs to train on, as many of each class, and all of valid/."""
    root = photographs.source("catsdogs")
    for part, most in (("train", n // 2), ("valid", None)):
        for kind in ("cats", "dogs"):
            for file in sorted((root / part / kind).iterdir())[:most]:
                photographs.link(file, target / part / kind / file.name)
    tfms = tfms_from_model(efficientnet_lite0, 96, aug_tfms=transforms_side_on, max_zoom=1.1)
    return ImageClassifierData.from_paths(target, tfms=tfms, test_name=None, seed=seed, device="cpu")


def dogbreeds(target: Path, n: int, seed: int) -> ImageClassifierData:
    """12 breeds: `n` photographs to train on, and all others."""
    root = photographs.source("dogbreeds")
    for file in (root / "train").iterdir():
        photographs.link(file, target / "train" / file.name)
    table = target / "labels.csv"
    table.write_text((root / "labels.csv").read_text())
    valid = np.random.default_rng(0).permutation(len(table.read_text().splitlines()) - 1)[n:]
    tfms = tfms_from_model(efficientnet_lite0, 96, aug_tfms=transforms_side_on, max_zoom=1.1)
    return ImageClassifierData.from_csv(
        target, "train", table, tfms=tfms, bs=min(64, n), suffix=".jpg", val_idxs=valid, seed=seed, device="cpu"
    )


def scenes(target: Path, n: int, seed: int) -> ImageClassifierData:
    """Landscapes with several labels: `n` to train on, and 400 others."""
    folder = photographs.scenes(target)
    table = folder / "train_tags.csv"
    head, *rows = table.read_text().splitlines()
    chosen = np.random.default_rng(0).permutation(len(rows))[: n + 400]
    part = folder / f"{n}.csv"
    part.write_text("\n".join([head, *(rows[i] for i in chosen)]) + "\n")
    tfms = tfms_from_model(efficientnet_lite0, 64, aug_tfms=transforms_top_down, max_zoom=1.05)
    return ImageClassifierData.from_csv(
        folder, "train", part, tfms=tfms, suffix=".jpg", val_idxs=np.arange(n, n + 400), seed=seed, device="cpu"
    )


def digits(target: Path, n: int, seed: int) -> ImageClassifierData:
    """The demo's handwritten digits: `n` to train on, and its 400 for validation."""
    whole = write_digits(target / "whole")
    for part, most in (("train", n), ("valid", None)):
        files = sorted((whole / part).glob("*/*.png"), key=lambda file: file.name)
        for file in files[:most]:
            photographs.link(file, target / part / file.parent.name / file.name)
    tfms = tfms_from_model(efficientnet_lite0, 64, aug_tfms=transforms_basic, max_zoom=1.1)
    return ImageClassifierData.from_paths(target, tfms=tfms, test_name=None, seed=seed, device="cpu")


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (catsdogs, 120),
        (catsdogs, 400),
        (dogbreeds, 48),
        (dogbreeds, 108),
        (scenes, 200),
        (scenes, 800),
        (digits, 150),
        (digits, 600),
    ],
)
def bench_unfreeze(
    benchmark: Any, tmp_path: Path, threads: int, quick: bool, make: Callable[[Path, int, int], Any], n: int
) -> None:
    torch.set_num_threads(threads)
    seeds, cycles = (range(1), 1) if quick else (SEEDS, 3)
    sets = [make(tmp_path / str(seed), n, seed) for seed in seeds]
    runs: dict[str, list[tuple[float, list[float]]]] = {}

    def everything() -> None:
        for name, word in WAYS.items():
            runs[name] = [accuracies(data, word, cycles) for data in sets]

    benchmark.pedantic(everything, rounds=1)
    benchmark.extra_info |= {
        "images": f"{make.__name__}, {n:,}",
        "frozen": summary([frozen for frozen, _ in runs["default"]]),
        "worst epoch": {name: summary([min(after) for _, after in found]) for name, found in runs.items()},
        "after": {name: summary([after[-1] for _, after in found]) for name, found in runs.items()},
        "runs": runs,
    }
    assert np.mean([after[-1] - frozen for frozen, after in runs["default"]]) >= 0


def accuracies(data: ImageClassifierData, bn_freeze: bool | None, cycles: int) -> tuple[float, list[float]]:
    """Accuracy of a new head on the frozen body, and after each epoch with all layers: cycles of 1, 2 and 4 epochs."""
    metric = accuracy_thresh(0.5) if data.is_multi else accuracy
    learn = ConvLearner.pretrained(efficientnet_lite0, data, precompute=True, metrics=[metric])
    frozen = learn.fit(1e-2, 3)[1]
    learn.unfreeze()
    if bn_freeze is not None:
        learn.bn_freeze(bn_freeze)
    learn.fit(RATES, cycles, cycle_len=1, cycle_mult=2)
    return frozen, [values[0] for values in learn.sched.rec_metrics]
