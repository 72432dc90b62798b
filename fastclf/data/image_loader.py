"""Batches of pictures: decoded, augmented and normalised ahead of their use; a batch that fails is mended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.calls import starts_threads
from fastclf.data.dataset import Dataset
from fastclf.data.input_stall import Waiting
from fastclf.data.loader import Batch, Loader, LoaderOptions, Rows
from fastclf.data.transforms.sampling import Split, draw
from fastclf.data.transforms.spec import Transforms
from fastclf.data.validation.verified import DatasetFiles

if TYPE_CHECKING:
    from fastclf.data.decode.renderer import BatchMaker


_TRIED = 12  # batches, of a measurement


class PictureLoader(Loader):
    """Decodes, augments and normalises pictures: x is `[B, 3, sz, sz] float32`.

    The batches of an epoch are the same whatever the number of threads. What makes them is built at the first batch and
    serves all epochs.

    Attributes:
        tfms: how a picture becomes x.
        split: which set the rows are of: part of their augmentations' draws.
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
        self.files = DatasetFiles(ds, options.num_threads)
        self._idle: list[BatchMaker] = []  # built ones that no running epoch uses

    def batches(self, epoch: int) -> Iterator[Batch]:
        """See `Loader.batches`.

        A picture that turns out to be bad is noted in `ds.bad`. Where that says skip, its batch is served without it,
        and later epochs leave it out.

        Raises:
            BadImageError: when pictures of a batch cannot be decoded and may not be skipped; names them all.
        """
        waiting = self.waiting = Waiting(self._options.num_threads)
        waiting.asked()
        flow = _Flow(self, epoch)
        try:
            for rows, x in flow:
                waiting.ready()
                yield x, self._targets(rows)
                waiting.asked()
        except GeneratorExit:  # the loop was left early
            flow.end()
            raise
        flow.end()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build their own: threads cannot be copied."""
        return self.__dict__ | {"_idle": []}

    def close(self) -> None:
        """Gives back what makes batches, with its threads. The next epoch builds it anew."""
        self._idle.clear()

    def chunks(self, epoch: int) -> list[Rows]:
        """Returns the rows of each batch of an epoch."""
        return self._chunks(self.order(epoch))

    def is_batch(self, rows: Rows) -> bool:
        """Tells whether what is left of a batch can still be served."""
        return len(rows) > self._drop_single

    def take_maker(self) -> BatchMaker:
        """Returns a maker that nobody uses."""
        starts_threads("PictureLoader")
        return self._idle.pop() if self._idle else self._build()

    def return_maker(self, maker: BatchMaker) -> None:
        """Keeps a maker, which has nothing left in the making, for the next epoch."""
        self._idle.append(maker)

    def feed(self, maker: BatchMaker, rows: Rows, epoch: int) -> None:
        """Starts a batch."""
        parameters = draw(self.tfms, self._options.seed, epoch, self.split, rows)
        maker.feed(self._pictures(rows), parameters, self.files.pixels(rows))

    def _build(self) -> BatchMaker:
        from fastclf.data.decode.graphs import Source
        from fastclf.data.decode.renderer import batch_maker, gpu_batch_maker

        images = self.ds.images
        source = Source() if images is None else Source(files=False, top=255.0 if images.dtype == np.uint8 else 1.0)
        bs, device, threads = min(self.bs, self.n), self.device, self._options.num_threads
        if device.type == "cpu":
            return batch_maker(self.tfms, source, bs, threads)
        return gpu_batch_maker(self.tfms, source, bs, device, threads, self._try)

    def _try(self, maker: BatchMaker) -> None:
        """Makes the first batches, as an epoch would, for a measurement."""
        fed = 0
        for rows in self._chunks(np.arange(self.n))[:_TRIED]:
            if not self.files.bad(rows):
                self.feed(maker, rows, 0)
                fed += 1
            if fed > maker.ahead:
                maker.take()
                fed -= 1
        for _ in range(fed):
            maker.take()

    def _pictures(self, rows: Rows) -> Sequence[npt.NDArray[Any]] | npt.NDArray[Any]:
        if self.ds.images is not None:
            images = np.ascontiguousarray(self.ds.images[rows])  # a transposed array's rows come transposed
            return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
        return [np.frombuffer(path, np.uint8) for path in self.files.paths(rows)]


class _Flow:
    """The batches of one epoch. The first few that have not been given are in the making."""

    def __init__(self, loader: PictureLoader, epoch: int) -> None:
        self._loader, self._epoch = loader, epoch
        self._chunks = deque(loader.chunks(epoch))  # not yet given
        self._fed = 0  # how many of them are in the making
        self._maker: BatchMaker | None = None

    def __iter__(self) -> Iterator[tuple[Rows, torch.Tensor]]:
        while self._chunks:
            self._feed_ahead()
            x, error = self._take()
            if x is None:
                self._mend(error)
                continue
            rows = self._chunks.popleft()
            self._fed -= 1
            self._feed_ahead()  # so that the next ones are in the making while this one is used
            yield rows, x

    def end(self) -> None:
        """Finishes what is in the making, so that its maker can serve the next epoch."""
        while self._maker is not None and self._fed:
            self._take()
            self._fed -= 1
        if self._maker is not None:
            self._loader.return_maker(self._maker)
        self._loader.files.save()

    def _feed_ahead(self) -> None:
        """Feeds batches, but none with a picture that must not be decoded: its turn comes, and then it is mended."""
        self._maker = self._maker or self._loader.take_maker()
        while self._fed < min(len(self._chunks), max(1, self._maker.ahead)):
            rows = self._chunks[self._fed]
            if self._loader.files.bad(rows):
                return
            self._loader.feed(self._maker, rows, self._epoch)
            self._fed += 1

    def _take(self) -> tuple[torch.Tensor | None, RuntimeError | None]:
        try:
            return (self._maker.take() if self._maker and self._fed else None), None
        except RuntimeError as error:
            self._maker = None  # an error ends its life
            return None, error

    def _mend(self, error: RuntimeError | None) -> None:
        """Leaves the bad pictures out of the next batch; it and those after it are fed again."""
        rest = self._loader.files.without_bad(self._chunks.popleft(), error)
        self._fed = 0
        if self._loader.is_batch(rest):
            self._chunks.appendleft(rest)
