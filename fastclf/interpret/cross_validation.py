"""How good heads are on rows that they have not seen: measures of each fold, their means, and intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Array, Floats
from fastclf.data.sources.labels import Labels
from fastclf.decision import HALF
from fastclf.interpret import measures
from fastclf.interpret.evaluation import probabilities, with_predictions
from fastclf.interpret.intervals import Interval
from fastclf.interpret.tables import Cells, Measured, number, plain

if TYPE_CHECKING:
    from pandas import DataFrame


_MOST_FOLDS = 10  # with a column in the table
_RANGES = {"log_loss": (0.0, np.inf), "kappa": (-1.0, 1.0), "mcc": (-1.0, 1.0)}  # all others: 0 to 1


@dataclass(frozen=True, repr=False)
class CrossValidation(Measured):
    """Out-of-fold predictions and how good they are. Prints as a table; ``result["accuracy"]`` is a mean over folds.

    Attributes:
        title: what was cross-validated.
        preds: ``[N, C]``, as `Learner.predict` gives them, each row's by the head that has not seen it.
        targets: as `Learner.predict_with_targs` gives them.
        folds: the fold of each row, ``[N] int64``.
        each: measures of each fold, ``[k]`` by name; see `Evaluation`.
        overall: their means; folds where a measure is undefined are left out.
        intervals: the 95 % intervals of most of them; see `interval`.
        notes: what a reader should know.
    """

    title: str
    preds: Array
    targets: Array
    folds: NDArray[np.int64]
    each: dict[str, Floats]
    overall: dict[str, float]
    intervals: dict[str, Interval]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the measures in plain Python types, for JSON; None for what is undefined."""
        found: dict[str, dict[str, Any]] = {
            name: {"value": plain(value), "folds": [plain(one) for one in self.each[name]]}
            for name, value in self.overall.items()
        }
        for name, ends in self.intervals.items():
            found[name]["interval"] = list(ends)
        return {"title": self.title, "notes": list(self.notes), "overall": found}

    def to_frame(self) -> DataFrame:
        """Return the measures as a pandas frame, a row per fold."""
        from pandas import DataFrame, Index

        return DataFrame(self.each, index=Index(np.unique(self.folds), name="fold"))

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        return self.title, [self._cells()], self.notes

    def _cells(self) -> Cells:
        k = len(np.unique(self.folds))
        shown = k if k <= _MOST_FOLDS else 0
        cells = [["", "mean", "95 % interval", *(f"fold {fold}" for fold in range(shown))]]
        for name, value in self.overall.items():
            interval = " to ".join(map(number, self.intervals[name])) if name in self.intervals else ""
            cells.append([name.replace("_", " "), number(value), interval, *map(number, self.each[name][:shown])])
        return cells


def cross_validation(
    preds: Array, targets: Array, folds: NDArray[np.int64], labels: Labels, notes: Sequence[str] = ()
) -> CrossValidation:
    """Measure out-of-fold predictions.

    Args:
        preds: ``[N, C]`` log-probabilities, or probabilities of several labels.
        targets: the right answers; rows that `mark_without_prediction` has marked are left out.
        folds: the fold of each row, ``[N] int64``.
        labels: what targets mean; its values are not used.
        notes: how the predictions came about, a line each.

    Raises:
        ValueError: a fold has no row with a prediction, or predictions are not finite.
    """
    numbers = np.unique(folds)
    parts = [with_predictions("cross_validate", preds[folds == f], targets[folds == f], labels) for f in numbers]
    found = [_measured(p, y, labels) for p, y in parts]
    each = {name: np.array([one[name] for one in found]) for name in found[0]}
    rows = sum(len(y) for _, y in parts)
    undefined = sorted(name.replace("_", " ") for name, values in each.items() if np.isnan(values).any())
    notes = [
        *notes,
        f"each head trained on about {rows - rows // len(numbers):,} of {rows:,} rows; one on all should be better",
    ]
    if undefined:
        notes.append(f"undefined in some folds, which their means leave out: {', '.join(undefined)}")
    if rows < len(targets):
        notes.append(f"{len(targets) - rows:,} of {len(targets):,} rows have no prediction and are left out")
    ends = {name: interval(values, _RANGES.get(name, (0.0, 1.0))) for name, values in each.items()}
    aim = f"{labels.c:,} {'labels' if labels.is_multi else 'classes'}"
    return CrossValidation(
        title=f"{len(numbers)}-fold cross-validation of {rows:,} training rows, {aim}",
        preds=preds,
        targets=targets,
        folds=folds,
        each=each,
        overall={name: measures.mean_of_defined(values) for name, values in each.items()},
        intervals={name: pair for name, pair in ends.items() if pair is not None},
        notes=notes,
    )


def interval(values: Floats, span: Interval) -> Interval | None:
    """Return the 95 % interval of the mean of a measure over k folds; None where folds do not differ, or are undefined.

    Student's t with k - 1 degrees of freedom, and the variance ``(1 / k + n_test / n_train) s²``, here
    ``(1 / k + 1 / (k - 1)) s²``: folds share most of their training rows, so that ``s² / k`` would be far too small
    (Nadeau and Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003; for cross-validation,
    Bouckaert and Frank, 2004). No unbiased estimate exists (Bengio and Grandvalet, 2004): this one errs on the wide
    side.

    Args:
        values: of the measure, ``[k]``.
        span: the lowest and the highest value that the measure can have.
    """
    from scipy.special import stdtrit

    k = len(values)
    deviation = float(values.std(ddof=1))
    if not deviation > 0:
        return None
    half = float(stdtrit(k - 1, 0.975)) * deviation * np.sqrt(1 / k + 1 / (k - 1))
    mean = float(values.mean())
    return max(mean - half, span[0]), min(mean + half, span[1])


def _measured(p: Floats, y: Array, labels: Labels) -> dict[str, float]:
    if labels.is_multi:
        return measures.of_several_labels(p, y > 0, p > HALF, np.full(labels.c, HALF)).overall
    found = measures.of_one_label(probabilities(p), y, topk=5).overall
    return {name: value for name, value in found.items() if name not in measures.SAME_AS_ACCURACY}
