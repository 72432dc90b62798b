"""What is tuned on predictions for a validation set: temperature, thresholds, and how sure the model is of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Floats
from fastclf.decision import HALF
from fastclf.models.from_pixels import BELOW_ONE

_LOWEST, _HIGHEST = 0.01, 100.0  # temperatures
_MOST_CONFIDENCES = 1000

# From the probabilities of rows having a label, the one above which a row is better said to have it.
_METRICS: dict[str, Callable[[Floats], float]] = {
    "accuracy": lambda _: HALF,
    "balanced_accuracy": lambda q: float(q.mean()),
    "f1": lambda q: _best_expected_f(q, 1) / 2,
    "f2": lambda q: _best_expected_f(q, 2) / 5,
}


def best_temperature(preds: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Return the temperature of the lowest log loss (Guo et al., "On Calibration of Modern Neural Networks", 2017).

    The loss is convex in the inverse temperature, so the search finds its one minimum.

    Args:
        preds: ``[N, C]`` log-probabilities, with ``y [N]``; or probabilities, with ``y [N, C]`` of zeros and ones.
        y: the right answers.

    Returns:
        The temperature, in .01..100; None where every answer is right, as then the lower it is the lower the loss.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if y.ndim == 2:
        # A label is a choice between two classes, of which "yes" has the log-odds and "no" has 0.
        odds = _log_odds(preds).ravel()
        z, y = np.stack([np.zeros_like(odds), odds], 1), y.ravel()
    else:
        z = preds.astype(np.float64)
    of_right = z[np.arange(len(y)), y.astype(np.int64)]
    if (of_right >= z.max(1)).all():
        return None

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(z * scale, axis=1) - of_right * scale))

    bounds = (np.log(_LOWEST), np.log(_HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x))


def thinned(confidences: NDArray[Any]) -> tuple[float, ...]:
    """Return at most 1,000 of the confidences, ascending, at even distances of rank.

    Of m values kept of n, the j-th (from 1) has rank ``floor(j (n + 1) / (m + 1))``: a new row of the same kind is
    below it with a probability of at most ``j / (m + 1)``.
    """
    values = np.sort(confidences.astype(np.float64))
    n = len(values)
    m = min(n, _MOST_CONFIDENCES)
    ranks = np.arange(1, m + 1) * (n + 1) // (m + 1)
    return tuple(values[ranks - 1].tolist())


def best_thresholds(probs: NDArray[Any], y: NDArray[Any], metric: str = "f1") -> tuple[float, ...]:
    """Return for each label the threshold of its probability that a metric is expected to be best with.

    The threshold that is best on few rows is not that for others, and often worse than .5. So a logistic curve is
    fitted to the label's log-odds (Platt, "Probabilistic Outputs for Support Vector Machines", 1999), and the threshold
    is the one that is best if its probabilities are right: for F_beta, 1 / (1 + beta²) of the highest F_beta that can
    be expected (Lipton et al., "Optimal Thresholding of Classifiers to Maximize F1 Measure", 2014).

    Args:
        probs: ``[N, C]`` probabilities.
        y: ``[N, C]`` zeros and ones.
        metric: ``"f1"``, ``"f2"`` (recall counts twice as much), ``"accuracy"`` or ``"balanced_accuracy"``.

    Returns:
        One per label; .5 for one that all rows or none have, or whose probabilities say nothing of it.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in _METRICS:
        raise ValueError(f"tune_thresholds: metric must be one of {', '.join(_METRICS)}, got {metric!r}")
    columns = zip(probs.T, (y > 0).T, strict=True)
    return tuple(_best_threshold(_log_odds(p), positive, _METRICS[metric]) for p, positive in columns)


def _best_threshold(odds: Floats, positive: NDArray[np.bool_], metric: Callable[[Floats], float]) -> float:
    from scipy.special import expit, logit
    from sklearn.linear_model import LogisticRegression

    if positive.all() or not positive.any() or np.ptp(odds) == 0:
        return HALF
    curve = LogisticRegression(C=1e3, max_iter=1000).fit(odds[:, None], positive)
    slope, offset = curve.coef_[0, 0], curve.intercept_[0]
    if slope <= 0:  # the higher the probability, the rarer the label
        return HALF
    return float(expit((logit(metric(expit(slope * odds + offset))) - offset) / slope))


def _best_expected_f(q: Floats, beta: float) -> float:
    """Return the highest F_beta that can be expected where rows have a label with probabilities ``q``."""
    hits, chosen = np.sort(q)[::-1].cumsum(), np.arange(1, len(q) + 1)
    return float(((1 + beta**2) * hits / (chosen + beta**2 * q.sum())).max())


def _log_odds(probs: NDArray[Any]) -> Floats:
    from scipy.special import logit

    return np.asarray(logit(np.clip(probs.astype(np.float64), 1 - BELOW_ONE, BELOW_ONE)))
