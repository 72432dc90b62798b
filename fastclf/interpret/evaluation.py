"""How good a classifier is on a set: measures, their intervals, and a table of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Array
from fastclf.data.sources.labels import Labels
from fastclf.data.sources.names import printable, shorten
from fastclf.decision import HALF, UNKNOWN, Decision
from fastclf.interpret import intervals, measures
from fastclf.interpret.intervals import Interval
from fastclf.interpret.measures import Measures
from fastclf.interpret.tables import Cells, Measured, number, plain
from fastclf.report import counted, listed
from fastclf.training.metrics import without_prediction

if TYPE_CHECKING:
    from pandas import DataFrame


_MOST_CLASSES = 40  # of more classes, a table shows the worst
_WORST = 20
_COLUMNS = (  # of a table, where they are measured
    *("rows", "predicted", "threshold", "precision", "recall", "f1", "roc_auc", "average_precision"),
    *("r2", "mae", "rmse"),
)


@dataclass(frozen=True, repr=False)
class Evaluation(Measured):
    """How good predictions are. Prints as a table; ``evaluation["accuracy"]`` is one number.

    Attributes:
        title: what was evaluated.
        names: of the classes or labels, or of the columns of a regression.
        overall: measures of the whole set.
        intervals: of most of them, the 95 % interval; see `fastclf.interpret.intervals`.
        each: measures of each class, label or column: ``[C]`` by name.
        n: rows that were evaluated.
        left_out: rows that were not, as they have no prediction.
        notes: what a reader should know.
    """

    title: str
    names: list[str]
    overall: dict[str, float]
    intervals: dict[str, Interval]
    each: dict[str, Array]
    n: int
    left_out: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python types, for JSON; None for what is undefined."""
        overall: dict[str, dict[str, Any]] = {name: {"value": plain(value)} for name, value in self.overall.items()}
        for name, ends in self.intervals.items():
            overall[name]["interval"] = [plain(end) for end in ends]
        each = [
            {"name": name} | {key: plain(values[k]) for key, values in self.each.items()}
            for k, name in enumerate(self.names)
        ]
        about = {"title": self.title, "rows": self.n, "left_out": self.left_out, "notes": list(self.notes)}
        return {**about, "overall": overall, "each": each}

    def to_frame(self) -> DataFrame:
        """Return the measures of each class, label or column as a pandas frame, indexed by name."""
        from pandas import DataFrame, Index

        return DataFrame(self.each, index=Index(self.names, name="class"))

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        tables = [self.overall_cells(), *([self.each_cells(self._shown())] if len(self.names) > 1 else [])]
        return self.title, tables, self._shown_notes()

    def overall_cells(self) -> Cells:
        """Return the table of the whole set as text, its head first."""
        hidden = () if "exact_match" in self.overall else measures.SAME_AS_ACCURACY
        cells = [["", "value", "95 % interval"]]
        for name, value in self.overall.items():
            if name not in hidden:
                interval = " to ".join(map(number, self.intervals[name])) if name in self.intervals else ""
                cells.append([name.replace("_", " "), number(value), interval])
        return cells

    def each_cells(self, shown: Sequence[int]) -> Cells:
        """Return the table of some classes, labels or columns as text, its head first."""
        columns = [name for name in _COLUMNS if name in self.each]
        head = ["", *(name.replace("_", " ").replace("average", "avg") for name in columns)]
        rows = ([shorten(self.names[k]), *(number(self.each[name][k]) for name in columns)] for k in shown)
        return [head, *rows]

    def _shown(self) -> Sequence[int]:
        """Return the classes of the table: all, or the worst of many."""
        if len(self.names) <= _MOST_CLASSES:
            return range(len(self.names))
        worst = self.each["f1"] if "f1" in self.each else self.each["r2"]
        order: list[int] = np.argsort(worst, kind="stable").tolist()  # NaN last
        return order[:_WORST]

    def _shown_notes(self) -> list[str]:
        if len(self.names) <= _MOST_CLASSES:
            return self.notes
        return [f"the {_WORST} lowest of {len(self.names):,} are shown; to_frame() has all of them", *self.notes]


def evaluate(
    preds: Array,
    targs: Array,
    labels: Labels,
    decision: Decision,
    *,
    topk: int = 5,
    unknown: float | None = None,
    title: str = "",
    notes: Sequence[str] = (),
) -> Evaluation:
    """Evaluate predictions.

    Args:
        preds: ``[N, C]`` log-probabilities, probabilities (several labels) or values, already tempered.
        targs: the right answers; rows that `mark_without_prediction` has marked are left out.
        labels: what targets mean; its values are not used.
        decision: has the thresholds of labels, and how sure the model is of known images.
        topk: see `measures.of_one_label`.
        unknown: see `Decision.least_confidence`; adds the share of refused rows and the accuracy of all others.
        title: of the tables.
        notes: to print below them, after those that are made here.

    Raises:
        ValueError: there is nothing to evaluate, or the predictions are not what they should be.
    """
    p, y = with_predictions("evaluate", preds, targs, labels)
    missing = len(targs) - len(y)
    if labels.is_reg:
        found, ends = measures.of_regression(p, y), intervals.bootstrap(intervals.of_regression(p, y), len(y))
    elif labels.is_multi:
        found, ends = _several_labels(p, y > 0, decision)
    else:
        found, ends = _one_label(p, y, topk, decision, unknown)
    own = [f"{missing:,} of {len(targs):,} rows have no prediction and are left out"] if missing else []
    names = [printable(str(name)) for name in labels.classes] or [str(k) for k in range(labels.c)]
    return Evaluation(
        title=counted(len(y), "row") + (f", {title}" if title else ""),
        names=names,
        overall=found.overall,
        # An interval without width is that of a set without mistakes, in which a bootstrap finds none either.
        intervals={name: ends[name] for name in found.overall if name in ends and ends[name][0] < ends[name][1]},
        each=found.each,
        n=len(y),
        left_out=missing,
        notes=[*own, *_notes_on(found, names, len(y)), *notes],
    )


