"""The best head without a number, and the grid of settings: chosen by out-of-fold loss on the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from fastclf import rank_tensors
from fastclf.argument_checks import check_functions
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.dataset import Dataset
from fastclf.errors import DivergedError
from fastclf.interpret.sweep import Sweep
from fastclf.learners.cross_validating import CrossValidating
from fastclf.learners.learner import Learner
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.report import log, remedy
from fastclf.schedules import Constant
from fastclf.training.callbacks import Callback, Hooks
from fastclf.training.epoch_table import EpochTable
from fastclf.training.folds import make_folds, most_folds, usual_folds
from fastclf.training.head_choice import (
    FEW,
    Fold,
    Setting,
    clearly_above,
    mean_loss,
    row_losses,
    splits_of,
    trained_settings,
    try_settings,
)
from fastclf.training.head_runs import HeadSetting, HeadTraining, new_head, predict_rows
from fastclf.training.linear_heads import LinearSetting, Scaling, linear_heads
from fastclf.training.metrics import names_of
from fastclf.training.recorder import Recorder
from fastclf.training.scores import FitScores

_SCALINGS: list[Scaling] = ["common", "pareto", "standard"]
_DECAYS = [10 ** (-half / 2) for half in range(-2, 9)]  # 10 to 1e-4
_LINEAR = [LinearSetting(decay, scaling) for scaling in _SCALINGS for decay in _DECAYS]
_USUAL = LinearSetting(1.0, "common")  # where nothing can be held out
_RACING = 9  # logistic regressions that are tried on more than the first fold
# The lowest out-of-fold losses of 16 with a hidden layer: on rows of photographs, and on those of digits.
_HIDDEN = [HeadSetting(0.03, 1e-2, 10, 0.5, (512,)), HeadSetting(0.1, 1e-2, None, None, (512,))]
_HIDDEN_OF_FEW = HeadSetting(0.1, 3e-2, None, None, (512,))


class FineTuning(CrossValidating, Learner):
    """The part of a learner with a head of ours that finds the head's setting."""

    @long_call(NOTHING_CHANGED)
    def sweep(
        self,
        lr: float | Sequence[float] = (0.03, 0.1),
        wd: float | Sequence[float] | None = None,
        ps: float | Sequence[float] | None = None,
        xtra_fc: Sequence[Sequence[int]] = ((512,),),
        epochs: int | Sequence[int] | None = None,
    ) -> Sweep:
        """Try every combination of some settings on folds of the training rows, and return them, best first.

        Every row is predicted by a head that has not seen it. The validation set has no part in it, and the learner
        stays as it is: ``learn.fine_tune(sweep.best)`` trains its head at the best setting.

        Args:
            lr: the highest rate, or several to try, see `HeadSetting`.
            wd: weight decay, or several; by default those that suit the number of rows.
            epochs: of each head, or several; by default by the number of rows, and of many rows by the decay.
            ps: dropout of all linear layers: one probability or several to try; None for the usual ones of a head.
            xtra_fc: widths of the hidden layers: a list of such lists, such as ``[[], [256], [512]]``.

        Raises:
            ValueError: as `cross_validate` says.
        """
        ds, _, training = self._head_training("sweep")
        hidden: list[Any] = _several(xtra_fc)
        if not all(map(_holds_several, hidden)):
            raise ValueError(f"sweep: xtra_fc must be a list of lists of widths, such as [[], [512]], got {xtra_fc!r}")
        grid = product(_several(lr), _several(wd), _several(epochs), _several(ps), hidden)
        suited = [
            trained_settings(len(ds), bs=self.data.bs, wd=decay, epochs=cycle, lr=rate, ps=p, xtra_fc=tuple(widths))
            for rate, decay, cycle, p, widths in grid
        ]
        settings = [replace(one, epochs=one.epochs_of(self._stage.batches)) for each in suited for one in each]
        if not settings:
            raise ValueError("sweep: lr, wd, ps, xtra_fc and epochs must each have a value to try, got an empty list.")
        return self._compared("sweep", ds, settings, training, race=False)

    @long_call("the model holds what it has learnt.")
    def fine_tune(self, setting: Setting | None = None, callbacks: Sequence[Callback] = ()) -> list[float]:
        """Put the best head that is found in place of the learner's, and print a line per epoch.

        Candidates are logistic regressions of several weight decays, on features scaled in three ways
        (`LinearSetting`), solved to the end, and heads with a hidden layer trained in one cosine cycle. What has the
        lowest out-of-fold loss on the training rows, by five folds (three of more than 8,192 rows), is trained on all
        of them. The validation set has no part in the choice. The head's ``ps`` and ``xtra_fc`` become those of the
        setting.

        Ctrl-C while settings are compared leaves the learner as it was; later, see `fit`.

        Args:
            setting: what to train instead of choosing, such as ``learn.sweep().best``.
            callbacks: of the fit that ends in the learner's head; a solved one has one epoch.

        Returns:
            ``[val_loss, metric, ...]``, as `fit`.

        Raises:
            ValueError: the head or the loss is the user's own, or the labels are numbers to be predicted.
            DivergedError: the setting does not end with finite weights. After an error the head is as it was.
        """
        self._check_fine_tune(setting, callbacks)
        return self._train_head(self._best_setting() if setting is None else setting, callbacks)

    def _check_fine_tune(self, setting: Setting | None, callbacks: Sequence[Callback]) -> None:
        """Refuse what cannot be done before anything is computed."""
        self._default_head("fine_tune")
        check_functions("fine_tune", "callbacks", callbacks, Callback)
        if not isinstance(setting, HeadSetting | LinearSetting | None):
            raise ValueError(
                "fine_tune: setting must be a HeadSetting or LinearSetting, such as learn.sweep().best, "
                f"got {setting!r:.80}"
            )

    def _best_setting(self) -> Setting:
        ds, _, training = self._head_training("fine_tune")
        if most_folds(ds.labels, ds.groups) < 2:
            alone = "all training rows are one group" if ds.groups is not None else "no class has two training rows"
            log(f"fine_tune: {alone}, so that settings cannot be compared: {_USUAL} it is")
            return _USUAL
        many = len(ds) > FEW
        own = trained_settings(len(ds), bs=self.data.bs, xtra_fc=(512,))[0] if many else _HIDDEN_OF_FEW
        found = self._compared("fine_tune", ds, [*_LINEAR, *_HIDDEN, own], training, race=True)
        mean, half = found.intervals()[0]
        log(f"fine_tune: {found.best}, out-of-fold loss {mean:.4f} +- {half:.4f}, best of {len(found.settings)}")
        if isinstance(found.best, LinearSetting) and found.best.decay in (_DECAYS[0], _DECAYS[-1]):
            other = remedy("; learn.fine_tune(setting) tries another", "")
            log(f"fine_tune: this decay is at the end of those that were tried{other}")
        return found.best

    def _train_head(self, setting: Setting, callbacks: Sequence[Callback] = ()) -> list[float]:
        """Train a new head at a setting, on all training rows; after an error the learner has its earlier one."""
        ds, head, training = self._head_training("fine_tune")
        with self._kept_on_error(head):
            if isinstance(setting, HeadSetting):
                return self._fit_head(setting, ds, head, callbacks)
            (new,) = linear_heads(ds, np.arange(len(ds)), [setting], crit=training.crit)
            head.become(new.to(self.data.device))
            rank_tensors.take_from_first(head)
            return self._report_solved(ds, head, training.crit, callbacks)

    @contextmanager
    def _kept_on_error(self, head: Head) -> Iterator[None]:
        parts, decision = (head.ps, head.widths, head.counter, head.layers), self.decision
        try:
            yield
        except Exception:
            head.ps, head.widths, head.counter, head.layers = parts
            self.decision = decision
            raise

    def _fit_head(self, setting: HeadSetting, ds: Dataset, head: Head, callbacks: Sequence[Callback]) -> list[float]:
        head.become(new_head(setting, head.n_in, ds.labels, self.seed).to(self.data.device))
        epochs = setting.epochs_of(self._stage.batches)
        try:
            return self.fit(setting.lr, 1, setting.wd, cycle_len=epochs, callbacks=callbacks)
        except DivergedError as error:
            raise DivergedError(
                f"fine_tune: {setting} does not end with finite weights; the head is as it was"
            ) from error

    def _report_solved(self, ds: Dataset, head: Head, crit: NLL | BCE, callbacks: Sequence[Callback]) -> FitScores:
        """Print the one line of a head that was solved, and note it, as `fit` does of an epoch."""
        self._forget_decision()
        names = ["val_loss", *names_of(self.metrics)]
        good = ds.bad.good_rows()
        values, trained = self._validate(), mean_loss(crit, predict_rows(head, ds, good), ds.y[good])
        self.sched = Recorder(Constant(), 0.0)
        self.sched.batch(trained, 0)
        self.sched.epoch(values[0], values[1:])
        EpochTable(("trn_loss", *names), None).row(0, [trained, *values])
        hooks = Hooks(callbacks)
        self._fitting = True
        try:
            hooks.call("on_train_begin")
            hooks.call("on_epoch_end", values)
            hooks.call("on_train_end")
        finally:
            self._fitting = False
        return FitScores(values, names)

    def _compared(
        self, call: str, ds: Dataset, settings: Sequence[Setting], training: HeadTraining, *, race: bool
    ) -> Sweep:
        """Return settings by their out-of-fold loss; those that diverged, or were not tried to the end, come last."""
        k = min(usual_folds(len(ds)), most_folds(ds.labels, ds.groups))
        if k < 2:
            raise ValueError(f"{call}: no class has two rows or groups, so that none can be held out. Add images.")
        folds = make_folds(ds.labels, k, groups=ds.groups, seed=self.seed)
        found = _losses(ds, settings, splits_of(ds, folds, self.seed), training, race=race)
        means = found.mean(1)
        if np.isnan(means).all():
            lower = remedy("Pass lower rates (lr)", "Pass lower rates: --lr")
            raise DivergedError(f"{call}: no setting ends with finite weights. {lower}.")
        order = np.argsort(means)  # NaN last
        return Sweep([settings[i] for i in order], found[order])


