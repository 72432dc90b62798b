"""Hooks into a fit, and the ones that the learner itself uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

from fastclf.errors import CheckpointError
from fastclf.report import warn
from fastclf.schedules import Schedule


class Callback:
    """Override what is needed. ``on_batch_end`` and ``on_epoch_end`` stop the fit by returning True.

    A callback that overrides ``on_batch_begin`` or ``on_batch_end`` is called between any two batches, which keeps
    the native engine from running many batches in one call.

    One that cannot write (any OSError, such as a full disk or a lost connection; CheckpointError) does not end the
    fit: a warning says so once, and the callback is called again next time. Any other error ends it.
    """

    def on_train_begin(self) -> None:
        """Before the first batch."""

    def on_batch_begin(self) -> None:
        """Before each batch."""

    def on_batch_end(self, loss: float) -> bool | None:
        """After each batch, with the smoothed training loss.

        Args:
            loss: the training loss, smoothed.

        Returns:
            True to stop the fit.
        """

    def on_epoch_end(self, metrics: list[float]) -> bool | None:
        """After each epoch, with ``[val_loss, metric, ...]``.

        Args:
            metrics: ``[val_loss, metric, ...]``.

        Returns:
            True to stop the fit.
        """

    def on_train_end(self) -> None:
        """After the last epoch, also when a callback stopped the fit."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed fit must know again: numbers, texts, lists, dicts, tensors and arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave.

        Args:
            state: what was saved with the interrupted fit.
        """


class Hooks:
    """The callbacks of a fit, called in order. One that cannot write ends nothing: a warning says so once."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self.callbacks = callbacks
        self._failed: list[object] = []  # compared by identity: a callback may have no hash, and equal others

    def call(self, hook: str, *args: Any) -> bool:
        """Call every callback, with copies of its own; return whether one of them asks to stop."""
        stop = False
        for callback in self.callbacks:
            stop |= bool(self.tolerate(callback, getattr(callback, hook), *map(copy, args)))
        return stop

    def tolerate(self, who: object, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function that writes; where it cannot, training goes on, with one warning."""
        try:
            return function(*args)
        except (OSError, CheckpointError) as error:
            if not any(other is who for other in self._failed):
                self._failed.append(who)
                name = who if isinstance(who, str) else type(who).__name__
                warn(f"fit: {name} could not be written ({error}); training goes on. Later failures are not reported.")
            return None


def wants_batches(callback: Callback) -> bool:
    """Return whether the callback must be called between any two batches."""
    kind = type(callback)
    return kind.on_batch_end is not Callback.on_batch_end or kind.on_batch_begin is not Callback.on_batch_begin


class SaveBest(Callback):
    """Saves the model whenever the validation loss is lower than after every earlier epoch of this fit."""

    def __init__(self, save: Callable[[str], object], name: str) -> None:
        self.save, self.name, self.best = save, name, float("inf")

    def on_epoch_end(self, metrics: list[float]) -> bool | None:
        """Save where the loss is lower; one that is not a number never is."""
        if metrics[0] < self.best:
            self.save(self.name)
            self.best = metrics[0]
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self.best = float(state["best"])


class SaveCycles(Callback):
    """Saves the model as ``NAME_cyc_0``, ``NAME_cyc_1``, ... after the last batch of each cycle.

    Cycles are whole epochs, so the end of an epoch is soon enough.
    """

    def __init__(self, save: Callable[[str], object], name: str, schedule: Schedule, batches_per_epoch: int) -> None:
        self.save, self.name, self.schedule, self.nb = save, name, schedule, batches_per_epoch
        self.epochs = self.cycles = 0

    def on_epoch_end(self, metrics: list[float]) -> bool | None:
        """Save where the epoch's last batch ends a cycle."""
        self.epochs += 1
        if self.schedule.ends_cycle(self.epochs * self.nb - 1):
            self.cycles += 1
            self.save(f"{self.name}_cyc_{self.cycles - 1}")
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return how many epochs and cycles are over."""
        return {"epochs": self.epochs, "cycles": self.cycles}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Callback`."""
        self.epochs, self.cycles = int(state["epochs"]), int(state["cycles"])


_NOISY = 10  # batches at the start of a rate search, whose mean is over few


class EndSearch(Callback):
    """Ends a rate search after ``steps`` batches, or once the smoothed loss is not finite or above four times its best.

    The first ten batches set no best: one easy batch of a head that was trained before would end the search at once.
    """

    def __init__(self, steps: int) -> None:
        self.left, self.before_best, self.best = steps, _NOISY, math.inf

    def on_batch_end(self, loss: float) -> bool:
        """Count the batch and compare its loss."""
        self.left -= 1
        self.before_best -= 1
        if self.before_best < 0:
            self.best = min(self.best, loss)
        return self.left == 0 or not math.isfinite(loss) or loss > 4 * self.best
