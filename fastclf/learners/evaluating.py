"""How a learner is evaluated, and what is tuned on its validation set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fastclf.argument_checks import check_count, check_flag
from fastclf.arrays import Array
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.sources.labels import Labels
from fastclf.decision import Decision
from fastclf.interpret.evaluation import Evaluation, calibration, evaluate, probabilities, with_predictions
from fastclf.interpret.intervals import OF_GROUPS
from fastclf.interpret.tuning import best_temperature, best_thresholds, thinned
from fastclf.learners.predicting import Predicting
from fastclf.report import counted, log


class Evaluating(Predicting):
    """The part of `Learner` that evaluates, calibrates and tunes thresholds.

    Attributes:
        decision: the temperature and thresholds of these weights. `save` and `load` keep it, and `fit` forgets it.
    """

    decision = Decision()

    @long_call(NOTHING_CHANGED)
    def evaluate(
        self, is_test: bool = False, *, tta: bool = False, topk: int = 5, unknown: float | None = None
    ) -> Evaluation:
        """Return how good the predictions for the validation or test set are, as an object that prints as a table.

        One label: accuracy, top-k and balanced accuracy, precision, recall, F1, area under the ROC curve, average
        precision, log loss, Cohen's kappa, Matthews' correlation, calibration error; several: the same of each label,
        with the thresholds of `tune_thresholds`, else .5; numbers: R², mean absolute error and root of the mean
        squared error. All as scikit-learn computes them, with 95 % intervals. Rows without a prediction are left out.

        Args:
            is_test: the test set, which must have labels, instead of the validation set.
            tta: averages the predictions of `TTA`.
            topk: how many classes an image may be taken for in the top-k accuracy; shown where there are more classes.
            unknown: also tells what an answer "none of these" costs at this rate of false refusals, after `calibrate`.

        Raises:
            ValueError: the set has no labels, or the model does not give probabilities.
        """
        check_flag("evaluate", "is_test", is_test)
        check_flag("evaluate", "tta", tta)
        check_count("evaluate", "topk", topk, least=2)
        labels = self._known_labels("evaluate", is_test)
        if unknown is not None:
            if labels.is_multi or labels.is_reg:
                raise ValueError("evaluate: unknown is for one label; with several, an image may have none of them")
            self.decision.least_confidence(unknown)  # an error now, not after predicting
        preds, targs = self._averaged(is_test, tta)
        views = ", mean of augmented views" if tta else ""
        return self._evaluation(preds, targs, labels, is_test, views=views, topk=topk, unknown=unknown)

    def _evaluation(
        self, preds: Array, targs: Array, labels: Labels, is_test: bool, views: str = "", **how: Any
    ) -> Evaluation:
        name = "test" if is_test else "validation"
        aim = f"{labels.c} number(s)" if labels.is_reg else f"{labels.c:,} {'labels' if labels.is_multi else 'classes'}"
        tuned = self.decision.thresholds is not None or self.decision.temperature != 1
        notes = ["what was tuned on these rows looks better on them than on others"] if tuned and not is_test else []
        if not is_test and self._data.val_ds.is_grouped:
            notes.append(OF_GROUPS)
        title = f"{name} set, {aim}{views}"
        return evaluate(preds, targs, labels, self.decision, title=title, notes=notes, **how)

    @long_call("the temperature is as it was.")
    def calibrate(self) -> float:
        """Find the temperature with which the probabilities of the validation set have the lowest log loss.

        It is found on the images as they are, not on those of `TTA`. All later predictions, those of `TTA` too, have
        their logits divided by it, which changes no answer of one label (Guo et al., 2017).
        It also notes how sure the model is of images of these classes, which ``unknown`` of `evaluate` needs.

        Returns:
            The temperature; above 1 where the model was too sure of itself.

        Raises:
            ValueError: the targets are numbers, or the model does not give probabilities.
        """
        labels = self._known_labels("calibrate", is_test=False)
        if labels.is_reg:
            raise ValueError("calibrate: the targets are numbers, whose predictions are not probabilities")
        before = self.decision
        self.decision = replace(before, temperature=1.0)
        try:
            preds, targs = self.predict_with_targs()
        finally:
            self.decision = before
        preds, targs = with_predictions("calibrate", preds, targs, labels)
        found = best_temperature(preds, targs)
        decision = before.with_temperature(1.0 if found is None else found)
        tempered = decision.tempered(preds, several=labels.is_multi)
        if not labels.is_multi:
            decision = replace(decision, confidences=thinned(probabilities(tempered).max(1)))
        self.decision = decision
        if found is None:
            log(f"calibrate: all answers on {len(targs):,} validation rows are right, so the temperature stays 1")
        else:
            (loss, error), (new_loss, new_error) = calibration(preds, targs), calibration(tempered, targs)
            log(
                f"calibrate: temperature {found:.3f}; log loss {loss:.4f} -> {new_loss:.4f}, calibration error "
                f"{error:.4f} -> {new_error:.4f} on {len(targs):,} validation rows"
            )
        return decision.temperature

    @long_call("the thresholds are as they were.")
    def tune_thresholds(self, metric: str = "f1") -> dict[str, float]:
        """Find for each label the threshold of its probability from the validation set; several labels only.

        Args:
            metric: ``"f1"``, ``"f2"``, ``"accuracy"`` or ``"balanced_accuracy"``.

        Returns:
            The threshold of each label, see `fastclf.interpret.tuning.best_thresholds`.
        """
        labels = self._known_labels("tune_thresholds", is_test=False)
        if not labels.is_multi:
            raise ValueError(
                "tune_thresholds: rows must have several labels; of one label the most probable class wins"
            )
        preds, targs = self.predict_with_targs()
        preds, targs = with_predictions("tune_thresholds", preds, targs, labels)
        thresholds = best_thresholds(preds, targs, metric)
        self.decision = replace(self.decision, thresholds=thresholds)
        one_sided = int((np.ptp(targs, axis=0) == 0).sum())
        kept = f"; {one_sided} that all rows or none have keep .5" if one_sided else ""
        log(f"tune_thresholds: {min(thresholds):.3f} to {max(thresholds):.3f} for {counted(labels.c, 'label')}{kept}")
        return dict(zip(map(str, labels.classes), thresholds, strict=True))

    def _forget_decision(self) -> None:
        """Before the weights change."""
        if self.decision != Decision():
            log("temperature and thresholds were tuned for the earlier weights and are forgotten; tune them again")
            self.decision = Decision()

    def _known_labels(self, name: str, is_test: bool) -> Labels:
        ds = self._data.test_ds if is_test else self._data.val_ds
        if ds is None:
            raise ValueError(f"{name}: is_test=True needs data with a test set: pass test_name= when making it")
        if not ds.labels.known:
            raise ValueError(f"{name}: the test set has no labels. Make the data with test_with_labels=True.")
        return ds.labels

    def _averaged(self, is_test: bool, tta: bool) -> tuple[Array, Array]:
        if not tta:
            return self.predict_with_targs(is_test)
        from scipy.special import logsumexp

        views, targs = self.TTA(is_test=is_test)
        views = views.astype(np.float64)
        one_label = not (self._data.is_multi or self._data.is_reg)
        return (logsumexp(views, axis=0) - np.log(len(views)) if one_label else views.mean(0)), targs
