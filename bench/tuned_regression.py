"""scikit-learn's logistic regression on rows, its C and the scaling of its features chosen by cross-validation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.preprocessing import StandardScaler

FOLDS = 5
STRENGTHS = [10.0**power for power in range(-4, 4)]  # of C
SCALINGS = ("standard", "raw")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tuned:
    """Probabilities of held-out rows, and what was chosen."""

    probs: Floats
    strength: float
    scaling: str


def tuned(x: Floats, y: NDArray[Any], held_out: Floats, classes: int, seed: int) -> Tuned:
    """Learn from ``x [N, F]`` and ``y``, classes ``[N]`` or labels ``[N, C]``; several labels share one C."""
    dealer = KFold if y.ndim == 2 else StratifiedKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes that are rarer than folds
        folds = list(dealer(FOLDS, shuffle=True, random_state=seed).split(x, y))
    losses = {}
    for scaling in SCALINGS:
        parts = [(*scaled(x[train], x[test], scaling), y[train], y[test]) for train, test in folds]
        for strength in STRENGTHS:
            found = [
                log_loss(predicted(few, labels, rest, classes, strength), truth) for few, rest, labels, truth in parts
            ]
            losses[scaling, strength] = float(np.mean(found))
    scaling, strength = min(losses, key=lambda key: losses[key])
    few, rest = scaled(x, held_out, scaling)
    return Tuned(predicted(few, y, rest, classes, strength), strength, scaling)


def scaled(x: Floats, others: Floats, scaling: str) -> tuple[Floats, Floats]:
    """Scale by ``x``, and turn both into the span of ``x``, where the penalised minimum lies, to be faster."""
    if scaling == "standard":
        scaler = StandardScaler().fit(x)
        x, others = scaler.transform(x), scaler.transform(others)
    mean = x.mean(0)
    axes = np.linalg.qr((x - mean).T)[0]
    return (x - mean) @ axes, (others - mean) @ axes


def predicted(x: Floats, y: NDArray[Any], others: Floats, classes: int, strength: float) -> Floats:
    """Probabilities ``[M, C]`` of other rows; 0 for classes that are not in ``y``."""
    if y.ndim == 2:
        return np.concatenate([predicted(x, label, others, 2, strength)[:, 1:] for label in y.T], 1)
    probs = np.zeros((len(others), classes))
    known = np.unique(y).astype(int)
    if len(known) == 1:
        probs[:, known] = 1
        return probs
    probs[:, known] = LogisticRegression(C=strength, max_iter=1000).fit(x, y).predict_proba(others)
    return probs


def log_loss(probs: Floats, y: NDArray[Any]) -> float:
    """Mean over rows, and over labels; a probability of 0 counts as 1e-7."""
    probs = np.clip(probs.astype(np.float64), 1e-7, 1 - 1e-7)
    if y.ndim == 2:
        return float(-np.where(y > 0, np.log(probs), np.log(1 - probs)).mean())
    return float(-np.log(probs[np.arange(len(y)), y] / probs.sum(1)).mean())


def share_right(probs: Floats, y: NDArray[Any]) -> float:
    """Accuracy; of several labels at .5."""
    return float(((probs > 0.5) == (y > 0)).mean() if y.ndim == 2 else (probs.argmax(1) == y).mean())
