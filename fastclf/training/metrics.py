"""Metrics: functions of (predictions, targets) that return one number.

Predictions ``[N, C]`` are log-probabilities or probabilities where rows have one label (targets ``[N]`` of class
numbers), probabilities where they have several (targets ``[N, C]`` of zeros and ones). Torch tensors and numpy arrays
are taken alike. What is undefined, such as the recall of a class without rows, is NaN, never 0.

Rows whose targets mark them as without prediction (`without_prediction`) are left out.

What precision, recall and F mean:

==================== ==============================================
one label, 2 classes of the second class
one label, more      mean over classes, those undefined left out
several labels       mean over rows, those undefined left out
==================== ==============================================
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclf.arrays import Floats
from fastclf.interop import numpy_of

Values = Tensor | NDArray[Any]
Metric = Callable[..., Any]

NO_PREDICTION = -1
"""Target, instead of a class, of a row that has no prediction because its image cannot be decoded."""


def mark_without_prediction(targs: Tensor, rows: Tensor) -> Tensor:
    """Return targets that mark some rows as without prediction.

    Predictions of such rows are NaN, but their ``argmax(1)`` is class 0 like any other; so their targets are marked.

    Args:
        targs: ``[N] int64`` class numbers, or ``[N, C]`` or ``[N] float`` for several labels and numbers.
        rows: which of them.

    Returns:
        A copy that holds `NO_PREDICTION` in these rows, or NaN where targets are floats.
    """
    marked = targs.clone()
    marked[rows] = torch.nan if marked.is_floating_point() else NO_PREDICTION
    return marked


def without_prediction(targs: Values) -> NDArray[np.bool_]:
    """Return which rows of targets `mark_without_prediction` has marked, ``[N]``."""
    y = numpy_of(targs)
    missing = np.isnan(y) if np.issubdtype(y.dtype, np.floating) else np.equal(y, NO_PREDICTION)
    rows: NDArray[np.bool_] = missing.any(axis=tuple(range(1, y.ndim)))
    return rows


def accuracy(preds: Values, targs: Values) -> float:
    """Share of rows whose most probable class is the right one.

    Args:
        preds: ``[N, C]`` log-probabilities or probabilities.
        targs: ``[N]`` class numbers.

    Returns:
        The share, in 0..1.

    Raises:
        ValueError: shapes or targets do not fit.
    """
    p, y = _arrays("accuracy", preds, targs)
    _require_one_label("accuracy", y, "accuracy_thresh(thresh)")
    return _mean((p.argmax(1) == y).astype(np.float64)) if not _has_nan(p) else np.nan


def accuracy_np(preds: Values, targs: Values) -> float:
    """Share of rows whose most probable class is the right one; the lesson's name for arrays.

    Args:
        preds: ``[N, C]`` log-probabilities or probabilities.
        targs: ``[N]`` class numbers.

    Returns:
        The share, in 0..1.
    """
    return accuracy(preds, targs)


def accuracy_thresh(thresh: float) -> Metric:
    """Make a metric: share of right yes-or-no decisions, one per row and class, "yes" above ``thresh``.

    Args:
        thresh: probability, in 0..1.

    Returns:
        A metric of ``[N, C]`` probabilities (log-probabilities where rows have one label).
    """
    _require_probability("accuracy_thresh", thresh)

    def metric(preds: Values, targs: Values) -> float:
        p, y = _arrays(metric.__name__, preds, targs)
        p, y = _probabilities(p, y), _one_hot(y, p.shape[1])
        return _mean(((p > thresh) == (y > 0)).astype(np.float64)) if not _has_nan(p) else np.nan

    metric.__name__ = f"accuracy_thresh({thresh:g})"
    return metric


def precision(preds: Values, targs: Values, thresh: float | None = None) -> float:
    """Share of what was predicted positive that is. ``thresh``: see `fbeta`.

    Args:
        preds: ``[N, C]`` (log-)probabilities.
        targs: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        thresh: see `fbeta`.

    Returns:
        The share, in 0..1.
    """
    hits, predicted, _ = _counts("precision", preds, targs, thresh)
    return _mean_ratio(hits, predicted)


def recall(preds: Values, targs: Values, thresh: float | None = None) -> float:
    """Share of what is positive that was predicted so. ``thresh``: see `fbeta`.

    Args:
        preds: ``[N, C]`` (log-)probabilities.
        targs: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        thresh: see `fbeta`.

    Returns:
        The share, in 0..1.
    """
    hits, _, positive = _counts("recall", preds, targs, thresh)
    return _mean_ratio(hits, positive)


def f1(preds: Values, targs: Values, thresh: float | None = None) -> float:
    """Harmonic mean of precision and recall. ``thresh``: see `fbeta`.

    Args:
        preds: ``[N, C]`` (log-)probabilities.
        targs: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        thresh: see `fbeta`.

    Returns:
        The score, in 0..1.
    """
    hits, predicted, positive = _counts("f1", preds, targs, thresh)
    return _mean_ratio(2 * hits, predicted + positive)


def fbeta(beta: float, thresh: float | None = None) -> Metric:
    """Make a metric: the F score that weighs recall ``beta`` times as much as precision.

    ``(1 + beta²) hits / (predicted + beta² positive)``, van Rijsbergen, 1979.

    Args:
        beta: weight of recall, above 0: 2 for F2.
        thresh: probability above which a label is predicted. Several labels: .5 by default. One label and two classes:
            of the second class; the more probable class by default. One label and more classes: not taken.

    Returns:
        A function of predictions and targets.
    """
    if not beta > 0:
        raise ValueError(f"fbeta: beta must be above 0, got {beta}. Use 2 for F2.")
    if thresh is not None:
        _require_probability("fbeta", thresh)

    def metric(preds: Values, targs: Values) -> float:
        hits, predicted, positive = _counts(metric.__name__, preds, targs, thresh)
        return _mean_ratio((1 + beta**2) * hits, predicted + beta**2 * positive)

    metric.__name__ = f"f{beta:g}" if thresh is None else f"f{beta:g}({thresh:g})"
    return metric


def mean_average_precision(preds: Values, targs: Values) -> float:
    """Mean over labels of the average precision: how well each label's probability ranks the rows, without a threshold.

    Average precision is the precision at every positive row, averaged (Zhu, 2004); rows of equal probability count as
    one step, as in scikit-learn's ``average_precision_score``. Labels without a positive row are left out.

    Args:
        preds: ``[N, C]`` probabilities (or logits).
        targs: ``[N, C]`` of zeros and ones.

    Returns:
        The mean, in 0..1.

    Raises:
        ValueError: shapes do not fit.
    """
    p, y = _arrays("mean_average_precision", preds, targs)
    if y.ndim != 2:
        raise ValueError("mean_average_precision: targets must be [N, C] zeros and ones. Use accuracy for one label.")
    return np.nan if _has_nan(p) else _mean(_average_precisions(p, y > 0))


def log_loss(preds: Values, targs: Values) -> float:
    """Mean negative log-likelihood; of each decision where rows have several labels.

    Probabilities, or those that logarithms are of, are kept the machine precision of their type away from 0 and 1, so
    one certain mistake is costly, not infinite.

    Args:
        preds: ``[N, C]`` (log-)probabilities.
        targs: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.

    Returns:
        The loss, 0 at best.
    """
    p, y = _arrays("log_loss", preds, targs)
    if _has_nan(p):
        return np.nan
    eps = float(np.finfo(np.result_type(numpy_of(preds), np.float16)).eps)
    if y.ndim == 2:
        p = p.clip(eps, 1 - eps)
        return _mean(-np.log(np.where(y > 0, p, 1 - p)))
    log_p = p.clip(np.log(eps)) if (p < 0).any() else np.log(p.clip(eps, 1))
    return _mean(-log_p[np.arange(len(y)), y.astype(np.int64)])


def name_of(metric: Metric) -> str:
    """Name a metric, or another function, for people; a `functools.partial` by what it calls, and how."""
    if isinstance(metric, partial) and not hasattr(metric, "__name__"):
        named = (f"{name}={_short(value)}" for name, value in metric.keywords.items())
        arguments = [*map(_short, metric.args), *named]
        return f"{name_of(metric.func)}({', '.join(arguments)})"
    return str(getattr(metric, "__name__", type(metric).__name__))


def _short(value: object) -> str:
    return name_of(value) if callable(value) else reprlib.repr(value)


def names_of(metrics: Iterable[Metric]) -> list[str]:
    """Name the metrics of a fit, a name for each: what is called as one before it is numbered."""
    return distinct(map(name_of, metrics))


def distinct(names: Iterable[str]) -> list[str]:
    """Return names of which no two are the same, in their order."""
    found: list[str] = []
    for name in names:
        numbered = itertools.chain([name], (f"{name} {i}" for i in itertools.count(2)))
        found.append(next(one for one in numbered if one not in found))
    return found


def evaluate_metric(metric: Metric, preds: Tensor, targs: Tensor) -> float:
    """Compute a metric that may be a function of torch tensors or of numpy arrays.

    Args:
        metric: gets CPU tensors; where it fails on them, numpy arrays. They are copies: it may write into them.
        preds: ``[N, ...]`` predictions.
        targs: ``[N, ...]`` targets.

    Raises:
        ValueError: it fails on both, or its result is not one number; names the metric.
    """
    preds, targs = preds.detach().cpu(), targs.detach().cpu()
    try:
        return float(metric(preds.clone(), targs.clone()))
    except Exception as on_tensors:
        try:
            return float(metric(numpy_of(preds.clone()), numpy_of(targs.clone())))
        except Exception as on_arrays:
            reasons = dict.fromkeys(f"{type(e).__name__}: {e}" for e in (on_tensors, on_arrays))
            raise ValueError(
                f"metric {name_of(metric)!r} must return one number for predictions {list(preds.shape)} and targets "
                f"{list(targs.shape)}, as tensors or as numpy arrays, but fails: {'; '.join(reasons)}"
            ) from on_tensors


def _counts(name: str, preds: Values, targs: Values, thresh: float | None) -> tuple[Floats, Floats, Floats]:
    """Count hits, predicted positives and true positives, per row (several labels) or class (one label)."""
    p, y = _arrays(name, preds, targs)
    if _has_nan(p):
        return (np.full(1, np.nan),) * 3
    n_classes = p.shape[1]
    if y.ndim == 2:
        chosen, true, axis = p > (0.5 if thresh is None else thresh), y > 0, 1
    elif thresh is None:
        chosen, true, axis = _one_hot(p.argmax(1), n_classes) > 0, _one_hot(y, n_classes) > 0, 0
    elif n_classes == 2:
        second = _probabilities(p, y)[:, 1] > thresh
        chosen, true, axis = np.stack([~second, second], 1), _one_hot(y, 2) > 0, 0
    else:
        raise ValueError(f"{name}: thresh must be left out where rows have one label of {n_classes}, got {thresh}")
    counts = [a.sum(axis).astype(np.float64) for a in (chosen & true, chosen, true)]
    if y.ndim == 1 and n_classes == 2:
        counts = [count[1:] for count in counts]
    return counts[0], counts[1], counts[2]


def _average_precisions(p: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Return the average precision of every column that has a positive row."""
    p, positive = p[:, positive.any(0)], positive[:, positive.any(0)]
    order = np.argsort(-p, axis=0, kind="stable")
    p, hits = np.take_along_axis(p, order, 0), np.take_along_axis(positive, order, 0)
    ends = np.ones(p.shape, bool)  # whether a row is the last of those with its probability
    ends[:-1] = p[:-1] != p[1:]
    place = np.where(ends, np.arange(len(p))[:, None], len(p))
    end = np.minimum.accumulate(place[::-1], axis=0)[::-1]
    precision = np.take_along_axis(hits.cumsum(0), end, 0) / (end + 1)
    return np.asarray((precision * hits).sum(0) / hits.sum(0))


