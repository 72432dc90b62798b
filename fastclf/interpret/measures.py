"""How good predictions are, in numbers: scikit-learn's, of a whole set and of each class, label or column.

What is undefined, such as the recall of a class without rows, is NaN, and averages leave it out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Flags, Floats

SAME_AS_ACCURACY = ("precision_micro", "recall_micro", "f1_micro")
"""Measures that are the accuracy, where rows have one label."""

_BINS = 15
_EPS = float(np.finfo(np.float64).eps)


def log_losses(probs: Floats, y: NDArray[Any], least: float = _EPS) -> Floats:
    """Return the log loss of each row ``[N]``; where rows have several labels, the mean over these.

    Args:
        probs: ``[N, C]``.
        y: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        least: what the probability of the truth counts as where it is lower: a certain mistake is costly, not infinite.
    """
    of_truth = probs[np.arange(len(y)), y][:, None] if y.ndim == 1 else np.where(y > 0, probs, 1 - probs)
    return np.asarray(-np.log(of_truth.clip(least, 1)).mean(1))


@dataclass(frozen=True)
class Measures:
    """Numbers by name.

    Attributes:
        overall: of the whole set.
        each: of each class, label or column, ``[C]``.
    """

    overall: dict[str, float]
    each: dict[str, NDArray[Any]]


def of_one_label(probs: Floats, y: NDArray[np.int64], topk: int) -> Measures:
    """Measure probabilities ``[N, C]`` against class numbers ``[N]``; a class against all others in what is per class.

    Args:
        probs: rows add up to 1.
        y: the right classes.
        topk: how many of the most probable classes count in ``top_K_accuracy``, which C > topk alone has.
    """
    from sklearn import metrics

    c = probs.shape[1]
    classes = np.arange(c)
    guess = probs.argmax(1)
    true = y[:, None] == classes
    each = {
        "rows": true.sum(0),
        "predicted": np.bincount(guess, minlength=c),
        **_decisions(y, guess, labels=classes),
        **_rankings(probs, true),
    }
    with _undefined_is_expected():
        overall = {
            "accuracy": metrics.accuracy_score(y, guess),
            **(
                {f"top_{topk}_accuracy": metrics.top_k_accuracy_score(y, probs, k=topk, labels=classes)}
                if topk < c
                else {}
            ),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, guess),
            **_averages(each, y, guess, labels=classes),
            "log_loss": metrics.log_loss(y, probs, labels=classes),
            "kappa": metrics.cohen_kappa_score(y, guess),
            "mcc": metrics.matthews_corrcoef(y, guess),
            "calibration_error": calibration_error(probs.max(1), guess == y),
        }
    return Measures(_floats(overall), each)


def of_several_labels(probs: Floats, true: Flags, chosen: Flags, thresholds: Floats) -> Measures:
    """Measure probabilities ``[N, C]``, and the labels that were chosen for them, against those that rows have.

    Overall, ``accuracy`` is the share of right decisions and ``exact_match`` that of rows whose labels are all right;
    ``kappa``, ``mcc``, ``balanced_accuracy`` and ``log_loss`` are means over labels.
    """
    from sklearn import metrics

    two = np.array([0, 1])
    both: Flags = np.asarray(true.any(0) & ~true.all(0))  # a label against its absence: undefined without either

    def per_label(measure: Callable[[NDArray[Any], NDArray[Any]], float], guess: NDArray[Any], where: Flags) -> Floats:
        values = [measure(t, g) if w else np.nan for t, g, w in zip(true.T, guess.T, where, strict=True)]
        return np.array(values, np.float64)

    with _undefined_is_expected():
        each = {
            "rows": true.sum(0),
            "predicted": chosen.sum(0),
            "threshold": thresholds,
            "accuracy": (true == chosen).mean(0),
            "balanced_accuracy": per_label(metrics.balanced_accuracy_score, chosen, both),
            **_decisions(true, chosen),
            **_rankings(probs, true),
            "log_loss": per_label(lambda t, p: metrics.log_loss(t, p, labels=two), probs, np.ones_like(both)),
            "kappa": per_label(metrics.cohen_kappa_score, chosen, both),
            "mcc": per_label(metrics.matthews_corrcoef, chosen, both),
            "calibration_error": per_label(lambda t, p: calibration_error(p, t), probs, np.ones_like(both)),
        }
        overall = {
            "exact_match": metrics.accuracy_score(true, chosen),
            "accuracy": 1 - metrics.hamming_loss(true, chosen),
            "balanced_accuracy": mean_of_defined(each["balanced_accuracy"]),
            **_averages(each, true, chosen),
            "roc_auc_micro": _roc_auc(true.ravel(), probs.ravel()),
            "average_precision_micro": _average_precision(true.ravel(), probs.ravel()),
            **{name: mean_of_defined(each[name]) for name in ("log_loss", "kappa", "mcc")},
            "calibration_error": calibration_error(probs.ravel(), true.ravel()),
        }
    return Measures(_floats(overall), each)


def of_regression(preds: Floats, y: Floats) -> Measures:
    """Measure predictions against targets, both ``[N, K]``; R² is undefined where a column of targets is constant."""
    from sklearn import metrics

    several: dict[str, Any] = {"multioutput": "raw_values"}
    with _undefined_is_expected():
        each = {
            "r2": np.where(np.ptp(y, axis=0) > 0, metrics.r2_score(y, preds, **several), np.nan),
            "mae": metrics.mean_absolute_error(y, preds, **several),
            "rmse": metrics.root_mean_squared_error(y, preds, **several),
        }
    return Measures({name: mean_of_defined(values) for name, values in each.items()}, each)


def calibration_error(confidences: Floats, right: Flags) -> float:
    """Return how far confidences are from shares of right answers, the mean over rows, in 15 bins of equal width.

    The expected calibration error of Naeini et al., 2015, and Guo et al., 2017. That of few rows is above 0 also where
    every probability is what it should be.
    """
    bins = np.clip(np.ceil(confidences * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = np.bincount(bins, weights=confidences - right)  # of each bin, times its rows
    return float(np.abs(gaps).sum() / len(right))


def _decisions(y: NDArray[Any], guess: NDArray[Any], **how: Any) -> dict[str, Floats]:
    from sklearn.metrics import precision_recall_fscore_support

    with _undefined_is_expected():
        precision, recall, f1, _ = precision_recall_fscore_support(y, guess, zero_division=np.nan, **how)
    return {"precision": precision, "recall": recall, "f1": f1}


def _averages(each: dict[str, Any], y: NDArray[Any], guess: NDArray[Any], **how: Any) -> dict[str, float]:
    averages = {f"{name}_macro": mean_of_defined(each[name]) for name in ("precision", "recall", "f1")}
    averages |= {f"{name}_micro": float(v) for name, v in _decisions(y, guess, average="micro", **how).items()}
    return averages | {f"{name}_macro": mean_of_defined(each[name]) for name in ("roc_auc", "average_precision")}


def _rankings(probs: Floats, true: Flags) -> dict[str, Floats]:
    columns = list(zip(true.T, probs.T, strict=True))
    return {
        "roc_auc": np.array([_roc_auc(t, p) for t, p in columns]),
        "average_precision": np.array([_average_precision(t, p) for t, p in columns]),
    }


def _roc_auc(true: Flags, scores: Floats) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(true, scores)) if true.any() and not true.all() else np.nan


def _average_precision(true: Flags, scores: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(true, scores)) if true.any() else np.nan


def mean_of_defined(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else np.nan


def _floats(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


@contextmanager
def _undefined_is_expected() -> Iterator[None]:
    """Silence scikit-learn's warnings of classes without rows: what is undefined is NaN here, and tables say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
