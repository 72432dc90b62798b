"""One race of many heads on the rows of one data set: folds times settings, as a comparison of settings trains them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastclf.data.dataset import Dataset
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.labels import Labels
from fastclf.models.head import Head
from fastclf.training.head_runs import HeadRun, HeadSetting

FOLDS = 4
RATES = (0.05, 0.1, 0.15, 0.2)
CLASSES = 10
BATCH = 64
ROWS = 2_000


@dataclass(frozen=True)
class HeadsSetting:
    """Columns, the width of the hidden layer (0: none), and threads."""

    columns: int
    hidden: int
    threads: int
    round_flop: float = 2e10  # work of one round

    @property
    def heads(self) -> int:
        """How many heads train in a round."""
        return FOLDS * len(RATES)

    @property
    def epochs(self) -> int:
        """Of each head: the round's work, but between 2 and 5."""
        weights = self.columns * (self.hidden or CLASSES) + self.hidden * CLASSES
        return min(max(2, int(self.round_flop / (6 * weights * self.rows_per_epoch))), 5)

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch of all heads takes."""
        return self.heads * ROWS * (FOLDS - 1) // FOLDS

    def dataset(self) -> Dataset:
        """Rows `[ROWS, columns] float16` in memory: like pooled activations, not negative."""
        rng = np.random.default_rng(0)
        rows = np.abs(rng.standard_normal((ROWS, self.columns))).astype(np.float16)
        labels = Labels(rng.integers(CLASSES, size=ROWS), [f"class {i}" for i in range(CLASSES)])
        return Dataset(ArraySource(Path(), rows), labels, activations=rows)

    def runs(self, number: int) -> list[HeadRun]:
        """The heads of round `number`: of every fold, one of each rate, which share seed and so order and masks."""
        widths = (self.hidden,) if self.hidden else ()
        return [
            HeadRun(
                HeadSetting(lr=lr, epochs=self.epochs, xtra_fc=widths),
                np.flatnonzero(np.arange(ROWS) % FOLDS != fold),
                FOLDS * number + fold,
            )
            for fold in range(FOLDS)
            for lr in RATES
        ]


def checksums(heads: Iterable[Head]) -> list[int]:
    """A number per head that tells whether two hold the same bits."""
    return [zlib.crc32(b"".join(t.numpy().tobytes() for t in head.state_dict().values())) for head in heads]
