"""How accuracy grows with the number of training images, and what more of them should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Floats, RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.sources.labels import class_number
from fastclf.data.sources.names import shorten
from fastclf.interpret.tables import Cells, Table
from fastclf.training.head_choice import FEW, Fold

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_SHARES, _SHARES_OF_MANY = (0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0), (0.1, 0.25, 0.5, 1.0)
_RESAMPLES = 400
_AT_ONCE = 2_000_000  # counts of rows in resamples, to bound memory
_POWERS = np.linspace(0.05, 1.5, 291)  # so near each other that the loss is within half a percent of the lowest
_PROBABLE = (0.025, 0.975)
_LEAST = 20  # training rows of the smallest part
_MOST_CLASSES = 40


@dataclass(frozen=True, eq=False)
class Part(Fold):
    """One head of the curve.

    Attributes:
        fold: which fold it is tested on.
        share: its number, the smallest 0.
    """

    fold: int
    share: int


def parts(ds: Dataset, folds: RowNumbers, seed: int) -> list[Part]:
    """Make the parts: for each fold, growing shares of all other rows, each containing the ones before.

    The order of the rows is random, and every class keeps about its share. Of many rows there are fewer shares: chance
    has less part in each, and a head takes longer.

    Raises:
        ValueError: there are too few rows.
    """
    good = ds.bad.good_rows()
    shares = _SHARES if len(good) <= FEW else _SHARES_OF_MANY
    if shares[0] * len(good) * (1 - 1 / (folds.max() + 1)) < max(_LEAST, ds.c):
        raise ValueError(
            f"learning_curve: {len(good):,} training rows of {ds.c:,} classes are too few: a tenth of them must be "
            f"{max(_LEAST, ds.c):,} or more. Add images."
        )
    made = []
    for fold in np.unique(folds).tolist():
        others, held_out = good[folds[good] != fold], good[folds[good] == fold]
        order = _stratified_order(ds, others, np.random.default_rng([seed % 2**32, fold]))
        for share, part in enumerate(shares):
            made.append(Part(order[: round(part * len(order))], held_out, seed, fold, share))
    return made


def _stratified_order(ds: Dataset, rows: RowNumbers, rng: np.random.Generator) -> RowNumbers:
    """Shuffle rows so that every prefix has about the same share of each class (of several labels: at random)."""
    rows = rng.permutation(rows)
    if ds.is_multi:
        return rows
    y = ds.y[rows]
    place = np.empty(len(rows))
    for k in np.unique(y):
        own = np.flatnonzero(y == k)
        place[own] = (np.arange(len(own)) + rng.random()) / len(own)
    return rows[np.argsort(place, kind="stable")]


def right(logits: NDArray[np.float32], ds: Dataset, rows: RowNumbers) -> NDArray[np.bool_]:
    """Return which answers ``[n, C]`` of rows are right: ``[n]``, or ``[n, C]`` where rows have several labels."""
    if ds.is_multi:
        return np.asarray((logits > 0) == (ds.y[rows] > 0))
    return np.asarray(logits.argmax(1) == ds.y[rows])


@dataclass(frozen=True)
class Curve:
    """A fitted power law of the error, ``asymptote + scale * n ** -power``, and fits of resamples of it.

    Attributes:
        n: training images, ``[S]``.
        accuracy: measured, ``[S]``.
        fits: ``[1 + B, 3]`` asymptote, scale and power: of the curve itself, then of the resamples.
        tested: rows that each accuracy was measured on.
    """

    n: Floats
    accuracy: Floats
    fits: Floats
    tested: int

    def at(self, n: float) -> tuple[float, float, float]:
        """Return accuracy with ``n`` training images, and the ends of the interval for one measured on as many rows."""
        errors = _law(self.fits, n)
        noise = np.random.default_rng(0).standard_normal(len(errors) - 1)
        spread = np.sqrt(np.clip(errors[1:] * (1 - errors[1:]), 0, None) / self.tested)
        low, high = np.quantile(errors[1:] + noise * spread, _PROBABLE)
        return 1 - float(errors[0]), max(0.0, 1 - float(high)), min(1.0, 1 - float(low))

    def gain(self, n: float) -> tuple[float, float, float]:
        """Return what ``n`` images instead of all that there are should add, and the ends of its interval."""
        gains = _law(self.fits, self.n[-1]) - _law(self.fits, n)
        low, high = np.quantile(gains[1:], _PROBABLE)
        return float(gains[0]), float(low), float(high)


def _law(fits: Floats, n: float) -> Floats:
    values: Floats = np.clip(fits[:, 0] + fits[:, 1] * n ** -fits[:, 2], 0, 1)
    return values


def fit_curve(n: Floats, errors: Floats, tested: int) -> Curve:
    """Fit ``asymptote + scale * n ** -power`` with none of them negative, by weighted least squares.

    The form is that of Cortes, Jackel, Solla, Vapnik and Denker, "Learning Curves: Asymptotic Values and Rate of
    Convergence", 1993; Figueroa, Zeng-Treitler, Kandula and Ngo, "Predicting Sample Size Required for Classification
    Performance", 2012, weight and extrapolate as here. For each of a grid of powers the other two are linear.

    Args:
        n: training images, ``[S]``.
        errors: shares of wrong answers, ``[1 + B, S]``: measured, and of resamples of the tested rows.
        tested: rows that they were measured on.
    """
    weights = n / n.sum()  # later points say more of what comes next
    best = np.full(len(errors), np.inf)
    fits = np.zeros((len(errors), 3))
    mean = errors @ weights
    for power in _POWERS:
        x = n**-power
        centre = x @ weights
        spread = ((x - centre) ** 2) @ weights
        scale = np.maximum(((errors - mean[:, None]) * (x - centre)) @ weights / spread, 0)
        asymptote = mean - scale * centre
        without = np.maximum(errors @ (x * weights) / ((x * x) @ weights), 0)  # the best scale where that is negative
        scale, asymptote = np.where(asymptote < 0, without, scale), np.maximum(asymptote, 0)
        loss = ((errors - asymptote[:, None] - scale[:, None] * x) ** 2) @ weights
        better = loss < best - 1e-12
        best[better] = loss[better]
        fits[better] = np.stack([asymptote, scale, np.full(len(errors), power)], 1)[better]
    return Curve(n, 1 - errors[0], fits, tested)


@dataclass(frozen=True, repr=False)
class LearningCurve(Table):
    """Accuracy over the number of training images. Prints as tables; `plot` draws it.

    Attributes:
        overall: of all classes; of several labels, the share of right answers to all of them.
        each: of each class, its recall (of several labels, the share of right answers) over its number of images,
            where all classes grow alike; None where too few rows are there.
        classes: their names.
    """

    overall: Curve
    each: list[Curve | None]
    classes: list[str]

    def accuracy(self, n: float) -> tuple[float, float, float]:
        """Return the accuracy to be expected with ``n`` training images, and its 95 % interval."""
        return self.overall.at(n)

    def gain(self, cls: int | str, more: int) -> tuple[float, float, float]:
        """Return what ``more`` images of a class should add to its recall, and its 95 % interval.

        All other classes are taken to grow in proportion.
        """
        number = class_number(cls, self.classes, "gain: cls")
        curve = self.each[number]
        if curve is None:
            raise ValueError(f"gain: class {self.classes[number]!r} has too few images for a curve")
        return curve.gain(curve.n[-1] + more)

    def plot(self) -> Axes:
        """Draw the measured accuracies, the fit, and its interval up to four times as many images."""
        import matplotlib.pyplot as plt

        from fastclf.interpret.figure import ReturnedFigure

        curve = self.overall
        ns = np.geomspace(curve.n[0], 4 * curve.n[-1], 60)
        values = np.array([curve.at(n) for n in ns])
        ax: Axes = plt.figure(figsize=(6, 4), layout="constrained", FigureClass=ReturnedFigure).add_subplot()
        ax.fill_between(ns, values[:, 1], values[:, 2], alpha=0.2, label="95 % interval")
        ax.plot(ns, values[:, 0], label="power law")
        ax.plot(curve.n, curve.accuracy, "o", label="measured")
        ax.set(xscale="log", xlabel="training images", ylabel="accuracy")
        ax.legend()
        return ax

    def _columns(self) -> list[str]:
        return ["class", "images", "accuracy", "low", "high", "measured"]

    def _rows(self) -> list[list[Any]]:
        table: list[list[Any]] = []
        for name, curve in [("all", self.overall), *zip(self.classes, self.each, strict=True)]:
            if curve is None:
                continue
            table += [[name, round(n), a, None, None, True] for n, a in zip(curve.n, curve.accuracy, strict=True)]
            table += [[name, round(f * curve.n[-1]), *curve.at(f * curve.n[-1]), False] for f in (2, 4)]
        return table

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        curve = self.overall
        whole: Cells = [["training images", "accuracy", "95 % interval"]]
        whole += [[f"{n:,.0f}", f"{a:.4f}", ""] for n, a in zip(curve.n, curve.accuracy, strict=True)]
        for factor in (2, 4):
            value, low, high = curve.at(factor * curve.n[-1])
            whole.append([f"{factor * curve.n[-1]:,.0f} (expected)", f"{value:.4f}", f"{low:.4f} to {high:.4f}"])
        classes: Cells = [["class", "images", "recall", "as many again add", "95 % interval"]]
        known = [(name, c) for name, c in zip(self.classes, self.each, strict=True) if c is not None]
        ordered = sorted(known, key=lambda pair: -pair[1].gain(2 * pair[1].n[-1])[0])
        for name, c in ordered[:_MOST_CLASSES]:
            value, low, high = (100 * v for v in c.gain(2 * c.n[-1]))
            ends = f"{low:+.1f} to {high:+.1f}"
            row = [shorten(name), f"{c.n[-1]:,.0f}", f"{c.accuracy[-1]:.4f}", f"{value:+.1f} points", ends]
            classes.append(row)
        title = f"accuracy over training images, {curve.tested:,} rows out of fold"
        return title, [whole, classes], ["a class's gain takes all classes to grow alike"]


def resampled(errors: Floats, rng: np.random.Generator) -> Floats:
    """Return the mean errors ``[400, S]`` of as many rows, drawn with replacement 400 times, of errors ``[S, M]``."""
    m = errors.shape[1]
    size, even = max(1, _AT_ONCE // m), np.full(m, 1 / m)
    starts = range(0, _RESAMPLES, size)
    parts = [rng.multinomial(m, even, min(size, _RESAMPLES - start)) / m @ errors.T for start in starts]
    return np.concatenate(parts)


def learning_curve(ds: Dataset, made: Sequence[Part], answers: Sequence[NDArray[np.bool_]]) -> LearningCurve:
    """Put the answers of all parts together and fit the curves.

    Args:
        ds: the training rows.
        made: the parts.
        answers: which of a part's tested rows were answered right, see `right`.
    """
    rows = np.concatenate([part.held_out for part in made if part.share == 0])
    shares = range(1 + max(part.share for part in made))
    wrong = np.stack(
        [np.concatenate([~a for part, a in zip(made, answers, strict=True) if part.share == s]) for s in shares]
    )  # [S, N] or [S, N, C]
    n = np.array([np.mean([len(part.train) for part in made if part.share == s]) for s in shares])
    rng = np.random.default_rng(0)

    def fitted(errors: Floats, sizes: Floats) -> Curve:
        """Errors ``[S, M]`` of tested rows."""
        measured = errors.mean(1)
        return fit_curve(sizes, np.concatenate([measured[None], resampled(errors, rng)]), errors.shape[1])

    y = ds.y[rows]
    overall = fitted((wrong.mean(2) if ds.is_multi else wrong).astype(np.float64), n)
    each: list[Curve | None] = []
    for k in range(ds.c):
        own = wrong[:, :, k] if ds.is_multi else wrong[:, y == k]
        bearing = float((y[:, k] > 0).mean() if ds.is_multi else (y == k).mean())
        enough = bearing * n[0] >= 1 and own.shape[1] >= _LEAST
        each.append(fitted(own.astype(np.float64), bearing * n) if enough else None)
    return LearningCurve(overall, each, [str(name) for name in ds.classes])
