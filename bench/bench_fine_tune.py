"""`fine_tune` against a tuned logistic regression on the same rows, and against the lesson's rates on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.fine_tune_sets import SETS, FineTuneSetting, ImageSet
from bench.peers.process import PeerProcess
from bench.race import timed
from bench.tuned_regression import log_loss, share_right, tuned
from fastclf import Callback, ConvLearner, ImageClassifierData, accuracy, accuracy_thresh, efficientnet_lite0

SEEDS = range(20, 25)
EPOCHS = 7  # with all layers
AS_GOOD = 0.005  # accuracy, in the mean over seeds
each_set = pytest.mark.parametrize("images", SETS, ids=lambda images: images.name.replace(" ", "_"))


def learner(data: ImageClassifierData) -> ConvLearner:
    """A new head on cached activations."""
    metric = accuracy_thresh(0.5) if data.is_multi else accuracy
    return ConvLearner.pretrained(efficientnet_lite0, data, precompute=True, metrics=[metric])


@each_set
def bench_fine_tune_head(benchmark: Any, tmp_path: Path, threads: int, quick: bool, images: ImageSet) -> None:
    torch.set_num_threads(threads)
    runs: list[dict[str, Any]] = []
    seeds = SEEDS[: 1 if quick else None]

    def everything() -> None:
        runs.extend(heads_of(images.data(tmp_path, seed), seed) for seed in seeds)

    benchmark.pedantic(everything, rounds=1)
    benchmark.extra_info |= {
        "images": f"{images.name}, {images.train:,}",
        "held out": images.valid,
        "seeds": [*seeds],
        "runs": runs,
    }

    lead = np.mean([run["fine_tune"][0] - run["scikit-learn"][0] for run in runs])
    assert quick or lead >= -AS_GOOD


@each_set
@pytest.mark.parametrize("seed", SEEDS)
def bench_fine_tune_layers(
    benchmark: Any, tmp_path: Path, threads: int, quick: bool, images: ImageSet, seed: int
) -> None:
    if quick and seed != SEEDS[0]:
        pytest.skip("one seed will do")
    torch.set_num_threads(threads)
    run: dict[str, Any] = {}

    def everything() -> None:
        data = images.data(tmp_path, seed)
        run.update(layers_of(data))
        if seed == SEEDS[0] and not data.is_multi:
            run["fastai"] = fastai_of(FineTuneSetting(tmp_path, images, seed, threads))

    benchmark.pedantic(everything, rounds=1)
    name = f"{images.name}, {images.train:,}"
    benchmark.extra_info |= {"images": name, "held out": images.valid, "seeds": [seed], "runs": [run]}


def heads_of(data: ImageClassifierData, seed: int) -> dict[str, Any]:
    """Accuracy, log loss and seconds on the same rows, by way."""
    learn = learner(data)
    rows = learn.data  # activations
    x, held_out = (np.asarray(ds.rows).astype(np.float64) for ds in (rows.trn_ds, rows.val_ds))
    truth = rows.val_y
    lesson_seconds, lesson = timed(lambda: learn.fit(1e-2, 3))
    found: dict[str, Any] = {"lesson": [lesson[1], lesson[0], lesson_seconds]}
    seconds, _ = timed(lambda: learn.fine_tune(unfreeze=False))
    probs = learn.predict() if data.is_multi else np.exp(learn.predict())
    found["fine_tune"] = [share_right(probs, truth), log_loss(probs, truth), seconds]
    seconds, peer = timed(lambda: tuned(x, rows.trn_y, held_out, data.c, seed))
    found["scikit-learn"] = [share_right(peer.probs, truth), log_loss(peer.probs, truth), seconds]
    found["chosen"] = [peer.scaling, peer.strength]
    return found


def fastai_of(setting: FineTuneSetting) -> list[float]:
    """Accuracy, log loss and seconds of fastai's `fine_tune` on the same images, in a process of its own."""
    process = PeerProcess("bench.peers.fastai_fine_tune", setting)
    try:
        seconds, (accuracy, loss) = process.round(setting.seed)
    finally:
        process.close()
    return [accuracy, loss, seconds]


class Epochs(Callback):
    """The metric after each epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_epoch_end(self, metrics: list[float]) -> None:
        """See `Callback`."""
        self.found.append(metrics[1])


def layers_of(data: ImageClassifierData) -> dict[str, Any]:
    """Accuracy, log loss and seconds of the best model without a number, and of the lesson's rates."""
    learn, epochs = learner(data), Epochs()
    seconds, _ = timed(lambda: learn.fine_tune(callbacks=[epochs]))
    kept = not learn.precompute
    probs = learn.predict() if data.is_multi else np.exp(learn.predict())
    found: dict[str, Any] = {
        "fine_tune": [share_right(probs, data.val_y), log_loss(probs, data.val_y), seconds],
        "frozen": epochs.found[-1 - EPOCHS * kept],
        **({"after": epochs.found[-1]} if kept else {}),  # without the weights before
        "kept": kept,
    }
    learn = learner(data)
    head_seconds, _ = timed(lambda: learn.fit(1e-2, 3))
    learn.unfreeze()
    seconds, scores = timed(lambda: learn.fit([1e-4, 1e-3, 1e-2], 3, cycle_len=1, cycle_mult=2))
    return found | {"lesson": [scores[1], scores[0], head_seconds + seconds]}
