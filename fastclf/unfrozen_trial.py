"""Whether a whole network that trains on from its best head becomes better: tried on part of the training images."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastclf.errors import DivergedError
from fastclf.interpret.sweep import Setting
from fastclf.report import describe_seconds, log
from fastclf.training.callbacks import Callback
from fastclf.training.cycles import n_epochs
from fastclf.training.head_runs import make_folds, most_folds

if TYPE_CHECKING:
    from fastclf.conv_learner import ConvLearner

_RATES = (1e-4, 1e-3, 1e-2)  # of first layers, later layers and head: the lesson's
_CYCLES, _MULT = 3, 2  # of 1, 2 and 4 epochs
_FOLDS = 5  # one of them is held out
_LOGGED_AFTER = 3  # batches: the first is slower


def unfreezing_helps(learn: ConvLearner, setting: Setting) -> bool:
    """Train a copy of the learner on four fifths of its training images, and compare losses on the others.

    The copy's head is trained at ``setting`` on these four fifths; then the whole network trains on. Neither has seen
    the images that decide, and the validation set has no part in it. The learner itself stays as it is.
    """
    data = learn._data
    labels = data.trn_ds.labels
    held_out = make_folds(labels, min(_FOLDS, most_folds(labels)), seed=learn.seed) == 0
    trial = copy.deepcopy(learn)
    trial.set_data(data.judged_on(np.flatnonzero(held_out)))
    n, n_judged = len(trial._data.trn_ds), len(trial._data.val_ds)
    log(f"fine_tune: would training all layers help? Tried on {n:,} training images, judged on the other {n_judged:,}")
    frozen = trial._train_head(setting)[0]
    trial.unfreeze()
    epochs = n_epochs(_CYCLES, 1, _MULT)
    time_log = _TimeLog(epochs * len(trial._data.trn_dl), epochs * len(data.trn_dl))
    try:
        unfrozen = train_all_layers(trial, [time_log])[0]
    except DivergedError:
        unfrozen = float("inf")
    helps = unfrozen < frozen
    log(
        f"fine_tune: loss on the {n_judged:,} images {frozen:.4f} with the body frozen, {unfrozen:.4f} with all layers "
        f"trained: {'now the same on all training images' if helps else 'the body stays frozen'}"
    )
    return helps


def train_all_layers(learn: ConvLearner, callbacks: Sequence[Callback] = ()) -> list[float]:
    """Train an unfrozen learner at the lesson's rates, in its cycles."""
    return learn.fit(_RATES, _CYCLES, cycle_len=1, cycle_mult=_MULT, callbacks=callbacks)


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
