"""Many heads on the rows of one data set: of settings to compare, or of shares of the rows to learn from."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fastclf.argument_checks import check_count, check_numbers
from fastclf.arrays import Floats32, RowNumbers
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.dataset import Dataset
from fastclf.data.loader import LoaderOptions, RowLoader
from fastclf.data.sources.labels import Labels
from fastclf.losses import BCE, L1, NLL
from fastclf.models.head import FINALS, Head, resolve_ps, resolve_widths
from fastclf.ops import HeadSpec, predict
from fastclf.philox import checked_seed
from fastclf.schedules import Cosine
from fastclf.training.engine import EngineSteps, run_together
from fastclf.training.inputs import refuse_numbers
from fastclf.training.losses import constant_logits, default_loss
from fastclf.training.optimizer import SGDR
from fastclf.training.steps import Rates
from fastclf.training.tasks import go_on, run_all

T = TypeVar("T")

_MOST_TOGETHER = 8  # of what heads share, an eighth is left
_WEIGHTS_TOGETHER = 1 << 23  # bytes
_STEPS, _LEAST_EPOCHS, _MOST_EPOCHS = 400, 5, 30  # of a head


@dataclass(frozen=True)
class HeadSetting:
    """How one head is made and trained: SGD with momentum .9, the rate on one cosine over all epochs.

    Attributes:
        lr: the highest rate.
        wd: weight decay, added to the gradient.
        epochs: over the rows; None for as many as make 400 steps, but 5 at least and 30 at most: few rows need the
            steps, and of many rows the first epochs teach most.
        ps, xtra_fc: dropout and hidden widths, see `Head`.
    """

    lr: float = 0.1
    wd: float = 1e-2
    epochs: int | None = None
    ps: float | tuple[float, ...] | None = None
    xtra_fc: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_numbers("HeadSetting", "lr", self.lr)
        check_numbers("HeadSetting", "wd", self.wd)
        if self.epochs is not None:
            check_count("HeadSetting", "epochs", self.epochs)
        if self.lr <= 0 or self.wd < 0:
            raise ValueError(
                f"HeadSetting: lr must be above 0 and wd not below 0, got lr {self.lr:g} and wd {self.wd:g}"
            )

    def epochs_of(self, batches: int) -> int:
        """Return how many epochs a head trains whose epoch has so many batches."""
        return self.epochs or min(_MOST_EPOCHS, max(_LEAST_EPOCHS, -(-_STEPS // batches)))


@dataclass(frozen=True, eq=False)
class HeadRun:
    """One head to train.

    Attributes:
        setting: how.
        train: the rows of the data set that it trains on, ``[n] int64``, in any order.
        seed: of weights, order and dropout masks.
    """

    setting: HeadSetting
    train: NDArray[np.int64]
    seed: int


@dataclass(frozen=True)
class HeadTraining:
    """What all heads that train on the rows of one data set have in common.

    Attributes:
        crit: the loss, with class weights and label smoothing.
        bs: rows per batch; a last batch of one row is left out.
        device: where heads train; logistic regressions are solved on the processor.
    """

    crit: NLL | BCE
    bs: int
    device: torch.device | str = "cpu"

    @classmethod
    def usual(cls, data: ImageClassifierData) -> HeadTraining:
        """Return how heads train whose loss is the usual one of the data's classes or labels."""
        crit = default_loss(is_multi=data.is_multi, is_reg=False)
        assert not isinstance(crit, L1)
        return cls(crit, data.bs, data.device)


def train_heads(ds: Dataset, runs: Sequence[HeadRun], training: HeadTraining) -> list[Head]:
    """Train a head per run and return all, in evaluation mode, see `each_trained`."""
    return each_trained(ds, runs, training, lambda _, head: head)


