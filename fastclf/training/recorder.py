"""What one fit or one rate search did, batch by batch, and its three plots: ``learn.sched``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastclf.ops import rate
from fastclf.report import counted
from fastclf.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastclf.training.suggestions import RateSuggestions

SMOOTHING = 0.98
_PER_BATCH = ("lrs", "losses", "momentums")


class Recorder:
    """Rates and losses of one fit.

    Attributes:
        lr: the last group's highest rate.
        lrs: the last group's rate in each batch.
        losses: the smoothed training loss after each batch: ``avg = .98 avg + .02 loss``, debiased.
        momentums: the momentum in each batch, where the schedule sets it.
        val_losses, rec_metrics: the validation loss and the metrics after each epoch.
        suggestions: what a rate search suggests; None for a fit.
    """

    def __init__(self, schedule: Schedule, lr: float) -> None:
        self.schedule, self.lr, self._average = schedule, lr, 0.0
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.momentums: list[float] = []
        self.val_losses: list[float] = []
        self.rec_metrics: list[list[float]] = []
        self.suggestions: RateSuggestions | None = None

    def __repr__(self) -> str:
        """Describe what there is in one line."""
        if not self.losses:
            return "Recorder: nothing trained yet"
        line = f"Recorder: {counted(len(self.losses), 'batch', 'batches')}, training loss {self.losses[-1]:.4f}"
        if self.val_losses:
            line += f", validation loss {self.val_losses[-1]:.4f} after epoch {len(self.val_losses)}"
        return f"{line}. Draw it: plot(), plot_loss(), plot_lr()"

    def batch(self, loss: float, step: int) -> float:
        """Note the loss of the next batch, trained at ``step`` of the schedule, and return the smoothed loss."""
        factor, momentum = rate(self.schedule, step)
        self.lrs.append(self.lr * factor)
        if momentum is not None:
            self.momentums.append(momentum)
        self._average = SMOOTHING * self._average + (1 - SMOOTHING) * loss
        self.losses.append(self._average / (1 - SMOOTHING ** len(self.lrs)))
        return self.losses[-1]

    def epoch(self, val_loss: float, metrics: list[float]) -> None:
        """Record what validation gave after an epoch."""
        self.val_losses.append(val_loss)
        self.rec_metrics.append(metrics)

    def last(self) -> list[float]:
        """``[val_loss, metric, ...]`` after the last epoch."""
        return [self.val_losses[-1], *self.rec_metrics[-1]]

    def state_dict(self) -> dict[str, Any]:
        """Return all that was recorded, for a fit that goes on later."""
        batches = {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _PER_BATCH}
        return {"average": self._average, "val_losses": self.val_losses, "rec_metrics": self.rec_metrics, **batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave.

        Raises:
            ValueError: it cannot come from there.
        """
        self._average = float(state["average"])
        self.val_losses = [float(loss) for loss in state["val_losses"]]
        self.rec_metrics = [[float(value) for value in row] for row in state["rec_metrics"]]
        for name in _PER_BATCH:
            setattr(self, name, [float(value) for value in state[name].tolist()])
        if len(self.lrs) != len(self.losses) or len(self.val_losses) != len(self.rec_metrics):
            raise ValueError("the lists of what was recorded differ in length")

    def plot_lr(self, ax: Axes | None = None) -> Axes:
        """Draw the rate (and the momentum, where it moves) over batches."""
        ax = _axes(ax, "batch", "learning rate")
        ax.plot(self.lrs, color="C0")
        if self.momentums:
            right = ax.twinx()
            right.plot(self.momentums, color="C1")
            right.set_ylabel("momentum", color="C1")
        return ax

    def plot_loss(self, ax: Axes | None = None) -> Axes:
        """Draw the smoothed training loss over batches."""
        ax = _axes(ax, "batch", "training loss (smoothed)")
        ax.plot(self.losses)
        return ax

    def plot(self, n_skip: int = 10, n_skip_end: int = 5, ax: Axes | None = None) -> Axes:
        """Draw the smoothed training loss over the rate, on a log axis, and mark what a rate search suggests.

        The first ``n_skip`` and last ``n_skip_end`` batches are left out when as many batches remain.
        """
        ax = _axes(ax, "learning rate (log scale)", "training loss (smoothed)")
        enough = len(self.lrs) >= 2 * (n_skip + n_skip_end)
        chosen = slice(n_skip, len(self.lrs) - n_skip_end) if enough else slice(None)
        losses = np.asarray(self.losses[chosen])
        ax.plot(self.lrs[chosen], losses, marker="" if len(losses) > 20 else ".")
        ax.set_xscale("log")
        if self.suggestions is not None:
            self._mark(ax, self.suggestions.rates())
        return ax

    def _mark(self, ax: Axes, rates: dict[str, float]) -> None:
        for number, (name, lr) in enumerate(rates.items(), 1):
            loss = np.interp(np.log(lr), np.log(self.lrs), self.losses)
            ax.plot(lr, loss, "o", color=f"C{number}", label=f"{name}: {lr:.1e}")
        if rates:
            ax.legend()


def _axes(ax: Axes | None, xlabel: str, ylabel: str) -> Axes:
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.3)
    return ax
