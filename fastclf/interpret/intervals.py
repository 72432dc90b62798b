"""95 % intervals of measures: how far other sets of as many rows, of the same kind, would give other numbers.

Shares of rows (accuracy) have Wilson's interval (1927), which holds where all rows are right too. All else is
bootstrapped: rows are drawn with replacement, 1,000 times, and the interval lies between two percentiles of the values,
corrected for bias and skewness (BCa; Efron, "Better Bootstrap Confidence Intervals", 1987). Here measures are computed
for many resamples at once, where a row counts as often as it was drawn; `measures` has them of the set itself, and the
tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Flags, Floats
from fastclf.interpret.measures import log_losses

Interval = tuple[float, float]
Statistic = Callable[[Floats], dict[str, Floats]]
"""From how often each row counts in each resample, ``[B, N]``, to values of each resample, ``[B]``."""

OF_GROUPS = "the intervals take rows as independent; as rows of one group are not, the true ones are wider"

LEAST_ROWS = 10
_RESAMPLES = 1000
_PROBABLE = (0.025, 0.975)
_LEAST_BELOW = 0.05  # share of resamples below the value, and above it, for its bias to be known
_LEFT_OUT_IN_TURN = 500  # groups of rows, for the skewness
_AT_ONCE = 2_000_000  # counts of rows, to bound memory
_MOST_RANKED = 200_000_000  # counts of rows times columns, to bound time: a few seconds


def of_share(hits: int, n: int) -> Interval:
    """Return Wilson's interval of a share of rows."""
    from scipy.stats import binomtest

    if not n:
        return np.nan, np.nan
    found = binomtest(hits, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def bootstrap(statistic: Statistic, n: int, resamples: int = _RESAMPLES, seed: int = 0) -> dict[str, Interval]:
    """Return the bootstrap's intervals of ``n`` rows; none of fewer than ten.

    Resamples in which a value is undefined are left out; where those are most of them, the interval is (NaN, NaN).
    """
    if n < LEAST_ROWS:
        return {}
    rng = np.random.default_rng(seed)
    groups = rng.permutation(n) % min(n, _LEFT_OUT_IN_TURN)
    found = statistic(np.ones((1, n)))
    drawn = _in_parts(statistic, resamples, n, lambda numbers: _counts(rng, len(numbers), n))
    others = _in_parts(statistic, min(n, _LEFT_OUT_IN_TURN), n, lambda numbers: _without(groups, numbers))
    return {name: _interval(found[name][0], drawn[name], others[name]) for name in found}


def of_one_label(probs: Floats, y: NDArray[np.int64]) -> Statistic:
    """Return what computes the measures of one label, see `measures.of_one_label`."""
    c = probs.shape[1]
    guess = probs.argmax(1)
    right = (guess == y).astype(np.float64)
    loss = log_losses(probs, y)
    true, guessed = (_indicators(numbers, c) for numbers in (y, guess))

    def statistic(counts: Floats) -> dict[str, Floats]:
        hits, predicted, positive = (counts * right) @ true, counts @ guessed, counts @ true
        precision, recall, f1 = _decisions(hits, predicted, positive)
        rows = counts.sum(1)
        total, by_chance = hits.sum(1), (predicted * positive).sum(1)
        spread = (rows**2 - (predicted**2).sum(1)) * (rows**2 - (positive**2).sum(1))
        return {
            "balanced_accuracy": _mean(recall),
            "precision_macro": _mean(precision),
            "recall_macro": _mean(recall),
            "f1_macro": _mean(f1),
            **_rankings(counts, probs, y[:, None] == np.arange(c)),
            "log_loss": counts @ loss / rows,
            "kappa": _ratio(total * rows - by_chance, rows**2 - by_chance),
            "mcc": np.where(spread > 0, _ratio(total * rows - by_chance, np.sqrt(spread)), 0.0),
        }

    return statistic


def of_several_labels(probs: Floats, true: Flags, chosen: Flags) -> Statistic:
    """Return what computes the measures of several labels, see `measures.of_several_labels`."""
    loss = log_losses(probs, true)
    hit, on, yes = ((flags).astype(np.float64) for flags in (true & chosen, chosen, true))

    def statistic(counts: Floats) -> dict[str, Floats]:
        hits, predicted, positive = counts @ hit, counts @ on, counts @ yes
        precision, recall, f1 = _decisions(hits, predicted, positive)
        micro = _decisions(*(values.sum(1) for values in (hits, predicted, positive)))
        rows = counts.sum(1, keepdims=True)
        negative, refused = rows - positive, rows - predicted
        right = rows - predicted - positive + 2 * hits
        by_chance = predicted * positive + refused * negative
        specificity = _ratio(right - hits, negative)
        spread = np.where((positive > 0) & (negative > 0), np.sqrt(predicted * refused * positive * negative), np.nan)
        mcc = _ratio(rows * hits - predicted * positive, spread)
        return {
            "accuracy": (right / rows).mean(1),
            "balanced_accuracy": _mean((recall + specificity) / 2),
            "precision_macro": _mean(precision),
            "recall_macro": _mean(recall),
            "f1_macro": _mean(f1),
            "precision_micro": micro[0],
            "recall_micro": micro[1],
            "f1_micro": micro[2],
            **_rankings(counts, probs, true),
            "log_loss": counts @ loss / rows[:, 0],
            "kappa": _mean(np.where(np.isnan(spread), np.nan, _ratio(right * rows - by_chance, rows**2 - by_chance))),
            "mcc": _mean(np.where(spread == 0, 0.0, mcc)),
        }

    return statistic


def of_regression(preds: Floats, y: Floats) -> Statistic:
    """Return what computes the measures of a regression, see `measures.of_regression`."""
    errors = preds - y
    squares, sizes, centred = errors**2, np.abs(errors), y - y.mean(0)

    def statistic(counts: Floats) -> dict[str, Floats]:
        rows = counts.sum(1, keepdims=True)
        squared = counts @ squares
        around = counts @ centred**2 - (counts @ centred) ** 2 / rows
        r2 = 1 - _ratio(squared, np.where(np.ptp(y, axis=0) > 0, around, 0))
        return {
            "r2": _mean(r2),
            "mae": (counts @ sizes / rows).mean(1),
            "rmse": np.sqrt(squared / rows).mean(1),
        }

    return statistic


def _in_parts(statistic: Statistic, total: int, n: int, counts: Callable[[range], Floats]) -> dict[str, Floats]:
    size = max(1, _AT_ONCE // n)
    parts = [statistic(counts(range(start, min(start + size, total)))) for start in range(0, total, size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _without(groups: NDArray[np.int64], numbers: range) -> Floats:
    """Return counts of the rows without each of some groups, ``[len(numbers), N]``."""
    kept: Flags = groups != np.arange(numbers.start, numbers.stop)[:, None]
    return kept.astype(np.float64)


def _counts(rng: np.random.Generator, resamples: int, n: int) -> Floats:
    rows = rng.integers(0, n, (resamples, n)) + np.arange(resamples)[:, None] * n
    return np.bincount(rows.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _interval(found: float, drawn: Floats, others: Floats) -> Interval:
    """Return the BCa interval.

    Args:
        found: value of the set.
        drawn: values of the resamples.
        others: values without each group of rows in turn; their skewness is that of the value.
    """
    from scipy.special import ndtr, ndtri

    defined, others = drawn[~np.isnan(drawn)], others[~np.isnan(others)]
    if np.isnan(found) or 2 * len(defined) <= len(drawn):
        return np.nan, np.nan
    below = ((defined < found).mean() + (defined <= found).mean()) / 2
    if not _LEAST_BELOW < below < 1 - _LEAST_BELOW:
        # Resamples are off on one side: of a thousand classes of few rows each, they lack a third. The spread remains.
        half = -ndtri(_PROBABLE[0]) * defined.std()
        return float(found - half), float(found + half)
    bias = ndtri(below)
    changes = others.mean() - others
    spread = (changes**2).sum() ** 1.5
    skewness = np.clip((changes**3).sum() / (6 * spread), -0.2, 0.2) if spread > 0 else 0.0
    z = bias + ndtri(_PROBABLE)
    low, high = np.quantile(defined, ndtr(bias + z / (1 - skewness * z)))
    return float(low), float(high)


def _indicators(numbers: NDArray[np.int64], c: int) -> Any:
    """Return ``[N, c]``, one 1 in each row; sparse, as c may be a thousand."""
    from scipy.sparse import csr_array

    n = len(numbers)
    return csr_array((np.ones(n), numbers, np.arange(n + 1)), shape=(n, c))


def _decisions(hits: Floats, predicted: Floats, positive: Floats) -> tuple[Floats, Floats, Floats]:
    return _ratio(hits, predicted), _ratio(hits, positive), _ratio(2 * hits, predicted + positive)


def _rankings(counts: Floats, probs: Floats, true: Flags) -> dict[str, Floats]:
    """Return mean area under the ROC curve and mean average precision over columns; nothing where it took too long."""
    if _RESAMPLES * probs.size > _MOST_RANKED:
        return {}
    columns = [_ranking(counts, p, t) for p, t in zip(probs.T, true.T, strict=True)]
    roc_auc, average_precision = (_mean(np.stack(values, 1)) for values in zip(*columns, strict=True))
    return {"roc_auc_macro": roc_auc, "average_precision_macro": average_precision}


def _ranking(counts: Floats, scores: Floats, true: Flags) -> tuple[Floats, Floats]:
    """Return area under the ROC curve and average precision of each resample; rows of one score are one step."""
    order = np.argsort(-scores, kind="stable")
    ranked, places = -scores[order], np.flatnonzero(true[order])
    first, last = (np.searchsorted(ranked, ranked[places], side) for side in ("left", "right"))  # the step of each hit
    weights = counts[:, order[places]]
    rows, hits = _sums(counts[:, order]), _sums(weights)
    hits_before, hits_by = (hits[:, np.searchsorted(places, ends)] for ends in (first, last))
    rows_before, rows_by = rows[:, first], rows[:, last]
    positive = hits[:, -1]
    negative = rows[:, -1] - positive
    misses = (rows_before - hits_before + rows_by - hits_by) / 2  # a negative row of the same score counts half
    area = (weights * (negative[:, None] - misses)).sum(1)
    precision = hits_by / np.maximum(rows_by, 1)
    return _ratio(area, positive * negative), _ratio((weights * precision).sum(1), positive)


def _sums(counts: Floats) -> Floats:
    """Return the sums ``[B, N + 1]`` of the first 0 to N counts."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    counts.cumsum(1, out=sums[:, 1:])
    return sums


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole != 0))


def _mean(values: Floats) -> Floats:
    """Return the mean over columns of what is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0).sum(1), defined.sum(1).astype(np.float64))
