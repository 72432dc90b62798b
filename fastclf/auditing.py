"""What cached rows of activations can tell about the data: doubtful images, similar ones, what more would give."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.dataset import Dataset
from fastclf.evaluating import Evaluating
from fastclf.interpret import audit as audits
from fastclf.interpret import learning_curve as curves
from fastclf.interpret.audit import Audit
from fastclf.interpret.learning_curve import LearningCurve
from fastclf.interpret.neighbours import RowPool, Similar, nearest
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.training.head_runs import (
    HeadRun,
    HeadSetting,
    make_folds,
    out_of_fold,
    predict_rows,
    refuse_numbers,
    train_heads,
    usual_folds,
)
from fastclf.training.inputs import check_count

_SETTING = HeadSetting()


class Auditing(Evaluating):
    """The part of a learner with a head that answers from rows of activations; it trains heads of its own for that."""

    seed: int

    @long_call(NOTHING_CHANGED)
    def audit(self, k: int = 5) -> Audit:
        """Find labels that are probably wrong, near duplicates and outliers; returns an object that prints as tables.

        Training rows are predicted out of fold, validation rows, and test rows with labels, by a head that was trained
        on the training rows. See `fastclf.interpret.audit.audit` for the methods.

        Args:
            k: folds.

        Raises:
            ValueError: there are no cached rows, or the labels are numbers to be predicted.
        """
        sets = self._labelled_rows("audit")
        train = sets["train"]
        head = self._heads_on(train, [train.bad.good_rows()])[0] if len(sets) > 1 else None
        preds = {"train": _outputs(self._out_of_fold(train, k), train)}
        for name, ds in sets.items():
            if head is not None and name != "train":
                preds[name] = _outputs(_logits(head, ds, ds.bad.good_rows()), ds)
        return audits.audit(sets, preds)

    @long_call(NOTHING_CHANGED)
    def learning_curve(self, k: int | None = None) -> LearningCurve:
        """Measure accuracy on 10 to 100 % of the training rows, and extrapolate it; the validation set is not used.

        Every fold is predicted by heads that were trained on growing parts of all others; see
        `fastclf.interpret.learning_curve.fit_curve` for the extrapolation and its interval.

        Args:
            k: folds; by default 5, or 3 where there are more than 8,192 training rows.

        Returns:
            The curve: ``.accuracy(n)``, ``.gain(cls, more)``, ``.plot()``.

        Raises:
            ValueError: there are no cached rows, or they have no classes, or are too few.
        """
        train = self._labelled_rows("learning_curve")["train"]
        folds = make_folds(train.labels, usual_folds(len(train)) if k is None else k, seed=self.seed)
        parts = curves.parts(train, folds, self.seed)
        heads = iter(self._heads_on(train, [part.rows for part in parts]))
        right = [curves.right(_logits(next(heads), train, part.held_out), train, part.held_out) for part in parts]
        return curves.learning_curve(train, parts, right)

    @long_call(NOTHING_CHANGED)
    def similar(self, images: Any, k: int = 5) -> Similar:
        """Find the most similar images of all sets by the cosine of their activations: exact, in bounded memory.

        Args:
            images: rows ``[N, F]`` of activations; or, of a learner of images, anything that `Classifier.predict`
                takes.
            k: how many for each.

        Returns:
            An object that prints as a table; ``.rows`` and ``.similarity`` are ``[N, k]``.
        """
        check_count("similar", "k", k)
        sets = self._all_rows("similar")
        names, features = self._features("similar", images)
        pool = RowPool([*sets.values()])
        numbers, similarity = nearest(features, pool, k)
        return Similar(sets, names, [*sets], pool.of[numbers], pool.row[numbers], similarity)

    def _all_rows(self, call: str) -> dict[str, Dataset]:
        """Return the sets over rows of activations.

        Raises:
            ValueError: there are none.
        """
        self._need_features(call)
        return dict(self.data._sets)

    def _labelled_rows(self, call: str) -> dict[str, Dataset]:
        refuse_numbers(call, self.data.trn_ds.labels)
        return {name: ds for name, ds in self._all_rows(call).items() if ds.labels.known}

    def _how_trained(self) -> dict[str, Any]:
        return {"crit": BCE() if self.data.is_multi else NLL(), "bs": self.data.bs, "device": self.data.device}

    def _heads_on(self, ds: Dataset, parts: list[NDArray[np.int64]]) -> list[Head]:
        runs = [HeadRun(_SETTING, rows, self.seed) for rows in parts]
        return train_heads(ds, runs, **self._how_trained())

    def _out_of_fold(self, ds: Dataset, k: int) -> NDArray[np.float32]:
        folds = make_folds(ds.labels, k, seed=self.seed)
        logits: NDArray[np.float32] = out_of_fold(ds, [_SETTING], folds, seed=self.seed, **self._how_trained())[0]
        return logits

    def _features(self, call: str, images: Any) -> tuple[list[str], Any]:
        """Return names and rows ``[N, F] float32`` of what a caller passes."""
        raise NotImplementedError


def _logits(head: Head, ds: Dataset, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return logits ``[N, C]`` of some rows of a set, NaN in all others."""
    logits = np.full((len(ds), ds.c), np.nan, np.float32)
    logits[rows] = predict_rows(head, ds, rows)
    return logits


def _outputs(logits: NDArray[np.float32], ds: Dataset) -> NDArray[np.float32]:
    """Return log-probabilities (probabilities when several labels)."""
    from scipy.special import expit, log_softmax

    outputs = expit(logits) if ds.is_multi else log_softmax(logits, axis=1)
    return np.asarray(outputs, np.float32)
