"""The loop of one fit: epochs of training steps, validation, callbacks, and the epoch table."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from fastclf import ranks
from fastclf.errors import DivergedError
from fastclf.interrupts import Interrupts
from fastclf.models.freezing import LayerGroups
from fastclf.models.head import StepCounter
from fastclf.models.net import head_of
from fastclf.ops import rate
from fastclf.report import Progress, log, remedy
from fastclf.training.callbacks import Callback, Hooks, wants_batches
from fastclf.training.epoch_table import EpochTable
from fastclf.training.recorder import Recorder
from fastclf.training.snapshot import LastGood


class Steps(Protocol):
    """Something that trains on the next batches of an epoch."""

    chunk: int
    step: int
    precision: str

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Begin an epoch after its first ``done`` batches."""

    def end_epoch(self) -> None:
        """End an epoch, which may have been left early."""

    def run(self, n: int) -> Sequence[float]:
        """Train on the next ``n`` batches, or those that there still are, and return their losses."""

    def state_dict(self) -> dict[str, Any]:
        """Return momenta and counters, for a fit that goes on later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""


def derived_seed(seed: int, *what: int | str) -> int:
    """Return a 63-bit seed that is a function of ``seed`` and of what it is for."""
    digest = hashlib.sha256(repr((seed, *what)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def seeded(seed: int, module: nn.Module) -> Iterator[None]:
    """Make all that is random in a block a function of ``seed``; restore the generators afterwards.

    That is: the masks of our head's dropout, and torch's generators, which a user's own head or a body's stochastic
    depth may sample from.
    """
    head = head_of(module)
    counter = StepCounter() if head is None else head.counter
    before = counter.seed, counter.step
    try:
        counter.seed, counter.step = seed, 0
        with torch.random.fork_rng():
            # Rows of other processes get other random numbers.
            torch.manual_seed(derived_seed(seed, "rank", ranks.rank()) if ranks.rank() else seed)
            yield
    finally:
        counter.seed, counter.step = before


@contextmanager
def closing_epoch(steps: Steps) -> Iterator[None]:
    """Run a block that trains, and end the epoch after it."""
    try:
        yield
    finally:
        steps.end_epoch()


class TrainLoop:
    """Runs a fit.

    Args:
        steps: trains.
        groups: whose layers are put into their modes at the start of each epoch.
        batches: per epoch.
        recorder: keeps rates and losses.
        callbacks: called in order.
        interrupts: let Ctrl-C and SIGTERM through after each step and during validation.
        first_epoch: which epoch of the loader's order is the first.

    Attributes:
        epoch: epochs that are over.
        done: batches of the epoch under way that are over.
        finished: whether the last epoch is over, or a callback has stopped the fit.
    """

    def __init__(
        self,
        steps: Steps,
        groups: LayerGroups,
        batches: int,
        recorder: Recorder,
        callbacks: Sequence[Callback],
        interrupts: Interrupts,
        first_epoch: int,
    ) -> None:
        self.steps, self.groups, self.batches = steps, groups, batches
        self.recorder, self._hooks = recorder, Hooks(callbacks)
        self.interrupts, self.first_epoch = interrupts, first_epoch
        self.epoch = self.done = 0
        self.stopped = self.finished = False
        self._watched = any(wants_batches(callback) for callback in callbacks)
        self._chunk = 1 if self._watched else steps.chunk

    @property
    def next_epoch(self) -> int:
        """The first epoch of the loader's order that this fit has not touched."""
        return self.first_epoch + self.epoch + (self.done > 0)

    @torch.inference_mode(False)  # also where the user has turned gradients off
    @torch.enable_grad()
    def run_epoch(self, *, allow_nan: bool = False) -> None:
        """Train on what is left of the epoch under way, until a callback stops it.

        Raises:
            DivergedError: a batch's loss is not finite, unless ``allow_nan``.
        """
        self.groups.set_modes()
        self.steps.start_epoch(self.first_epoch + self.epoch, self.done)
        with closing_epoch(self.steps), Progress(self.batches, "train", "batches", done=self.done) as progress:
            while self.done < self.batches and not self.stopped:
                n = min(self._chunk, self.batches - self.done)
                self._hooks.call("on_batch_begin")
                if self._watched:
                    self.groups.set_modes()  # a callback may have predicted
                step, losses = self.steps.step, self.steps.run(n)
                for i, loss in enumerate(losses):
                    self._note(loss, step + i, allow_nan=allow_nan)
                # Fewer batches than there were, where bad images have been found and are skipped.
                self.done = self.done + n if len(losses) == n else self.batches
                progress.advance(n)
                self._check_interrupts()

    def _check_interrupts(self) -> None:
        """Let a signal through, and a callback stop the fit: in all processes where it is so in one."""
        if ranks.size() == 1:
            return self.interrupts.check()
        number, stopped = ranks.agreed(self.interrupts.waiting or 0, self.stopped)
        self.stopped = bool(stopped)
        return self.interrupts.check(number or None)

    def _note(self, loss: float, step: int, *, allow_nan: bool) -> None:
        if not (allow_nan or math.isfinite(loss)):
            raise DivergedError(
                f"fit: the training loss of batch {len(self.recorder.lrs)} is {loss} at {self._rate(step)}"
            )
        smoothed = self.recorder.batch(loss, step)
        self.stopped |= self._hooks.call("on_batch_end", smoothed)

    def _rate(self, step: int) -> str:
        lr = rate(self.recorder.schedule, step)[0] * self.recorder.lr
        return f"learning rate {lr:.3g} in {self.steps.precision}"

    def search(self) -> None:
        """Train epoch after epoch until a callback stops it; losses need not be finite."""
        while not self.stopped:
            self.run_epoch(allow_nan=True)
            self.epoch, self.done = self.epoch + 1, 0

    def fit(
        self,
        n_epochs: int,
        validate: Callable[[], list[float]],
        names: Sequence[str],
        save_state: Callable[[], None] | None,
        constant: float | None,
    ) -> list[float]:
        """Train up to ``n_epochs`` and log a table of them; return ``[val_loss, metric, ...]`` of the last epoch.

        Args:
            n_epochs: of the whole fit, those before it was resumed included.
            validate: gives ``[val_loss, metric, ...]``.
            names: of the metrics.
            save_state: called after each epoch, and when an interrupt ends the fit where everything is consistent.
            constant: the validation loss of a prediction that never changes; the table has it beside the first epoch,
                and a fit that ends above it warns in a line.

        Raises:
            DivergedError: the loss, a weight or a prediction is not finite; the model then holds the last good values.
            KeyboardInterrupt: Ctrl-C; says where the fit was stopped and how to go on.
        """
        table = EpochTable(("trn_loss", "val_loss", *names), constant)
        good = LastGood(self.groups.groups[self.groups.frozen_to :])
        if not good.finite():
            raise DivergedError("fit: the model holds values that are not finite; load a saved model first.")
        good.take(self.steps.step)
        self._hooks.call("on_train_begin")
        try:
            while not self.finished:
                values = self._run_safely(good, validate)
                self._end_epoch(values, n_epochs, table)
                self._save(save_state)
                self._check_interrupts()
        except (KeyboardInterrupt, SystemExit) as stop:
            if self.interrupts.at_rest:
                self._save(save_state)
            if isinstance(stop, SystemExit):
                raise
            raise KeyboardInterrupt(self._stopped(resumable=save_state is not None)) from None
        self._hooks.call("on_train_end")
        values = self.recorder.last()
        if constant is not None and values[0] > constant:
            log(_worse_than_constant(values[0], constant))
        return values

    def _save(self, save_state: Callable[[], None] | None) -> None:
        if save_state is not None:
            self._hooks.tolerate("the state of the fit", save_state)

    def _stopped(self, *, resumable: bool) -> str:
        """Return what Ctrl-C leaves of the fit, and how to go on."""
        where = f"fit was stopped after {self.epoch} epoch(s) and {self.done} of {self.batches} batches"
        if not self.interrupts.at_rest:
            return f"{where}, in the middle of a step: load a saved model, or make a new learner."
        hint = (
            "The same call with resume=True goes on"
            if resumable
            else "With state_name= a fit can go on where it was stopped"
        )
        return f"{where}; the model holds what it has learnt. {hint}."

    def _run_safely(self, good: LastGood, validate: Callable[[], list[float]]) -> list[float]:
        """Train for an epoch and validate; where it diverges, the modules hold the last good values again."""
        try:
            self.run_epoch()
            step = self.steps.step
            if not good.finite():
                raise DivergedError(f"fit: the weights are not finite after {step} steps at {self._rate(step)}")
            with self.interrupts.released():
                try:
                    values = validate()
                except DivergedError as error:
                    raise DivergedError(f"fit: {error} after {step} steps at {self._rate(step)}") from None
            good.take(step)
            return values
        except DivergedError as error:
            good.restore()
            raise DivergedError(f"{error}. {_advice(good.step, first=not self.recorder.lrs)}") from None

    def _end_epoch(self, values: list[float], n_epochs: int, table: EpochTable) -> None:
        self.recorder.epoch(values[0], values[1:])
        table.row(self.epoch, [self.recorder.losses[-1], *values])
        self.stopped |= self._hooks.call("on_epoch_end", values)
        if ranks.size() > 1:
            self.stopped = bool(ranks.agreed(self.stopped)[0])
        self.epoch, self.done = self.epoch + 1, 0
        self.finished = self.stopped or self.epoch == n_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while the fit runs, for one that goes on later."""
        return {
            "first_epoch": self.first_epoch,
            "epoch": self.epoch,
            "done": self.done,
            "stopped": self.stopped,
            "finished": self.finished,
            "steps": self.steps.state_dict(),
            "kept": self.groups.kept_places(),
            "recorder": self.recorder.state_dict(),
            "callbacks": [callback.state_dict() for callback in self._hooks.callbacks],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises:
            ValueError: it cannot come from there.
        """
        self.first_epoch, self.epoch, self.done = state["first_epoch"], state["epoch"], state["done"]
        self.stopped, self.finished = state["stopped"], state["finished"]
        self.recorder.load_state_dict(state["recorder"])
        self._check(state["steps"]["step"])
        self.steps.load_state_dict(state["steps"])
        self.groups.keep(state["kept"])
        for callback, saved in zip(self._hooks.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)

    def _check(self, step: int) -> None:
        """Check counters that come from a file against each other."""
        counters = (self.first_epoch, self.epoch, self.done, step)
        if any(type(n) is not int or not 0 <= n < 2**31 for n in counters) or self.done > self.batches:
            raise ValueError(f"the counters cannot be {counters}")
        if type(self.stopped) is not bool or type(self.finished) is not bool:
            raise ValueError("stopped and finished must be true or false")
        batches, epochs = len(self.recorder.losses), len(self.recorder.val_losses)
        if epochs != self.epoch or not step <= batches <= self.epoch * self.batches + self.done:
            raise ValueError(f"{batches} batches and {epochs} epochs were recorded, but the counters are {counters}")
        if (self.finished and not epochs) or (self.done and not batches):
            raise ValueError("nothing was recorded of what is over")


def _advice(good: int, *, first: bool) -> str:
    if first:
        return "No step came before it: the inputs, the targets or the loss function are the cause, not the rate."
    lower = remedy("a lower rate (see lr_find), or bound the gradient (learn.clip)", "a lower rate (--lr)")
    return f"The model holds the weights that it had after {good} steps, before this epoch. Train with {lower}."


def _worse_than_constant(loss: float, constant: float) -> str:
    others = remedy(
        "Take the model of a better epoch (best_save_name=), another rate (see lr_find)",
        "Take fewer epochs (--epochs), another rate (--lr)",
    )
    return (
        f"The validation loss {loss:.6f} is above {constant:.6f}, that of a constant prediction: on new images its "
        "probabilities are worse than the shares of the classes, even where the metrics are good. "
        f"{others}, or more data or augmentation."
    )