def with_predictions(name: str, preds: Array, targs: Array, labels: Labels) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Return the rows of predictions and targets that have a prediction.

    Raises:
        ValueError: there are none, or predictions are not what they should be.
    """
    known = ~without_prediction(targs)
    p, y = preds[known].astype(np.float64), targs[known]
    if not len(p):
        raise ValueError(f"{name}: no row has a prediction")
    nan = np.isnan(p).any(1).sum()
    if nan:
        raise ValueError(f"{name}: predictions of {nan:,} of {len(p):,} rows are NaN: weights are not finite")
    if labels.is_multi and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"{name}: the model must give probabilities, got values outside of 0..1. End it in nn.Sigmoid(), and take "
            "a loss of probabilities, such as nn.BCELoss()."
        )
    one_label = not (labels.is_multi or labels.is_reg)
    if one_label and not ((p <= 1e-3).all() and np.allclose(np.exp(p).sum(1), 1, atol=0.02)):
        raise ValueError(f"{name}: the model must give log-probabilities. End it in nn.LogSoftmax(1).")
    return p, y


def calibration(preds: Array, y: Array) -> tuple[float, float]:
    """Return log loss and calibration error of predictions as `with_predictions` gives them."""
    from sklearn.metrics import log_loss

    if y.ndim == 2:
        p, y = preds.ravel(), y.ravel()
        return float(log_loss(y, p, labels=[0, 1])), measures.calibration_error(p, y > 0)
    probs = probabilities(preds)
    loss = log_loss(y, probs, labels=np.arange(probs.shape[1]))
    return float(loss), measures.calibration_error(probs.max(1), probs.argmax(1) == y)


def probabilities(log_preds: Array) -> NDArray[np.float64]:
    """Return probabilities whose rows add up to 1 in float64, from log-probabilities of any precision."""
    from scipy.special import softmax

    return np.asarray(softmax(log_preds.astype(np.float64), axis=1))


def _one_label(
    log_preds: NDArray[np.float64], y: NDArray[np.int64], topk: int, decision: Decision, unknown: float | None
) -> tuple[Measures, dict[str, Interval]]:
    probs = probabilities(log_preds)
    found = measures.of_one_label(probs, y, topk)
    overall = dict(found.overall)
    n = len(y)
    ends = intervals.bootstrap(intervals.of_one_label(probs, y), n)
    shares = {"accuracy": n, f"top_{topk}_accuracy": n}
    if unknown is not None:
        answers = decision.answers(probs, unknown)
        answered = answers != UNKNOWN
        overall["refused"] = float(1 - answered.mean())
        overall["accuracy_of_answered"] = float((answers == y)[answered].mean()) if answered.any() else np.nan
        shares |= {"refused": n, "accuracy_of_answered": int(answered.sum())}
    for name, of in shares.items():
        if name in overall:
            ends[name] = intervals.of_share(round(np.nan_to_num(overall[name]) * of), of)
    return Measures(overall, found.each), ends


def _several_labels(
    probs: NDArray[np.float64], true: NDArray[np.bool_], decision: Decision
) -> tuple[Measures, dict[str, Interval]]:
    n, c = probs.shape
    chosen = decision.labels(probs)
    thresholds = np.full(c, HALF) if decision.thresholds is None else np.array(decision.thresholds)
    found = measures.of_several_labels(probs, true, chosen, thresholds)
    ends = intervals.bootstrap(intervals.of_several_labels(probs, true, chosen), n)
    ends["exact_match"] = intervals.of_share(round(found.overall["exact_match"] * n), n)
    return found, ends


def _notes_on(found: Measures, names: list[str], n: int) -> list[str]:
    notes = []
    if n < intervals.LEAST_ROWS:
        notes.append(f"{n} rows are too few for a bootstrap; of shares alone there is an interval")
    if "rows" in found.each:
        absent = [name for name, rows in zip(names, found.each["rows"], strict=True) if not rows]
        if absent:
            notes.append(f"no row is of {listed(absent)}: n/a, and averages leave out what is n/a")
        always = [name for name, predicted in zip(names, found.each["predicted"], strict=True) if predicted == n]
        if always and n > 1:
            notes.append(f"every row was predicted to be {listed(always)}")
    return notes