def _mean_ratio(part: Floats, whole: Floats) -> float:
    defined = whole != 0
    return _mean(part[defined] / whole[defined])


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else np.nan


def _arrays(name: str, preds: Values, targs: Values) -> tuple[Floats, NDArray[Any]]:
    """Bring predictions and targets to numpy, checked: one row of targets per row of predictions, classes in range."""
    p, y = (numpy_of(v) for v in (preds, targs))
    if p.ndim != 2:
        raise ValueError(f"{name}: predictions must be [N, C], got {list(p.shape)}")
    if y.shape not in ((len(p),), p.shape):
        raise ValueError(f"{name}: targets must be {[len(p)]} or {list(p.shape)}, got {list(y.shape)}")
    missing = without_prediction(y)
    if missing.any():
        p, y = p[~missing], y[~missing]
    if y.ndim == 1:
        if not np.issubdtype(y.dtype, np.integer):
            raise ValueError(
                f"{name}: targets must be class numbers, got {y.dtype}. It is not a metric for regression."
            )
        if len(y) and not 0 <= y.min() <= y.max() < p.shape[1]:
            raise ValueError(f"{name}: targets must be below {p.shape[1]} classes, got {y.min()} to {y.max()}")
    return p.astype(np.float64), y


def _has_nan(p: Floats) -> bool:
    return bool(np.isnan(p).any())


def _probabilities(p: Floats, y: NDArray[Any]) -> Floats:
    """Return probabilities as they are, log-probabilities (one label; none above 0, not all 0) exponentiated."""
    return np.exp(p) if y.ndim == 1 and bool((p < 0).any()) else p


def _one_hot(y: NDArray[Any], n_classes: int) -> NDArray[Any]:
    return y if y.ndim == 2 else np.eye(n_classes)[y]


def _require_one_label(name: str, y: NDArray[Any], instead: str) -> None:
    if y.ndim != 1:
        raise ValueError(f"{name}: targets must be [N] class numbers, got {list(y.shape)}. Use {instead}.")


def _require_probability(name: str, thresh: float) -> None:
    if not 0 <= thresh <= 1:
        raise ValueError(f"{name}: thresh must be a probability in 0..1, got {thresh}")
