"""Batches of images or of rows. A loader owns the order of its rows: a function of (seed, epoch) alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from fastclf import ranks
from fastclf.arrays import RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.input_stall import InputStall
from fastclf.ops.registry import to_device
from fastclf.philox import STREAM_VIEW, permutation, uniforms

if TYPE_CHECKING:
    from fastclf.data.decode.kept_images import ImageMemory

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class LoaderOptions:
    """What all loaders of one data object share.

    Attributes:
        bs: rows per batch; the last batch may be smaller.
        seed: of the order and of the augmentations.
        device: where the batches are.
        num_threads: threads that decode.
        memory: of decoded images, which all loaders share; None for none.
    """

    bs: int
    seed: int
    device: torch.device
    num_threads: int
    memory: ImageMemory | None = None


class Loader:
    """Iterates over a data set in batches `(x, y)`; each `iter` is the next epoch.

    Attributes:
        ds: the data set.
        bs: rows per batch.
        shuffle: whether the order is random.
        drop_single: whether a last batch of one row is left out.
        device: where the batches are.
        epoch: the epoch that the next `iter` will give.
        targets: `Labels.y` of every row, in data set order, on the CPU.
        input_stall: which side stalled in the running or last epoch; of images alone.
    """

    def __init__(
        self, ds: Dataset, options: LoaderOptions, *, shuffle: bool = False, drop_single: bool = False
    ) -> None:
        self.ds = ds
        self.bs = options.bs
        self.shuffle = shuffle
        self.device = options.device
        self.epoch = 0
        self.input_stall = InputStall()
        self.options = options
        self.drop_single = drop_single
        self.targets = torch.from_numpy(np.ascontiguousarray(ds.y))

    @property
    def n(self) -> int:
        """Number of rows in the data set, those of bad images included."""
        return len(self.ds)

    @property
    def served(self) -> RowNumbers:
        """The rows that an epoch serves, in data set order, `[n_good] int64`: those not known to be bad."""
        return self.ds.bad.good_rows()

    def __len__(self) -> int:
        """Count the batches of an epoch."""
        return len(self._chunks(self.served))

    def order(self, epoch: int) -> RowNumbers:
        """Return the order of the rows in an epoch, `[n_good] int64`; what is left out does not move the others."""
        if not self.shuffle:
            return self.served
        order, bad = permutation(self.options.seed, epoch, self.n), [*self.ds.bad.reasons]
        return order[~np.isin(order, bad)] if bad else order

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch: x on the device, y `[B] int64`, or float32 as `Labels.y` says."""
        return self.batches_of(epoch, self.chunks(epoch), least=1 + self.drop_single)

    def chunks(self, epoch: int) -> list[RowNumbers]:
        """Return the rows of each batch of an epoch."""
        return self._chunks(self.order(epoch))

    def batches_of(self, epoch: int, chunks: Sequence[RowNumbers], *, least: int) -> Iterator[Batch]:
        """Yield given rows as batches, as they are in an epoch.

        Args:
            epoch: decides augmentations.
            chunks: the rows of each batch; there may be none in one.
            least: a batch that has fewer rows, once its bad images are left out, is left out.
        """
        raise NotImplementedError

    def part(self, epoch: int) -> list[RowNumbers]:
        """Return this process's rows of an epoch in batches: of those that train together each serves a part."""
        order = np.concatenate([np.empty(0, np.int64), *self.chunks(epoch)])
        mine = order[ranks.share(len(order))]
        return [mine[i : i + self.bs] for i in range(0, len(mine), self.bs)]

    def slices(self, epoch: int) -> list[RowNumbers]:
        """Return this process's slice of each batch of an epoch, which may be empty."""
        return [rows[ranks.share(len(rows))] for rows in self.chunks(epoch)]

    def note_bad_together(self) -> None:
        """Let all processes know which images each has found to be bad. An epoch, or a pass, begins or ends here."""
        for reasons in ranks.gather(dict(self.ds.bad.reasons)):
            self.ds.bad.note(reasons)

    def close(self) -> None:
        """Give back what the loader holds beside its data set; it can still be used."""

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def _chunks(self, order: RowNumbers) -> list[RowNumbers]:
        chunks = [order[i : i + self.bs] for i in range(0, len(order), self.bs)]
        if self.drop_single and chunks and len(chunks[-1]) == 1:
            chunks.pop()  # batch normalisation cannot train on a single row
        return chunks

    def _targets(self, rows: RowNumbers) -> torch.Tensor:
        return to_device(self.targets[torch.from_numpy(rows)], self.device)


class RowLoader(Loader):
    """Gathers rows of activations from an array or a mapped file: x is `[B, F] float32`.

    The data set may hold K views of every row, view k of row i in row k * n + i; an epoch takes one of them. In data
    set order, that is view k mod K in epoch k. Else it is chosen by (seed, epoch, row) so that in epochs 0 to K - 1, K
    to 2 K - 1 and so on each of them is taken once.

    Attributes:
        targets: of every row of every view.
    """

    def __init__(self, ds: Dataset, options: LoaderOptions, **how: bool) -> None:
        super().__init__(ds, options, **how)
        assert ds.rows is not None
        self._views = max(1, len(ds.rows) // max(1, len(ds)))
        self.targets = torch.cat([self.targets] * self._views)

    def order(self, epoch: int) -> RowNumbers:
        """See `Loader.order`; the rows of the views that were chosen."""
        rows = super().order(epoch)
        return rows if self._views == 1 else rows + self.n * self._view(epoch)[rows]

    def _view(self, epoch: int) -> RowNumbers:
        """Which view an epoch takes of every row, `[n] int64`."""
        turn = np.full(self.n, epoch, np.int64)
        if self.shuffle:
            pairs = np.arange((self.n + 1) // 2, dtype=np.int64)
            u = uniforms(self.options.seed, epoch // self._views, pairs, STREAM_VIEW, 2).ravel()[: self.n]
            turn += (u * self._views).astype(np.int64)
        return turn % self._views

    def batches_of(self, epoch: int, chunks: Sequence[RowNumbers], *, least: int) -> Iterator[Batch]:
        """See `Loader.batches_of`."""
        from fastclf.ops import gather_rows

        assert self.ds.rows is not None
        for rows in chunks:
            yield to_device(gather_rows(self.ds.rows, rows), self.device), self._targets(rows)