def each_trained(
    ds: Dataset, runs: Sequence[HeadRun], training: HeadTraining, use: Callable[[HeadRun, Head], T]
) -> list[T]:
    """Train a head per run; each is a function of its run and the rows alone, whatever the other runs are.

    On a processor, heads train side by side, some on each thread; those of the same rows, seed, epochs and dropout of
    their input share its gathering, statistics and masks. A head is made when its training begins. Ctrl-C and SIGTERM
    take effect between two steps.

    Args:
        ds: holds rows ``[views * N, F]``; an epoch takes one view of each, as `RowLoader` does. Bad rows are left out.
        runs: any number.
        training: loss, batch and device.
        use: is called with a run and its head, in evaluation mode, on the thread that has trained it. A head whose
            training diverged holds values that are not finite: it stops at the end of an epoch.

    Returns:
        What ``use`` returns, in the order of the runs.

    Raises:
        ValueError: an argument does not fit; the labels are numbers to be predicted; a run has fewer than two rows.
    """
    _check(ds, training.crit, training.bs)
    if not runs:
        return []
    loaders = _loaders(ds, runs, training.bs, torch.device(training.device))
    workers, threads = _workers(len(runs), loaders[0].device)
    found: dict[HeadRun, T] = {}
    groups = _groups([_HeadWork(*of) for of in zip(runs, loaders, strict=True)], workers)
    run_all([_Task(group, training.crit, threads, use, found) for group in groups], workers)
    return [found[run] for run in runs]


def predict_rows(head: Head, ds: Dataset, rows: RowNumbers) -> Floats32:
    """Return logits ``[n, c]`` of rows ``[n] int64`` of a data set that holds rows."""
    spec = HeadSpec.from_layers(head.layers)
    assert spec is not None
    assert ds.rows is not None
    return predict(spec, ds.rows, rows).cpu().numpy()


class _RunLoader(RowLoader):
    """The rows of one run, in the order that a loader over all rows gives them."""

    def __init__(self, ds: Dataset, run: HeadRun, bs: int, device: torch.device) -> None:
        checked_seed("HeadRun", run.seed)
        super().__init__(ds, LoaderOptions(bs, run.seed, device, 1), shuffle=True, drop_single=True)
        self._trains = np.zeros(len(ds), bool)
        self._trains[_checked_rows(run.train, len(ds))] = True
        self._latest: tuple[int, RowNumbers] | None = None
        if len(self.served) < 2:
            raise ValueError(f"train_heads: a head needs two rows or more to train on, got {len(self.served)}")

    @property
    def served(self) -> RowNumbers:
        """See `Loader.served`."""
        rows = super().served
        return rows[self._trains[rows]]

    def order(self, epoch: int) -> RowNumbers:
        """See `Loader.order`."""
        if self._latest is None or self._latest[0] != epoch:  # the heads of a group ask one after another
            rows = super().order(epoch)
            self._latest = epoch, rows[self._trains[rows % self.n]]
        return self._latest[1]


def new_head(setting: HeadSetting, n_in: int, labels: Labels, seed: int) -> Head:
    """Return an untrained head for rows of ``n_in`` features with such labels, whose constant answer it begins at."""
    final, bias = FINALS[labels.kind], constant_logits(labels)
    return Head(n_in, labels.c, ps=setting.ps, xtra_fc=setting.xtra_fc, final=final, seed=seed, bias=bias)


