"""The loop of one fit: epochs of training steps, validation, callbacks, and the epoch table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from fastclf.errors import DivergedError
from fastclf.models.freezing import LayerGroups
from fastclf.progress import Progress
from fastclf.training.callbacks import Callback, wants_batches
from fastclf.training.recorder import Recorder


class Steps(Protocol):
    """Something that trains on the next batches of an epoch."""

    chunk: int

    def start_epoch(self, epoch: int) -> None:
        """Begins an epoch."""

    def run(self, n: int) -> Sequence[float]:
        """Trains on the next ``n`` batches and returns their losses."""


def derived_seed(seed: int, *what: int | str) -> int:
    """A 63-bit seed that is a function of ``seed`` and of what it is for."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Runs a block under torch generators seeded with ``seed``; the caller's are as before afterwards.

    Only layers that draw from torch itself need it (a custom head's dropout, a body's stochastic depth).
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class TrainLoop:
    """Runs a fit.

    Args:
        steps: trains.
        groups: whose layers are put into their modes at the start of each epoch.
        batches: per epoch.
        recorder: keeps rates and losses.
        callbacks: called in order.
    """

    def __init__(
        self, steps: Steps, groups: LayerGroups, batches: int, recorder: Recorder, callbacks: Sequence[Callback]
    ) -> None:
        self.steps, self.groups, self.batches = steps, groups, batches
        self.recorder, self.callbacks = recorder, callbacks
        self._chunk = 1 if any(wants_batches(callback) for callback in callbacks) else steps.chunk

    def run_epoch(self, epoch: int, *, allow_nan: bool = False) -> bool:
        """Trains on one epoch; returns whether a callback stopped it.

        Raises:
            DivergedError: a batch's loss is not finite, unless ``allow_nan``.
        """
        self.groups.set_modes()
        self.steps.start_epoch(epoch)
        done = 0
        with Progress(self.batches, "train", "batches") as progress:
            while done < self.batches:
                n = min(self._chunk, self.batches - done)
                for callback in self.callbacks:
                    callback.on_batch_begin()
                if self._note(self.steps.run(n), allow_nan=allow_nan):
                    return True
                done += n
                progress.advance(n)
        return False

    def _note(self, losses: Sequence[float], *, allow_nan: bool) -> bool:
        stop = False
        for loss in losses:
            if not (allow_nan or math.isfinite(loss)):
                step = len(self.recorder.lrs)
                rate = self.recorder.schedule.factor(step) * self.recorder.lr
                raise DivergedError(
                    f"fit: the training loss of batch {step} is {loss} at learning rate {rate:.3g}. "
                    "The weights are spoilt: load a saved model and train with a lower rate (see lr_find)."
                )
            smoothed = self.recorder.batch(loss)
            for callback in self.callbacks:
                stop |= bool(callback.on_batch_end(smoothed))
        return stop

    def fit(
        self, n_epochs: int, first_epoch: int, validate: Callable[[], list[float]], names: Sequence[str]
    ) -> list[float]:
        """Trains ``n_epochs``; prints the table; returns ``[val_loss, metric, ...]`` of the last epoch."""
        values: list[float] = []
        for callback in self.callbacks:
            callback.on_train_begin()
        columns = ("trn_loss", "val_loss", *names)
        widths = [max(12, len(name) + 2) for name in columns]
        print(_row("epoch", columns, widths), flush=True)
        for epoch in range(n_epochs):
            stopped = self.run_epoch(first_epoch + epoch)
            values = validate()
            self.recorder.epoch(values[0], values[1:])
            shown = [_shown(value) for value in (self.recorder.losses[-1], *values)]
            print(_row(f"{epoch:5d}", shown, widths), flush=True)
            for callback in self.callbacks:
                stopped |= bool(callback.on_epoch_end(values))
            if stopped:
                break
        for callback in self.callbacks:
            callback.on_train_end()
        return values


def _row(first: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"{first} " + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _shown(value: Any) -> str:
    return "n/a" if math.isnan(value) else f"{value:.6f}"