def _losses(
    ds: Dataset, settings: Sequence[Setting], splits: Sequence[Fold], training: HeadTraining, *, race: bool
) -> NDArray[np.float64]:
    """Return the loss of each setting on the rows that each split holds out, ``[S, k]``; NaN where it was not tried.

    In a race, only those that `_going_on` returns are tried on more than the first split.
    """
    found = np.full((len(settings), len(splits)), np.nan)

    def attempt(numbers: Sequence[int], folds: Sequence[int]) -> dict[int, NDArray[np.float64]]:
        jobs = [(i, fold) for fold in folds for i in numbers]
        tried = try_settings(ds, [(settings[i], splits[fold]) for i, fold in jobs], training)
        of_rows = {}
        for (i, fold), logits in zip(jobs, tried, strict=True):
            if logits is not None:
                of_rows[i] = row_losses(training.crit, logits, ds.y[splits[fold].held_out])
                found[i, fold] = of_rows[i].mean()
        return of_rows

    everything, folds = range(len(settings)), range(len(splits))
    if race:
        attempt(_going_on(settings, attempt(everything, folds[:1])), folds[1:])
    else:
        attempt(everything, folds)
    return found


def _going_on(settings: Sequence[Setting], losses: Mapping[int, NDArray[np.float64]]) -> list[int]:
    """Return the numbers of the settings that are worth another split, by their losses of the first one's rows.

    These are all that are not `clearly_above` the best, but nine logistic regressions at most: neighbours on a path of
    decays differ little and rank alike on all splits.
    """
    ranked = sorted((i for i in losses if np.isfinite(losses[i]).all()), key=lambda i: losses[i].mean())
    going = [i for i in ranked if not clearly_above(losses[i], losses[ranked[0]])]
    linear = [i for i in going if isinstance(settings[i], LinearSetting)]
    return [i for i in going if i not in linear[_RACING:]]


def _holds_several(given: object) -> TypeGuard[Iterable[Any]]:
    """Return whether an argument is a list or the like; text and an array without an axis are one value."""
    return isinstance(given, Iterable) and not isinstance(given, str) and getattr(given, "ndim", 1) > 0


def _several(given: object) -> list[Any]:
    return list(given) if _holds_several(given) else [given]