def _workers(heads: int, device: torch.device) -> tuple[int, int]:
    """Return how many heads train at once, and on how many threads each.

    Threads that share the steps of a small head wait for each other more than they compute; threads that each have a
    head of their own never do. Where there are fewer heads than half the threads, those would be idle.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu" and heads > 1 and 2 * heads >= threads:
        return min(heads, threads), 1
    return 1, threads


@dataclass(frozen=True, eq=False)
class _HeadWork:
    run: HeadRun
    loader: _RunLoader

    @property
    def epochs(self) -> int:
        """Over the rows."""
        return self.run.setting.epochs_of(len(self.loader))

    @property
    def n_in(self) -> int:
        """Features of a row."""
        assert self.loader.ds.rows is not None
        return int(self.loader.ds.rows.shape[1])

    @property
    def nbytes(self) -> int:
        """What a step reads and writes of the weights: the engine holds them twice, and their momentum."""
        sizes = [self.n_in, *resolve_widths(self.run.setting.xtra_fc), self.loader.ds.c]
        return 3 * 4 * sum(2 * n_in + (n_in + 1) * n_out for n_in, n_out in pairwise(sizes))

    def input_key(self) -> Hashable:
        """Return what heads have in common that share their input: batches (the loader is one object) and masks."""
        setting = self.run.setting
        return id(self.loader), self.epochs, resolve_ps(setting.ps, len(resolve_widths(setting.xtra_fc)))[0]

    def new_head(self) -> Head:
        """Return the head before its training."""
        labels = self.loader.ds.labels.take(self.loader.served)
        return new_head(self.run.setting, self.n_in, labels, self.run.seed).to(self.loader.device)


def _loaders(ds: Dataset, runs: Sequence[HeadRun], bs: int, device: torch.device) -> list[_RunLoader]:
    """Return the loader of each run; runs of the same rows and epochs in the same order have one."""
    found: dict[Hashable, _RunLoader] = {}
    loaders = []
    for run in runs:
        key = run.seed, run.setting.epochs, np.sort(_checked_rows(run.train, len(ds))).tobytes()
        if key not in found:
            found[key] = _RunLoader(ds, run, bs, device)
        loaders.append(found[key])
    return loaders


def _groups(work: Sequence[_HeadWork], workers: int) -> list[list[_HeadWork]]:
    """Return the heads that train together, the longest first.

    A head's weights return to the cache once per step of its whole group, so large heads train alone.
    """
    alike: dict[Hashable, list[_HeadWork]] = {}
    for one in work:
        alike.setdefault(one.input_key(), []).append(one)
    groups = []
    for members in alike.values():
        size = min(_MOST_TOGETHER, -(-len(work) // workers), _WEIGHTS_TOGETHER // max(one.nbytes for one in members))
        parts = -(-len(members) // max(1, size))
        groups += [members[part::parts] for part in range(parts)]
    return sorted(groups, key=lambda group: -sum(one.nbytes * len(one.loader.served) for one in group))


@dataclass(frozen=True)
class _Task(Generic[T]):
    """Trains heads that share their input, and keeps what is made of them."""

    work: Sequence[_HeadWork]
    crit: NLL | BCE
    threads: int
    use: Callable[[HeadRun, Head], T]
    found: dict[HeadRun, T]

    def __call__(self, stop: Event) -> None:
        heads = [one.new_head() for one in self.work]
        self._train(heads, stop)
        for one, head in zip(self.work, heads, strict=True):
            self.found[one.run] = self.use(one.run, head.eval())

    def _train(self, heads: Sequence[Head], stop: Event) -> None:
        steps = [self._steps(*of) for of in zip(self.work, heads, strict=True)]
        batches = len(self.work[0].loader)
        chunk = max(1, steps[0].chunk // len(steps))
        for epoch in range(self.work[0].epochs):
            for each in steps:
                each.start_epoch(epoch)
            finite = np.ones(len(steps), bool)
            for first in range(0, batches, chunk):
                losses = run_together(steps, min(chunk, batches - first))
                finite &= np.isfinite(losses).all(1)
                go_on(stop)
            # Nothing that comes later makes weights finite again. Not before an epoch's end: how many batches a call
            # takes depends on the other heads, and the values that a head is left with must not.
            steps = [each for each, good in zip(steps, finite, strict=True) if good]
            if not steps:
                return

    def _steps(self, one: _HeadWork, head: Head) -> EngineSteps:
        setting = one.run.setting
        rates = Rates(np.array([setting.lr]), Cosine(len(one.loader) * one.epochs), np.array([setting.wd]))
        return EngineSteps(head, one.loader, self.crit, SGDR, rates, "float32", self.threads)


def _check(ds: Dataset, crit: NLL | BCE, bs: int) -> None:
    refuse_numbers("train_heads", ds.labels)
    if ds.rows is None:
        raise ValueError("train_heads: the data set holds images; heads train on rows. Compute its activations first.")
    if ds.rows.ndim != 2 or not len(ds) or len(ds.rows) % len(ds):
        raise ValueError(f"train_heads: rows must be [views * {len(ds)}, F], got {list(ds.rows.shape)}")
    wanted = BCE if ds.is_multi else NLL
    if type(crit) is not wanted:  # nor one derived from it, which only itself knows
        raise ValueError(f"train_heads: crit must be {wanted.__name__} for these labels, got {crit!r}")
    check_count("train_heads", "bs", bs, least=2)


def _checked_rows(given: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    rows = np.asarray(given)
    if rows.ndim != 1 or (len(rows) and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"train_heads: train must be row numbers [n] int64, got {rows.dtype} {list(rows.shape)}")
    rows = rows.astype(np.int64)
    outside = rows[(rows < 0) | (rows >= n)]
    if len(outside):
        raise ValueError(f"train_heads: train must be rows from 0 to {n - 1}, got {outside[0]}")
    values, counts = np.unique(rows, return_counts=True)
    if len(values) < len(rows):
        raise ValueError(f"train_heads: train must not repeat a row, got {values[counts.argmax()]} twice")
    return rows
