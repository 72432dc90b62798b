"""Settings of a head side by side, by the loss on rows that the heads have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from fastclf.training.head_runs import HeadSetting
from fastclf.training.linear_heads import LinearSetting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Setting = HeadSetting | LinearSetting


@dataclass(frozen=True)
class Sweep:
    """Settings of a head and their out-of-fold losses; prints as a table, best first.

    Attributes:
        settings: best first; those whose training diverged come last.
        losses: ``[S, k]``, the mean loss on each fold of the heads that have not seen it; NaN where one diverged.
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
        k = self.losses.shape[1]
        half = scipy.stats.t.ppf(0.975, k - 1) * self.losses.std(1, ddof=1) / np.sqrt(k)
        return np.stack([self.losses.mean(1), half], 1)

    def __repr__(self) -> str:
        """Return the table."""
        rows = zip(self.settings, self.intervals(), strict=True)
        lines = [f"{mean:10.6f} +- {half:.6f}   {setting}" for setting, (mean, half) in rows]
        return "\n".join(["out-of-fold loss (95 %)     setting", *lines])

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
