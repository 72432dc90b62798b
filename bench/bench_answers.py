"""Answers from cached activations, beside scikit-learn, and cleanlab with a loop of torch, on the same rows."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bench import photographs
from bench.race import timed
from fastclf import ConvLearner, ImageClassifierData, compare, efficientnet_lite0, tfms_from_model
from fastclf.training.folds import make_folds
from fastclf.training.head_runs import HeadSetting

SZ = 128
CORNERS = 5  # of a photograph, the middle among them
FOLDS = 5


@pytest.mark.parametrize("n", [950, 10_000])
def bench_answers(benchmark: Any, tmp_path: Path, threads: int, quick: bool, n: int) -> None:
    torch.set_num_threads(threads)
    x, y = crops(200 if quick else n)
    data = ImageClassifierData.from_arrays(
        tmp_path, (x, y), (x[:50], y[:50]), tfms=tfms_from_model(efficientnet_lite0, SZ), device="cpu"
    )
    taken, learn = timed(lambda: ConvLearner.pretrained(efficientnet_lite0, data, precompute=True))
    seconds = {"pass": taken}
    rows = np.asarray(learn.data.trn_ds.rows, np.float32)
    folds = make_folds(data.trn_ds.labels, FOLDS, seed=0)
    answers: dict[str, Callable[[], Any]] = {
        "cross_validate": learn.cross_validate,
        "audit": learn.audit,
        "compare": lambda: compare(data, [efficientnet_lite0]),
        "learning_curve": learn.learning_curve,
        "sweep": learn.sweep,
        "similar": lambda: learn.similar(rows[:100]),
        "fine_tune": lambda: learn.fine_tune(unfreeze=False),
        "scikit-learn, cross_val_predict": lambda: regression(rows, y, folds),
        "torch, cross-validated": lambda: torch_heads(rows, y, folds),
        "torch and cleanlab": lambda: cleaned(rows, y, folds),
    }
    found: dict[str, Any] = {}

    def everything() -> None:
        for name, answer in answers.items():
            seconds[name], found[name] = timed(answer)

    benchmark.pedantic(everything, rounds=1)
    accuracy = {"cross_validate": found["cross_validate"]["accuracy"]} | {
        name: float((found[name].argmax(1) == y).mean()) for name in answers if isinstance(found[name], np.ndarray)
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    benchmark.extra_info |= {"rows": len(x), "seconds": seconds, "accuracy": accuracy, "peak GB": peak}


def crops(n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """``n`` crops ``[n, SZ, SZ, 3]`` of photographs; the label is the animal and the corner, ten in all."""
    folder = photographs.source("catsdogs")
    rng = np.random.default_rng(0)
    files: list[Path] = rng.permutation(sorted(folder.glob("*/*/*.jpg"))).tolist()
    x, y = np.empty((n, SZ, SZ, 3), np.uint8), np.empty(n, np.int64)
    for i in range(n):
        file, corner = files[i % len(files)], (i + i // len(files)) % CORNERS
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * SZ, 2 * SZ))
            image = opened.convert("RGB")
        side = rng.uniform(0.5, 0.8) * min(image.size)
        along = [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)][corner]
        left, top = (part * (size - side) for part, size in zip(along, image.size, strict=True))
        x[i] = image.resize((SZ, SZ), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        y[i] = CORNERS * (file.parent.name == "dogs") + corner
    return x, y


def regression(x: NDArray[np.float32], y: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Out-of-fold probabilities of standardised logistic regression, at scikit-learn's own strength."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probs: NDArray[np.float64] = cross_val_predict(model, x, y, cv=PredefinedSplit(folds), method="predict_proba")
    return probs


def torch_heads(x: NDArray[np.float32], y: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.float32]:
    """Out-of-fold probabilities of one setting of `cross_validate`, trained by torch as that is, all rows in memory."""
    rows, labels = torch.from_numpy(x), torch.from_numpy(y)
    classes, setting, bs = int(y.max()) + 1, HeadSetting(), 64
    probs = np.empty((len(x), classes), np.float32)
    for fold in range(FOLDS):
        trained, held_out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        model = torch.nn.Sequential(
            *(torch.nn.BatchNorm1d(x.shape[1]), torch.nn.Dropout(0.25), torch.nn.Linear(x.shape[1], 512)),
            *(torch.nn.ReLU(), torch.nn.BatchNorm1d(512), torch.nn.Dropout(0.5), torch.nn.Linear(512, classes)),
        )
        batches = len(trained) // bs
        epochs = setting.epochs_of(-(-len(trained) // bs))
        optimizer = torch.optim.SGD(model.parameters(), setting.lr, 0.9, weight_decay=setting.wd, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches * epochs)
        for _ in range(epochs):
            order = torch.from_numpy(trained)[torch.randperm(len(trained))]
            for batch in order[: batches * bs].split(bs):
                loss = torch.nn.functional.cross_entropy(model(rows[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        model.eval()
        with torch.inference_mode():
            probs[held_out] = model(rows[held_out]).softmax(1).numpy()
    return probs


def cleaned(x: NDArray[np.float32], y: NDArray[np.int64], folds: NDArray[np.int64]) -> int:
    """Number of labels that cleanlab doubts, of the probabilities of `torch_heads`."""
    from cleanlab.filter import find_label_issues

    return int(find_label_issues(y, torch_heads(x, y, folds), n_jobs=1).sum())
