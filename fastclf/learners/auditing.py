"""What cached rows of activations can tell about the data: doubtful images, similar ones, what more would give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastclf.argument_checks import check_count
from fastclf.arrays import Floats32
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.dataset import Dataset
from fastclf.interpret import audit as audits
from fastclf.interpret import learning_curve as curves
from fastclf.interpret.audit import Audit
from fastclf.interpret.learning_curve import LearningCurve, Part
from fastclf.interpret.neighbours import RowPool, Similar, nearest
from fastclf.interpret.suggestion import Suggestion, diverse, doubts
from fastclf.learners.evaluating import Evaluating
from fastclf.models.head import FINALS, final_layer
from fastclf.ops import HeadSpec, predict
from fastclf.training.folds import make_folds, usual_folds
from fastclf.training.head_choice import (
    Fold,
    Setting,
    choose_usual,
    for_fewer,
    head_at,
    one_thread_each,
    predict_splits,
    splits_of,
)
from fastclf.training.head_runs import HeadTraining
from fastclf.training.inputs import refuse_numbers
from fastclf.training.linear_heads import LinearSetting

_SUGGESTING = LinearSetting(0.1, "pareto")  # suits few labels best


class Auditing(Evaluating):
    """The part of a learner with a head that answers from rows of activations; it trains heads of its own for that."""

    @long_call(NOTHING_CHANGED)
    def audit(self, k: int = 5) -> Audit:
        """Find labels that are probably wrong, near duplicates and outliers; returns an object that prints as tables.

        Training rows are predicted out of fold, validation rows, and test rows with labels, by a head that was trained
        on the training rows; its setting is chosen by the loss on rows that it has not seen, see
        `fastclf.training.head_choice`. See `fastclf.interpret.audit.audit` for the methods.

        Args:
            k: folds.

        Raises:
            ValueError: there are no cached rows, or the labels are numbers to be predicted.
        """
        sets = self._labelled_rows("audit")
        train = sets["train"]
        splits = splits_of(train, make_folds(train.labels, k, groups=train.groups, seed=self.seed), self.seed)
        others = {name: ds for name, ds in sets.items() if name != "train"}
        rows = {name: ds.bad.good_rows() for name, ds in others.items()}
        whole = train.bad.good_rows()
        splits += [Fold(whole, rows[name], self.seed, other=ds) for name, ds in others.items() if len(rows[name])]
        found = choose_usual(train, splits, HeadTraining.usual(self.data))
        logits = {"train": found.all_logits(splits, train)}
        logits |= {name: found.all_logits(splits, train, ds) for name, ds in others.items()}
        final = final_layer(FINALS[train.labels.kind])
        return audits.audit(sets, {name: final(torch.from_numpy(each)).numpy() for name, each in logits.items()})

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
        k = usual_folds(len(train)) if k is None else k
        folds = make_folds(train.labels, k, groups=train.groups, seed=self.seed)
        parts = curves.parts(train, folds, self.seed)
        logits = self._of_parts(train, parts)
        right = [curves.right(logits[part], train, part.held_out) for part in parts]
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

    @long_call(NOTHING_CHANGED)
    def suggest(self, unlabelled: Any, n: int) -> Suggestion:
        """Suggest which images to label next: those that a head is unsure of, and that differ from each other.

        A logistic regression on the training rows says how unsure it is, and weighted k-means keeps them diverse, see
        `fastclf.interpret.suggestion.diverse`. The fewer labels there are, the more it gains over random choice; the
        figures are in bench/README.md.

        Args:
            unlabelled: rows ``[N, F]`` of activations; or, of a learner of images, anything that `Classifier.predict`
                takes.
            n: how many; all where there are fewer.

        Returns:
            An object that prints as a table; ``.rows`` are places among those given, ``.names`` theirs.

        Raises:
            ValueError: there are no cached rows, the labels are numbers to be predicted, or n is no count.
        """
        check_count("suggest", "n", n)
        train = self._all_rows("suggest")["train"]
        names, features = self._features("suggest", unlabelled)
        with one_thread_each():
            head = head_at(_SUGGESTING, train, train.bad.good_rows(), self.seed, HeadTraining.usual(self.data))
            spec = HeadSpec.from_layers(head.layers)
            assert spec is not None
            logits = predict(spec, features).numpy()
            doubt = doubts(logits, several=train.is_multi)
            rows = diverse(features.numpy(), doubt, min(n, len(names)), self.seed)
        has = logits[rows] > 0 if train.is_multi else np.eye(train.c, dtype=bool)[logits[rows].argmax(1)]
        labels = [" ".join(str(train.classes[k]) for k in np.flatnonzero(row)) for row in has]
        return Suggestion(rows, [names[row] for row in rows], labels, doubt[rows], len(names))

    def _all_rows(self, call: str) -> dict[str, Dataset]:
        """Return the sets over rows of activations.

        Raises:
            ValueError: there are none.
        """
        self._need_features(call)
        return dict(self.data.sets)

    def _labelled_rows(self, call: str) -> dict[str, Dataset]:
        refuse_numbers(call, self.data.trn_ds.labels)
        return {name: ds for name, ds in self._all_rows(call).items() if ds.labels.known}

    def _of_parts(self, ds: Dataset, parts: Sequence[Part]) -> dict[Fold, Floats32]:
        """Return the logits of what each part of a curve holds out: the setting is that of the fold's whole."""
        whole = {part.fold: part for part in parts}  # the last of a fold is the largest
        found = choose_usual(ds, [*whole.values()], HeadTraining.usual(self.data))
        setting_of = dict(zip(whole, found.settings, strict=True))
        logits: dict[Fold, Floats32] = dict(zip(whole.values(), found.logits, strict=True))
        jobs: list[tuple[Setting, Fold]] = []
        for part in parts:
            if part is not whole[part.fold]:
                n, fewer = len(whole[part.fold].train), len(part.train)
                jobs.append((for_fewer(setting_of[part.fold], n, fewer, self.data.bs), part))
        smaller = predict_splits(ds, jobs, HeadTraining.usual(self.data))
        return logits | {split: one for (_, split), one in zip(jobs, smaller, strict=True)}

    def _features(self, call: str, images: Any) -> tuple[list[str], Any]:
        """Return names and rows ``[N, F] float32`` of what a caller passes."""
        raise NotImplementedError
