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
from fastclf.training.head_runs import HeadRun, HeadSetting, predict_rows, train_heads
from fastclf.training.linear_heads import (
    LinearPaths,
    LinearSetting,
    Scaling,
    linear_heads,
    warn_of_unsolved,
)
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


def choose(ds: Dataset, choice: Choice, *, crit: NLL | BCE, bs: int, device: torch.device | str = "cpu") -> Chosen:
    """Choose a setting for each split by the mean loss on the held-out rows of other splits, and predict its own.

    All heads are functions of their rows and settings alone, for any number of threads.

    Args:
        ds: holds rows, see `train_heads`.
        choice: splits and settings.
        crit: the loss.
        bs: rows per batch.
        device: where heads train; logistic regressions are solved on the processor.

    Returns:
        What is chosen. Logits of heads that diverged are not finite; such a head is chosen where there is no other.
    """
    how: dict[str, Any] = {"crit": crit, "bs": bs, "device": device}
    tried = choice.splits[: choice.tried]
    found = iter(try_settings(ds, [(setting, split) for split in tried for setting in choice.settings], **how))
    logits = [[next(found) for _ in choice.settings] for _ in tried]
    losses = [
        [np.inf if one is None else mean_loss(crit, one, ds.y[split.held_out]) for one in each]
        for split, each in zip(tried, logits, strict=True)
    ]
    picks, best = _picks(np.array(losses), len(choice.splits))
    own = [logits[f][pick] if f < len(tried) else None for f, pick in enumerate(picks)]
    left = [f for f, one in enumerate(own) if one is None]
    jobs = [(choice.settings[picks[f]], choice.splits[f]) for f in left]
    for f, one in zip(left, try_settings(ds, jobs, **how), strict=True):
        own[f] = one
    return Chosen([one for one in own if one is not None], [choice.settings[p] for p in picks], choice.settings[best])


def choose_usual(
    ds: Dataset, splits: Sequence[Fold], *, crit: NLL | BCE, bs: int, device: torch.device | str = "cpu"
) -> Chosen:
    """Do the same with the settings that suit as many rows as the largest split trains on."""
    settings = usual_settings(max(len(split.train) for split in splits if split.other is None), bs)
    return choose(ds, Choice(splits, settings), crit=crit, bs=bs, device=device)


def head_at(
    setting: Setting,
    ds: Dataset,
    rows: RowNumbers,
    seed: int,
    *,
    crit: NLL | BCE,
    bs: int,
    device: torch.device | str = "cpu",
) -> Head:
    """Return a head that was trained on some rows."""
    if isinstance(setting, HeadSetting):
        return train_heads(ds, [HeadRun(setting, rows, seed)], crit=crit, bs=bs, device=device)[0]
    with one_thread_each():
        return linear_heads(ds, rows, [setting], crit=crit)[0]


def predict_splits(
    ds: Dataset,
    jobs: Sequence[tuple[Setting, Fold]],
    *,
    crit: NLL | BCE,
    bs: int,
    device: torch.device | str = "cpu",
) -> list[Floats32]:
    """Return the logits ``[m, c]`` of the rows that each split holds out, by a head at its setting; no split twice."""
    return [one for one in try_settings(ds, jobs, crit=crit, bs=bs, device=device) if one is not None]


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


def try_settings(
    ds: Dataset,
    jobs: Sequence[tuple[Setting, Fold]],
    *,
    crit: NLL | BCE,
    bs: int,
    device: torch.device | str = "cpu",
) -> list[Floats32 | None]:
    """Return the logits ``[m, c]`` of the rows that each split holds out, by a head at the setting.

    Of logistic regressions of one split and scaling, the lowest decays take the solver longest. From high ones to low
    ones the loss falls, and then rises: None for those beyond one whose loss is a tenth
    or `clearly_above` the lowest.
    """
    found: list[Floats32 | None] = [None] * len(jobs)
    trained = [(i, setting, split) for i, (setting, split) in enumerate(jobs) if isinstance(setting, HeadSetting)]
    runs = [HeadRun(setting, split.train, split.seed) for _, setting, split in trained]
    for (i, _, split), head in zip(trained, train_heads(ds, runs, crit=crit, bs=bs, device=device), strict=True):
        found[i] = predict_rows(head, split.held_out_of(ds), split.held_out)
    places: dict[tuple[Fold, Scaling], dict[LinearSetting, int]] = {}
    for i, (setting, split) in enumerate(jobs):
        if isinstance(setting, LinearSetting):
            places.setdefault((split, setting.scaling), {})[setting] = i
    tasks = [_Path(ds, *one, crit, [*of]) for one, of in places.items()]
    tasks.sort(key=lambda task: -len(task.split.train))
    with one_thread_each() as threads:
        run_all(tasks, threads)
    warn_of_unsolved(sum(task.unsolved for task in tasks), sum(len(task.found) for task in tasks))
    for task in tasks:
        for one, logits in task.found.items():
            found[places[task.split, task.scaling][one]] = logits
    return found


def _picks(losses: NDArray[np.float64], splits: int) -> tuple[list[int], int]:
    """Return the number of the setting that each split gets, and of the best one, by losses ``[tried, S]``."""
    if not len(losses):
        return [0] * splits, 0
    losses = np.where(np.isnan(losses), np.inf, losses)
    best = int(losses.mean(0).argmin())
    of_others = [int(np.delete(losses, f, 0).mean(0).argmin()) for f in range(len(losses))]
    return [*of_others, *[best] * (splits - len(of_others))], best


@dataclass(eq=False)
class _Path:
    """Solves logistic regressions of one split and scaling, on one thread."""

    ds: Dataset
    split: Fold
    scaling: Scaling
    crit: NLL | BCE
    work: Sequence[LinearSetting]
    found: dict[LinearSetting, Floats32] = field(default_factory=dict)
    unsolved: int = 0

    def __call__(self, stop: Event) -> None:
        paths = LinearPaths(self.ds, self.split.train, crit=self.crit)
        lowest: NDArray[np.float64] | None = None
        for setting, head in paths.heads(self.scaling, sorted((one.decay for one in self.work), reverse=True)):
            held_out, rows = self.split.held_out_of(self.ds), self.split.held_out
            self.found[setting] = predict_rows(head, held_out, rows)
            losses = row_losses(self.crit, self.found[setting], held_out.y[rows])
            if lowest is None or losses.mean() < lowest.mean():
                lowest = losses
            hopeless = losses.mean() > _HOPELESS * lowest.mean() or clearly_above(losses, lowest)
            if hopeless or stop.is_set():
                break
        self.unsolved = paths.unsolved


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
