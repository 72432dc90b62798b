"""Whether a whole network that trains on from its best head becomes better: tried on part of the training images."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclf.errors import DivergedError
from fastclf.interpret.evaluation import probabilities, with_predictions
from fastclf.interpret.measures import log_losses
from fastclf.interrupts import Interrupts
from fastclf.report import describe_seconds, log
from fastclf.training.callbacks import Callback
from fastclf.training.folds import make_folds, most_folds
from fastclf.training.head_choice import Setting
from fastclf.training.metrics import names_of
from fastclf.training.scores import FitScores

if TYPE_CHECKING:
    from fastclf.learners.conv_learner import ConvLearner

# Chosen on other splits than those of bench/README.md. A solved head fits its training rows, so that the lesson's
# 1e-4 for the first layers leaves the body as it is; what a high rate spoils, the mean with the weights before mends.
_RATES = (3e-3, 1e-2, 1e-2)  # of first layers, later layers and head
_EPOCHS = 7  # as many as the lesson's cycles of 1, 2 and 4
_ONE_CYCLE = (10, 10)
_HALF, _NONE = 0.5, 0.0  # shares of the weights before
_FOLDS = 5  # one of them is held out
_LOGGED_AFTER = 3  # batches: the first is slower


def share_of_before(learn: ConvLearner, setting: Setting) -> float | None:
    """Train a copy of the learner on four fifths of its training images, and judge it on the others.

    The copy's head is trained at ``setting`` on these four fifths; then the whole network trains on. Neither has seen
    the images that decide, and the validation set has no part in it. The learner itself stays as it is.

    What is judged is the mean of the weights before and after, see `train_all_layers`, and those after alone: they
    are better where the body knew little, such as one with random weights.

    Returns:
        The share that the weights before should have; None where the body had better stay frozen, as the loss on the
        held-out images is clearly higher otherwise, or where no class has two images.
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
    frozen = _losses(trial)
    trial.unfreeze()
    before = _weights(trial)
    time_log = _TimeLog(_EPOCHS * len(trial._data.trn_dl), _EPOCHS * len(data.trn_dl))
    try:
        _fit(trial, [time_log])
    except DivergedError:
        log("fine_tune: with all layers trained weights are not finite: the body stays frozen")
        return None
    after = _losses(trial)
    _take_mean(trial, before, _HALF)
    mean = _losses(trial)
    share, trained = (_NONE, after) if _is_worse(mean, after) else (_HALF, mean)
    worse = _is_worse(trained, frozen)
    log(
        f"fine_tune: on the {n_judged:,} images loss {frozen.mean():.4f} with the body frozen, {trained.mean():.4f} "
        f"with all layers trained: {'the body stays frozen' if worse else 'now the same on all training images'}"
    )
    return None if worse else share


def train_all_layers(learn: ConvLearner, share: float, callbacks: Sequence[Callback] = ()) -> list[float]:
    """Train an unfrozen learner on in one 1cycle; then take a mean of its weights before and after.

    One half of each is more accurate than either: what the pretrained body and its solved head know is kept, and what
    few images taught by chance is halved (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, who take
    one half where nothing else is known). bench/README.md has the figures.

    Args:
        learn: with all layers trainable.
        share: of the weights before, 0 to 1.
        callbacks: of the fit.

    Returns:
        ``[val_loss, metric, ...]``, of the mean.
    """
    before = _weights(learn)
    scores = _fit(learn, callbacks)
    if not share:
        return scores
    _take_mean(learn, before, share)
    found = FitScores(learn._validate(), ["val_loss", *names_of(learn.metrics)])
    named = ", ".join(f"{name} {value:.6f}" for name, value in zip(found.names, found, strict=True))
    log(f"fine_tune: the mean of the weights before and after: {named}")
    return found


def _fit(learn: ConvLearner, callbacks: Sequence[Callback]) -> list[float]:
    return learn.fit(_RATES, 1, cycle_len=_EPOCHS, use_clr_beta=_ONE_CYCLE, callbacks=callbacks)


def _weights(learn: ConvLearner) -> list[Tensor]:
    return [p.detach().clone() for p in learn.model.parameters()]


def _take_mean(learn: ConvLearner, before: Sequence[Tensor], share: float) -> None:
    with Interrupts(), torch.no_grad():  # never half of it
        for p, old in zip(learn.model.parameters(), before, strict=True):
            p.lerp_(old, share)


def _losses(learn: ConvLearner) -> NDArray[np.float64]:
    """Return the log loss of each image of the validation set, ``[n]``; of several labels, their mean."""
    labels = learn._data.val_ds.labels
    preds, targs = with_predictions("fine_tune", *learn.predict_with_targs(), labels)
    probs = preds.astype(np.float64) if labels.is_multi else probabilities(preds)
    return log_losses(probs, targs, float(np.finfo(np.float32).eps))


def _is_worse(losses: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Return whether losses of the same images are higher by more than the standard error of the difference."""
    above = losses - others
    return bool(above.mean() > above.std() / np.sqrt(len(above)))


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
