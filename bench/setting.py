"""One size of the head benchmark, and the rows it learns from: the same file for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

HIDDEN = 512
DROPOUT = (0.25, 0.5)
LR = 0.01
MOMENTUM = 0.9
ROWS = 50_000


@dataclass(frozen=True)
class HeadSetting:
    """Columns, classes and batch size, and the folder of the files."""

    columns: int
    classes: int
    batch: int
    folder: Path
    threads: int
    n: int = ROWS
    round_flop: float = 1.5e10  # work of one round

    @property
    def rows_file(self) -> Path:
        return self.folder / f"rows_{self.columns}_{self.n}.npy"

    @property
    def targets_file(self) -> Path:
        return self.folder / f"targets_{self.columns}_{self.classes}_{self.n}.npy"

    @property
    def flop_per_row(self) -> int:
        """Three products: forward, weight gradient, input gradient."""
        return 6 * (self.columns * HIDDEN + HIDDEN * self.classes)

    @property
    def steps(self) -> int:
        """Batches per round: its work, but between 3 and 80."""
        return min(max(3, int(self.round_flop / (self.flop_per_row * self.batch))), 80)

    def rows(self) -> np.ndarray:
        """`[n, columns] float16`, mapped: like pooled activations, not negative."""
        return np.load(self.rows_file, mmap_mode="r")

    def targets(self) -> np.ndarray:
        """`[n] int64`."""
        return np.load(self.targets_file)

    def order(self, number: int) -> np.ndarray:
        """The rows of round `number`, `[steps * batch] int64`."""
        return np.random.default_rng(number).permutation(self.n)[: self.steps * self.batch]

    def prepare(self) -> None:
        """Writes the files unless they exist."""
        rng = np.random.default_rng(1)
        if not self.rows_file.exists():
            rows = np.lib.format.open_memmap(self.rows_file, "w+", np.float16, (self.n, self.columns))
            for first in range(0, self.n, 10_000):
                block = rows[first : first + 10_000]
                block[:] = np.abs(rng.standard_normal(block.shape, dtype=np.float32))
            rows.flush()
        if not self.targets_file.exists():
            rule = rng.standard_normal((self.columns, self.classes), dtype=np.float32)
            rows = self.rows()
            scores = [rows[first : first + 5000].astype(np.float32) @ rule for first in range(0, self.n, 5000)]
            centred = np.concatenate(scores)
            np.save(self.targets_file, (centred - centred.mean(0)).argmax(1))
