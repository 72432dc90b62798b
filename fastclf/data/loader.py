"""Batches of pictures or of rows. A loader owns the order of its rows: a function of (seed, epoch) alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.draws import Split, draw
from fastclf.data.samples import Dataset
from fastclf.data.transforms import Transforms
from fastclf.data.waiting import Waiting, available_processors
from fastclf.philox import permutation

if TYPE_CHECKING:
    from fastclf.data.pipeline import PicturePipeline

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
Rows: TypeAlias = npt.NDArray[np.int64]

_AHEAD = 2  # batches in the making while one is used
_MOST_THREADS = 8


@dataclass(frozen=True)
class LoaderOptions:
    """What all loaders of one data object share.

    Attributes:
        bs: rows per batch; the last batch may be smaller.
        seed: of the order and of the augmentations.
        device: where the batches are.
        num_threads: threads that decode.
    """

    bs: int
    seed: int
    device: torch.device
    num_threads: int


def available_threads() -> int:
    """Counts the processors this process may use, at most 8."""
    return min(available_processors(), _MOST_THREADS)


class Loader:
    """Iterates over a data set in batches `(x, y)`; each `iter` is the next epoch.

    Attributes:
        ds: the data set.
        bs: rows per batch.
        shuffle: whether the order is random.
        device: where the batches are.
        epoch: the epoch that the next `iter` will give.
        targets: `Labels.y` of every row, in data set order, on the CPU.
        waiting: which side waited in the running or last epoch; of pictures alone.
    """

    def __init__(
        self, ds: Dataset, options: LoaderOptions, *, shuffle: bool = False, drop_single: bool = False
    ) -> None:
        self.ds = ds
        self.bs = options.bs
        self.shuffle = shuffle
        self.device = options.device
        self.epoch = 0
        self.waiting = Waiting()
        self._options = options
        self._drop_single = drop_single
        self.targets = torch.from_numpy(np.ascontiguousarray(ds.y))

    @property
    def n(self) -> int:
        """Number of rows in the data set."""
        return len(self.ds)

    def __len__(self) -> int:
        """Counts the batches of an epoch."""
        return len(self._chunks(np.arange(self.n)))

    def order(self, epoch: int) -> Rows:
        """Returns the order of the rows in an epoch, `[n] int64`."""
        return permutation(self._options.seed, epoch, self.n) if self.shuffle else np.arange(self.n, dtype=np.int64)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch: x on the device, y `[B] int64`, or float32 as `Labels.y` says."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self.batches(epoch)

    def _chunks(self, order: Rows) -> list[Rows]:
        chunks = [order[i : i + self.bs] for i in range(0, len(order), self.bs)]
        if self._drop_single and chunks and len(chunks[-1]) == 1:
            chunks.pop()  # batch normalisation cannot train on a single row
        return chunks

    def _targets(self, rows: Rows) -> torch.Tensor:
        return self.targets[torch.from_numpy(rows)].to(self.device)


class PictureLoader(Loader):
    """Decodes, augments and normalises pictures with DALI: x is `[B, 3, sz, sz] float32`.

    The batches of an epoch are the same whatever the number of threads. The graph is built at the first batch and
    serves all epochs.
    """

    def __init__(
        self,
        ds: Dataset,
        tfms: Transforms,
        options: LoaderOptions,
        split: Split,
        *,
        shuffle: bool = False,
        drop_single: bool = False,
    ) -> None:
        super().__init__(ds, options, shuffle=shuffle, drop_single=drop_single)
        self.tfms = tfms
        self.split = split
        self._idle: list[PicturePipeline] = []  # built graphs that no running epoch uses

    def batches(self, epoch: int) -> Iterator[Batch]:
        """See `Loader.batches`.

        Raises:
            BadImageError: when pictures of a batch cannot be decoded; names them all.
        """
        chunks = self._chunks(self.order(epoch))
        if not chunks:
            return
        waiting = self.waiting = Waiting(self._options.num_threads)
        waiting.asked()
        pipe = self._idle.pop() if self._idle else self._build()
        fed = taken = 0
        try:
            for rows in chunks:
                while fed < min(taken + 1 + _AHEAD, len(chunks)):
                    self._feed(pipe, chunks[fed], epoch)
                    fed += 1
                x = self._take(pipe, rows)
                taken += 1
                waiting.ready()
                yield x, self._targets(rows)
                waiting.asked()
        except GeneratorExit:  # the loop was left early
            if _finish(pipe, fed - taken):
                self._idle.append(pipe)
            raise
        self._idle.append(pipe)

    def _build(self) -> PicturePipeline:
        from fastclf.data.pipeline import PicturePipeline, Source

        images = self.ds.images
        source = Source() if images is None else Source(files=False, top=255.0 if images.dtype == np.uint8 else 1.0)
        options = self._options
        return PicturePipeline(self.tfms, source, min(self.bs, self.n), options.device, options.num_threads)

    def _feed(self, pipe: PicturePipeline, rows: Rows, epoch: int) -> None:
        pipe.feed(self._pictures(rows), draw(self.tfms, self._options.seed, epoch, self.split, rows))

    def _pictures(self, rows: Rows) -> Sequence[npt.NDArray[Any]] | npt.NDArray[Any]:
        if self.ds.images is not None:
            images = self.ds.images[rows]
            return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
        return [np.frombuffer(os.fsencode(self.ds.path / self.ds.fnames[row]), np.uint8) for row in rows]

    def _take(self, pipe: PicturePipeline, rows: Rows) -> torch.Tensor:
        try:
            return pipe.take()
        except RuntimeError as error:
            from fastclf.data.bad_images import explain

            raise explain(self.ds, rows, error) from error


def _finish(pipe: PicturePipeline, unfinished: int) -> bool:
    """Takes the batches under way; returns whether the graph can be used again."""
    try:
        for _ in range(unfinished):
            pipe.take()
    except RuntimeError:
        return False
    return True


class RowLoader(Loader):
    """Gathers rows of activations from an array or a mapped file: x is `[B, F] float32`."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """See `Loader.batches`."""
        from fastclf.ops import gather_rows

        assert self.ds.rows is not None
        for rows in self._chunks(self.order(epoch)):
            yield gather_rows(self.ds.rows, rows).to(self.device), self._targets(rows)
