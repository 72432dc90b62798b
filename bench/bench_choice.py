"""What the choice of a head's setting is worth: answers out of fold beside scikit-learn's, and planted labels found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from bench.bench_answers import SZ, crops
from bench.fine_tune_sets import SETS
from bench.race import timed
from bench.tuned_regression import STRENGTHS, log_loss, predicted, scaled, share_right
from fastclf import ConvLearner, HeadLearner, ImageClassifierData, efficientnet_lite0, tfms_from_model
from fastclf.training.folds import make_folds

FOLDS = 5
MOST_TUNED = 4000  # rows; of more, scikit-learn's strength is its own
PLANTED = (0.03, 0.1)
SEEDS = range(20, 23)
Data = Callable[[Path], ImageClassifierData]


@dataclass(frozen=True)
class Rows:
    """Labelled images of which activations are computed."""

    name: str
    data: Data


def of_set(name: str, n: int) -> Rows:
    images = next(images for images in SETS if images.name == name)
    return Rows(f"{name}, {n:,}", lambda folder: replace(images, train=n, valid=min(images.valid, 200)).data(folder, 0))


def of_crops(n: int) -> Rows:
    def data(folder: Path) -> ImageClassifierData:
        x, y = crops(n)
        tfms = tfms_from_model(efficientnet_lite0, SZ)
        return ImageClassifierData.from_arrays(folder, (x, y), (x[:50], y[:50]), tfms=tfms, device="cpu")

    return Rows(f"crops, {n:,}", data)


ROWS = [
    *(of_set("digits", n) for n in (150, 1297)),
    of_set("dogbreeds", 108),
    of_set("catsdogs", 700),
    of_set("scenes", 1600),
    *map(of_crops, (2000, 10_000)),
]


def learner(data: ImageClassifierData) -> Any:
    """A head on the activations, as rows."""
    rows = ConvLearner.pretrained(efficientnet_lite0, data, precompute=True).data
    sets = [(np.asarray(ds.rows), ds.y) for ds in (rows.trn_ds, rows.val_ds)]
    names = [str(name) for name in rows.classes]
    return HeadLearner(ImageClassifierData.from_arrays(data.path, *sets, classes=names, device="cpu"))


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.name.replace(", ", "_").replace(",", ""))
def bench_choice(benchmark: Any, tmp_path: Path, threads: int, quick: bool, rows: Rows) -> None:
    torch.set_num_threads(threads)
    learn = learner(rows.data(tmp_path))
    ds = learn.data.trn_ds
    if quick and len(ds) > 200:
        pytest.skip("the smallest will do")
    folds = make_folds(ds.labels, FOLDS, seed=learn.seed)
    runs: dict[str, list[float]] = {}

    def everything() -> None:
        for name, ways in {
            "cross_validate": lambda: learn.cross_validate(FOLDS).preds,
            "audit": lambda: learn.audit(FOLDS).preds["train"],
            "scikit-learn": lambda: regression(np.asarray(ds.rows, np.float64), ds.y, folds, ds.c),
        }.items():
            seconds, preds = timed(ways)
            probs = np.exp(preds) if name != "scikit-learn" and not ds.is_multi else preds
            runs[name] = [share_right(probs, ds.y), log_loss(probs, ds.y), seconds]
        runs["learning_curve"] = [timed(learn.learning_curve)[0]] if len(ds) > 20 * ds.c else []

    benchmark.pedantic(everything, rounds=1)
    benchmark.extra_info |= {"rows": rows.name, "runs": runs}


def regression(x: NDArray[np.float64], y: NDArray[Any], folds: NDArray[np.int64], classes: int) -> NDArray[np.float64]:
    """Out-of-fold probabilities; C and the scaling are chosen on a fifth of the first fold's training rows."""
    first = np.flatnonzero(folds > 0)
    ways = [("standard", 1.0)]
    if len(x) <= MOST_TUNED:
        few, rest = (first[part] for part in next(KFold(FOLDS, shuffle=True, random_state=0).split(first)))
        losses = {}
        for scaling in ("standard", "raw"):
            a, b = scaled(x[few], x[rest], scaling)
            for strength in STRENGTHS[:-2]:
                losses[scaling, strength] = log_loss(predicted(a, y[few], b, classes, strength), y[rest])
        ways = [min(losses, key=lambda way: losses[way])]
    probs = np.empty((len(x), classes))
    for fold in np.unique(folds):
        train, held_out = folds != fold, folds == fold
        a, b = scaled(x[train], x[held_out], ways[0][0])
        probs[held_out] = predicted(a, y[train], b, classes, ways[0][1])
    return probs


@pytest.mark.parametrize("name", ["catsdogs", "scenes"])
def bench_planted(benchmark: Any, tmp_path: Path, threads: int, quick: bool, name: str) -> None:
    torch.set_num_threads(threads)
    learn = learner(of_set(name, 700 if name == "catsdogs" else 1600).data(tmp_path))
    runs: list[list[float]] = []

    def everything() -> None:
        seeds = SEEDS[: 1 if quick else None]
        runs.extend([share, *found(learn, share, seed)] for share in PLANTED for seed in seeds)

    benchmark.pedantic(everything, rounds=1)
    benchmark.extra_info |= {"images": f"{name}, {len(learn.data.trn_ds):,}", "planted": runs}


def found(learn: Any, share: float, seed: int) -> tuple[float, float, float]:
    """Precision and recall of the audit's list of rows with labels planted in ``share`` of them, and seconds.

    Of several labels, one of a row is turned into its opposite; what is wrong before counts as right.
    """
    ds, rng = learn.data.trn_ds, np.random.default_rng(seed)
    y = ds.y.copy()
    wrong = rng.choice(len(y), round(share * len(y)), replace=False)
    if ds.is_multi:
        columns = rng.integers(ds.c, size=len(wrong))
        y[wrong, columns] = 1 - y[wrong, columns]
    else:
        y[wrong] = (y[wrong] + rng.integers(1, ds.c, size=len(wrong))) % ds.c
    sets = (np.asarray(ds.rows), y), (np.asarray(ds.rows[:50]), y[:50])
    data = ImageClassifierData.from_arrays(learn.data.path, *sets, classes=ds.classes, device="cpu")
    seconds, audit = timed(HeadLearner(data).audit)
    listed = {finding.row for finding in audit.of("label") if finding.set == "train"}
    hits = len(listed & set(wrong.tolist()))
    return hits / max(1, len(listed)), hits / len(wrong), seconds
