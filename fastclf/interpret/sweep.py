"""Settings of a head side by side, by the loss on rows that the heads have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.interpret.tables import Cells, Table, number, plain
from fastclf.report import counted
from fastclf.training.head_choice import Setting
from fastclf.training.head_runs import HeadSetting
from fastclf.training.linear_heads import LinearSetting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KINDS = {HeadSetting: "trained", LinearSetting: "logistic regression"}


@dataclass(frozen=True, repr=False)
class Sweep(Table):
    """Settings of a head and their out-of-fold losses; prints as a table, best first.

    Attributes:
        settings: best first; those whose training diverged come last.
        losses: ``[S, k]``, the mean loss on each fold of the heads that have not seen it; NaN where one diverged, or
            was hopeless on the way and not tried.
    """

    settings: Sequence[Setting]
    losses: NDArray[np.float64]

    @property
    def best(self) -> Setting:
        """The setting of the lowest mean loss: what `fine_tune` takes."""
        return self.settings[0]

    def intervals(self) -> NDArray[np.float64]:
        """Return mean, and half of its 95 % interval by Student's t over folds, ``[S, 2]``.

        Folds share training rows, so that the interval is only a guide (Bengio and Grandvalet, 2004).
        """
        from scipy.special import stdtrit

        k = self.losses.shape[1]
        half = stdtrit(k - 1, 0.975) * self.losses.std(1, ddof=1) / np.sqrt(k)
        return np.stack([self.losses.mean(1), half], 1)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the losses with their intervals, best at the top."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(8, 1 + 0.3 * len(self.settings)), layout="constrained")
        places, found = range(len(self.settings)), self.intervals()
        ax.errorbar(found[:, 0], places, xerr=found[:, 1], fmt="o")
        ax.set_yticks(places, [str(setting) for setting in self.settings])
        ax.invert_yaxis()
        ax.set_xlabel("out-of-fold loss")
        return ax

    def _columns(self) -> list[str]:
        known = dict.fromkeys(name for setting in self.settings for name in asdict(setting))
        return ["head", "loss", "low", "high", *known]

    def _rows(self) -> list[list[Any]]:
        columns = self._columns()
        rows = []
        for setting, (mean, half) in zip(self.settings, self.intervals(), strict=True):
            values = {"head": _KINDS[type(setting)], "loss": mean, "low": mean - half, "high": mean + half}
            rows.append([plain(value) for value in map((values | asdict(setting)).get, columns)])
        return rows

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        cells: Cells = [["setting", "loss", "95 % interval"]]
        for setting, (mean, half) in zip(self.settings, self.intervals(), strict=True):
            cells.append([str(setting), number(mean), f"{number(mean - half)} to {number(mean + half)}"])
        k = self.losses.shape[1]
        notes = ["a best setting at the end of its grid asks for a wider grid"] if len(self.settings) > 1 else []
        return f"out-of-fold loss of {counted(len(self.settings), 'setting')}, {k} folds, best first", [cells], notes
