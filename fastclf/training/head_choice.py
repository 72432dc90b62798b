"""The setting of a head, chosen from the rows themselves: each fold's by the loss on rows of other folds.

No row has a part in the choice of the setting that predicts it, except that heads of other folds have trained on it:
the figures that come of it are those of the whole procedure, choice and training (as nested cross-validation's; Varma
and Simon, "Bias in error estimation when using cross-validation for model selection", 2006), for the price of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fastclf.arrays import Floats32, RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.training.head_runs import HeadRun, HeadSetting, HeadTraining, each_trained, predict_rows, train_heads
from fastclf.training.linear_heads import LinearPaths, LinearSetting, Scaling, linear_heads, warn_of_unsolved
from fastclf.training.loop import derived_seed
from fastclf.training.tasks import run_all

Setting = HeadSetting | LinearSetting

FEW = 2500  # rows up to which logistic regressions are as good as heads with a hidden layer, or better
_DECAYS = (1.0, 0.3, 0.1, 0.03, 0.01)  # of logistic regressions
_DECAYS_OF_FEW = (1e-2, 3e-2, 1e-1)
_DECAY_OF_MANY, _STEPS_OF_MANY, _EPOCHS_OF_MANY = 1e-3, 2000, (5, 20)
_ENOUGH = 500  # held-out rows by which settings are compared
_HOPELESS = 1.1  # times the lowest loss
_CLEAR = 3.0  # standard errors of a difference


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows to train on, and rows to be predicted.

    Attributes:
        train: ``[n] int64``.
        held_out: ``[m] int64``, at least one.
        seed: of the head.
        other: the set whose rows are held out, where it is another.
    """

    train: RowNumbers
    held_out: RowNumbers
    seed: int
    other: Dataset | None = field(default=None, kw_only=True)

    def held_out_of(self, ds: Dataset) -> Dataset:
        """Return the set whose rows are held out; ``ds`` is the one that is trained on."""
        return ds if self.other is None else self.other


@dataclass(frozen=True, eq=False)
class Choice:
    """Splits of the rows, and settings, of which each split gets one."""

    splits: Sequence[Fold]
    settings: Sequence[Setting]

    @property
    def tried(self) -> int:
        """Splits on which all settings are trained: the first that hold enough rows out to compare, and two at least.

        The others, where training takes longest, get the one that is chosen, as do those that hold out another set.
        """
        if len(self.settings) == 1:
            return 0
        rows = np.cumsum([len(split.held_out) for split in self.splits if split.other is None])
        return min(len(rows), max(2, 1 + int(np.searchsorted(rows, _ENOUGH))))


@dataclass(frozen=True, eq=False)
class Chosen:
    """What came of a `Choice`.

    Attributes:
        logits: of each split, ``[m, c] float32``.
        settings: of each split.
        best: of all splits that settings were tried on: for rows that belong to none.
    """

    logits: list[Floats32]
    settings: list[Setting]
    best: Setting

    def all_logits(self, splits: Sequence[Fold], ds: Dataset, other: Dataset | None = None) -> Floats32:
        """Return the logits of all rows ``[N, c]``, or of another set's; NaN in those that no split holds out."""
        found = np.full((len(ds if other is None else other), ds.c), np.nan, np.float32)
        for split, logits in zip(splits, self.logits, strict=True):
            if split.other is other:
                found[split.held_out] = logits
        return found


def usual_settings(n: int, bs: int) -> list[Setting]:
    """Return what a head for ``n`` rows is chosen from: logistic regressions of few, hidden layers of many."""
    return [LinearSetting(decay, "pareto") for decay in _DECAYS] if n <= FEW else [*trained_settings(n, bs=bs)]


