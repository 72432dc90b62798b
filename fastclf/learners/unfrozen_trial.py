"""Whether a whole network that trains on from its best head becomes better: tried on part of the training images."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastclf.decision import Decision
from fastclf.errors import DivergedError
from fastclf.interpret.evaluation import calibration, probabilities, with_predictions
from fastclf.interpret.tuning import best_temperature
from fastclf.report import describe_seconds, log
from fastclf.training.callbacks import Callback
from fastclf.training.folds import make_folds, most_folds
from fastclf.training.head_choice import Setting

if TYPE_CHECKING:
    from fastclf.learners.conv_learner import ConvLearner

# Chosen on other splits than those of bench/README.md. A solved head fits its training rows, so that the lesson's
# 1e-4 for the first layers leaves the body as it is; what a high rate spoils, the long way down of one cycle mends.
_RATES = (3e-3, 1e-2, 1e-2)  # of first layers, later layers and head
_EPOCHS = 7  # as many as the lesson's cycles of 1, 2 and 4
_ONE_CYCLE = (10, 10)
_FOLDS = 5  # one of them is held out
_LOGGED_AFTER = 3  # batches: the first is slower


@dataclass(frozen=True)
class _Judged:
    """What a model makes of the held-out images.

    Attributes:
        loss: the mean log loss at the best temperature, 0 where every answer is right.
        wrong: the share of wrong answers; of several labels, of wrong labels at .5.
        temperature: the best, but not below 1.
    """

    loss: float
    wrong: float
    temperature: float = 1.0

    def beats(self, other: _Judged) -> bool:
        """Return whether the loss is lower, and no more answers are wrong."""
        return self.loss < other.loss and self.wrong <= other.wrong

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} and {self.wrong:.1%} wrong"


_DIVERGED = _Judged(float("inf"), 1.0)


def temperature_if_unfreezing_helps(learn: ConvLearner, setting: Setting) -> float | None:
    """Train a copy of the learner on four fifths of its training images, and judge it on the others.

    The copy's head is trained at ``setting`` on these four fifths; then the whole network trains on. Neither has seen
    the images that decide, and the validation set has no part in it. The learner itself stays as it is.

    Training all layers helps where it lowers the log loss and gives no more wrong answers. A network that was trained
    to the end is surer of itself than a regression whose penalty was chosen by its log loss. As a temperature mends
    that, each is judged at its own best one.

    Returns:
        The temperature that the trained network needs; None where the body had better stay frozen, or no
        class has two images.
    """
    data = learn._data
    labels, groups = data.trn_ds.labels, data.trn_ds.groups
    most = most_folds(labels, groups)
    if most < 2:  # no image can be held out to judge by
        return None
    held_out = make_folds(labels, min(_FOLDS, most), groups=groups, seed=learn.seed) == 0
    # Its rows and images may be large, and others take their place at once.
    trial = copy.deepcopy(learn, {id(shared): shared for shared in (data, learn._cached)})
    trial.set_data(data.judged_on(np.flatnonzero(held_out)))
    n, n_judged = len(trial._data.trn_ds), len(trial._data.val_ds)
    log(f"fine_tune: would training all layers help? Tried on {n:,} training images, judged on the other {n_judged:,}")
    trial._train_head(setting)
    frozen = _judged(trial)
    trial.unfreeze()
    time_log = _TimeLog(_EPOCHS * len(trial._data.trn_dl), _EPOCHS * len(data.trn_dl))
    try:
        train_all_layers(trial, [time_log])
        unfrozen = _judged(trial)
    except DivergedError:
        unfrozen = _DIVERGED
    helps = unfrozen.beats(frozen)
    log(
        f"fine_tune: on the {n_judged:,} images {frozen} with the body frozen, {unfrozen} with all layers trained: "
        f"{'now the same on all training images' if helps else 'the body stays frozen'}"
    )
    return unfrozen.temperature if helps else None


def train_all_layers(learn: ConvLearner, callbacks: Sequence[Callback] = ()) -> list[float]:
    """Train an unfrozen learner on in one 1cycle."""
    return learn.fit(_RATES, 1, cycle_len=_EPOCHS, use_clr_beta=_ONE_CYCLE, callbacks=callbacks)


def _judged(learn: ConvLearner) -> _Judged:
    """Judge a learner on its validation set."""
    labels = learn._data.val_ds.labels
    preds, targs = with_predictions("fine_tune", *learn.predict_with_targs(), labels)
    probs = probabilities(preds) if not labels.is_multi else preds
    wrong = float(((probs > 0.5) != (targs > 0)).mean() if labels.is_multi else (probs.argmax(1) != targs).mean())
    best = best_temperature(preds, targs)
    if best is None:
        return _Judged(0.0, wrong)
    loss, _ = calibration(Decision(best).tempered(preds, several=labels.is_multi), targs)
    return _Judged(loss, wrong, max(1.0, best))


class _TimeLog(Callback):
    """Logs after a few batches how long the trial takes, and what follows it."""

    def __init__(self, steps: int, steps_after: int) -> None:
        self.steps, self.steps_after, self.done, self.start = steps, steps_after, 0, 0.0

    def on_batch_end(self, loss: float) -> None:
        """See `Callback`."""
        self.done += 1
        if self.done == 1:
            self.start = time.monotonic()
        elif self.done == 1 + _LOGGED_AFTER:
            each = (time.monotonic() - self.start) / _LOGGED_AFTER
            trial, after = (describe_seconds(each * n) for n in (self.steps - self.done, self.steps_after))
            log(f"fine_tune: about {trial} for the trial (Ctrl-C keeps the head), and {after} more if it helps")
