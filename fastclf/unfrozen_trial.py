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
from fastclf.training.head_runs import make_folds, most_folds

if TYPE_CHECKING:
    from fastclf.conv_learner import ConvLearner

_RATES = (1e-4, 1e-3, 1e-2)  # of first layers, later layers and head: the lesson's
_CYCLES, _MULT, _EPOCHS = 3, 2, 7  # of 1, 2 and 4 epochs
_FOLDS = 5  # one of them is held out
_TOLD_AFTER = 3  # batches: the first is slower


def unfreezing_helps(learn: ConvLearner, setting: Setting) -> bool:
    """Train a copy of the learner on four fifths of its training images, and compare losses on the others.

    The copy's head is trained at ``setting`` on these four fifths; then the whole network trains on. Neither has seen
    the images that decide, and the validation set has no part in it. The learner itself stays as it is.
    """
    data, labels = learn._data, learn._data.trn_ds.labels
    k = min(_FOLDS, most_folds(labels))
    held_out = make_folds(labels, k, seed=learn.seed) == 0
    trial = copy.deepcopy(learn)
    trial.set_data(data.judged_on(np.flatnonzero(held_out)))
    n, n_judged = len(trial._data.trn_ds), len(trial._data.val_ds)
    log(f"fine_tune: would training all layers help? Tried on {n:,} training images, judged on the other {n_judged:,}")
    frozen = trial._train_head(setting)[0]
    trial.unfreeze()
    told = _TellTime(_EPOCHS * len(trial._data.trn_dl), _EPOCHS * len(data.trn_dl))
    try:
        unfrozen = train_all_layers(trial, [told])[0]
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


class _TellTime(Callback):
    """Logs after a few batches how long the trial takes, and what follows it."""

    def __init__(self, steps: int, steps_after: int) -> None:
        self.steps, self.steps_after, self.done, self.start = steps, steps_after, 0, 0.0

    def on_batch_end(self, loss: float) -> None:
        """See `Callback`."""
        self.done += 1
        if self.done == 1:
            self.start = time.monotonic()
        elif self.done == 1 + _TOLD_AFTER:
            each = (time.monotonic() - self.start) / _TOLD_AFTER
            trial, after = (describe_seconds(each * n) for n in (self.steps - self.done, self.steps_after))
            log(f"fine_tune: about {trial} for the trial (Ctrl-C keeps the head), and {after} more if it helps")