def trained_settings(
    n: int, *, bs: int = 64, wd: float | None = None, epochs: int | None = None, **of: Any
) -> list[HeadSetting]:
    """Return the settings that a trained head for ``n`` rows is chosen from; decay and epochs that are given stay.

    Many rows bear a decay of 1e-3, and need 2,000 steps for it (20 epochs at most): decays are about as 1 to the number
    of rows, as those of a prior that stays the same are.

    Args:
        n: rows.
        bs: rows per batch.
        wd: weight decay.
        epochs: of the head.
        **of: what else `HeadSetting` takes, the same for all.
    """
    pairs: list[tuple[float, int | None]] = [(decay, None) for decay in _DECAYS_OF_FEW]
    if n > FEW:
        least, most = _EPOCHS_OF_MANY
        pairs = [(_DECAY_OF_MANY, min(most, max(least, -(-_STEPS_OF_MANY * bs // n)))), (_DECAYS_OF_FEW[0], None)]
    tried = [
        HeadSetting(wd=decay if wd is None else wd, epochs=usual if epochs is None else epochs, **of)
        for decay, usual in pairs
    ]
    return list(dict.fromkeys(tried))


def for_fewer(setting: Setting, n: int, fewer: int, bs: int) -> Setting:
    """Return a setting that suits ``n`` rows as it suits ``fewer``: the same prior weighs more beside fewer rows."""
    if isinstance(setting, LinearSetting):
        return replace(setting, decay=setting.decay * n / fewer)
    epochs = setting.epochs and max(setting.epochs, HeadSetting().epochs_of(-(-fewer // bs)))
    return replace(setting, wd=setting.wd * n / fewer, epochs=epochs)


def splits_of(ds: Dataset, folds: RowNumbers, seed: int) -> list[Fold]:
    """Return a split per fold that has rows: it is held out of all others.

    Args:
        ds: the rows; bad ones are in no split.
        folds: ``[N] int64``, see `make_folds`.
        seed: of all heads.
    """
    good = ds.bad.good_rows()
    parts = [(fold, good[folds[good] == fold]) for fold in np.unique(folds[good]).tolist()]
    return [Fold(good[folds[good] != fold], rows, derived_seed(seed, "fold", fold)) for fold, rows in parts]


def choose(ds: Dataset, choice: Choice, training: HeadTraining) -> Chosen:
    """Choose a setting for each split by the mean loss on the held-out rows of other splits, and predict its own.

    All heads are functions of their rows and settings alone, for any number of threads.

    Args:
        ds: holds rows, see `each_trained`.
        choice: splits and settings.
        training: loss, batch and device.

    Returns:
        What is chosen. Logits of heads that diverged are not finite; such a head is chosen where there is no other.
    """
    tried = choice.splits[: choice.tried]
    found = iter(try_settings(ds, [(setting, split) for split in tried for setting in choice.settings], training))
    logits = [[next(found) for _ in choice.settings] for _ in tried]
    losses = [
        [np.inf if one is None else mean_loss(training.crit, one, ds.y[split.held_out]) for one in each]
        for split, each in zip(tried, logits, strict=True)
    ]
    picks, best = _picks(np.array(losses), len(choice.splits))
    settings = [choice.settings[pick] for pick in picks]
    own = {f: one for f, each in enumerate(logits) if (one := each[picks[f]]) is not None}
    left = [f for f in range(len(settings)) if f not in own]
    jobs = [(settings[f], choice.splits[f]) for f in left]
    own |= zip(left, predict_splits(ds, jobs, training), strict=True)
    return Chosen([own[f] for f in range(len(settings))], settings, choice.settings[best])


def choose_usual(ds: Dataset, splits: Sequence[Fold], training: HeadTraining) -> Chosen:
    """Do the same with the settings that suit as many rows as the largest split trains on."""
    settings = usual_settings(max(len(split.train) for split in splits if split.other is None), training.bs)
    return choose(ds, Choice(splits, settings), training)


def head_at(setting: Setting, ds: Dataset, rows: RowNumbers, seed: int, training: HeadTraining) -> Head:
    """Return a head that was trained on some rows."""
    if isinstance(setting, HeadSetting):
        return train_heads(ds, [HeadRun(setting, rows, seed)], training)[0]
    with one_thread_each():
        return linear_heads(ds, rows, [setting], crit=training.crit)[0]


def predict_splits(ds: Dataset, jobs: Sequence[tuple[Setting, Fold]], training: HeadTraining) -> list[Floats32]:
    """Return the logits ``[m, c]`` of the rows that each split holds out, by a head at its setting; no split twice."""
    assert len({split for _, split in jobs}) == len(jobs), "of several settings, hopeless ones are left out"
    found = [one for one in try_settings(ds, jobs, training) if one is not None]
    assert len(found) == len(jobs)
    return found


def mean_loss(crit: NLL | BCE, logits: Floats32, y: NDArray[Any]) -> float:
    """Return the mean loss of rows ``[n, c]`` by their labels, in float64."""
    return float(row_losses(crit, logits, y).mean())


def row_losses(crit: NLL | BCE, logits: Floats32, y: NDArray[Any]) -> NDArray[np.float64]:
    """Return what each row has in that mean, ``[n] float64``."""
    return crit.of_rows(torch.from_numpy(logits).double(), torch.from_numpy(y)).numpy()


def clearly_above(losses: NDArray[np.float64], lowest: NDArray[np.float64]) -> bool:
    """Return whether one setting's losses of rows ``[n]`` are so far above another's that more rows would not turn it.

    Three standard errors of the paired difference, by 500 rows or more, say so (racing; Maron and Moore, "Hoeffding
    races", 1994).
    """
    above = losses - lowest
    return len(above) >= _ENOUGH and bool(above.mean() > _CLEAR * above.std(ddof=1) / np.sqrt(len(above)))


def try_settings(ds: Dataset, jobs: Sequence[tuple[Setting, Fold]], training: HeadTraining) -> list[Floats32 | None]:
    """Return the logits ``[m, c]`` of the rows that each split holds out, by a head at the setting.

    Of logistic regressions of one split and scaling, the lowest decays take the solver longest. From high ones to low
    ones the loss falls, and then rises: None for those beyond one whose loss is a tenth
    or `clearly_above` the lowest.
    """
    split_of = {HeadRun(one, split.train, split.seed): split for one, split in jobs if isinstance(one, HeadSetting)}

    def predicted(run: HeadRun, head: Head) -> Floats32:
        return _held_out(ds, split_of[run], head)

    trained = iter(each_trained(ds, [*split_of], training, predicted))
    paths = _paths(ds, jobs, training.crit)
    with one_thread_each() as threads:
        run_all(paths, threads)
    warn_of_unsolved([one for path in paths for one in path.converged])
    solved = {i: logits for path in paths for i, logits in path.found.items()}
    return [next(trained) if isinstance(setting, HeadSetting) else solved.get(i) for i, (setting, _) in enumerate(jobs)]


def _held_out(ds: Dataset, split: Fold, head: Head) -> Floats32:
    return predict_rows(head, split.held_out_of(ds), split.held_out)


def _paths(ds: Dataset, jobs: Sequence[tuple[Setting, Fold]], crit: NLL | BCE) -> list[_Path]:
    """Return the paths of all logistic regressions, the largest split's first; those of one split come together."""
    of_split: dict[Fold, dict[Scaling, list[tuple[int, float]]]] = {}
    for i, (setting, split) in enumerate(jobs):
        if isinstance(setting, LinearSetting):
            of_split.setdefault(split, {}).setdefault(setting.scaling, []).append((i, setting.decay))
    paths = []
    for split in sorted(of_split, key=lambda split: -len(split.train)):
        rows = [LinearPaths(ds, split.train, crit=crit)] * len(of_split[split])
        for scaling, work in of_split[split].items():
            paths.append(_Path(ds, split, crit, rows, scaling, sorted(work, key=lambda one: -one[1])))
    return paths


def _picks(losses: NDArray[np.float64], splits: int) -> tuple[list[int], int]:
    """Return the number of the setting that each split gets, and of the best one, by losses ``[tried, S]``."""
    if not len(losses):
        return [0] * splits, 0
    losses = np.where(np.isnan(losses), np.inf, losses)
    best = int(losses.mean(0).argmin())
    of_others = [int(np.delete(losses, f, 0).mean(0).argmin()) for f in range(len(losses))]
    return [*of_others, *[best] * (splits - len(of_others))], best


@dataclass(frozen=True, eq=False)
class _Path:
    """Solves logistic regressions of one split and scaling, on one thread.

    Attributes:
        rows: those of the split, once for each of its paths that has not begun: the last path lets them go.
        work: number and decay of each regression, the highest decay first.
        found: the logits of the rows that are held out, by number.
        converged: of each that was solved.
    """

    ds: Dataset
    split: Fold
    crit: NLL | BCE
    rows: list[LinearPaths]
    scaling: Scaling
    work: Sequence[tuple[int, float]]
    found: dict[int, Floats32] = field(default_factory=dict)
    converged: list[bool] = field(default_factory=list)

    def __call__(self, stop: Event) -> None:
        y = self.split.held_out_of(self.ds).y[self.split.held_out]
        lowest: NDArray[np.float64] | None = None
        solutions = self.rows.pop().solve(self.scaling, [decay for _, decay in self.work], stop)
        for (number, _), one in zip(self.work, solutions, strict=False):
            self.converged.append(one.converged)
            self.found[number] = _held_out(self.ds, self.split, one.head)
            losses = row_losses(self.crit, self.found[number], y)
            if lowest is None or losses.mean() < lowest.mean():
                lowest = losses
            if losses.mean() > _HOPELESS * lowest.mean() or clearly_above(losses, lowest):
                break


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Let torch and BLAS compute on the thread that calls them, and yield how many threads there were.

    Problems side by side take less time than one on several threads, and sums do not depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield threads
    finally:
        torch.set_num_threads(threads)
