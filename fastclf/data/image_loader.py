"""Batches of images, made ahead of their use; one that fails is made again without its bad images."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fastclf.arrays import RowNumbers
from fastclf.calls import starts_threads
from fastclf.data.dataset import Dataset
from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.input_stall import InputStall, marks_on
from fastclf.data.loader import Batch, Loader, LoaderOptions
from fastclf.data.transforms.sampling import Split, sample
from fastclf.data.transforms.spec import TransformSpec
from fastclf.data.validation.dataset_images import DatasetImages

if TYPE_CHECKING:
    from fastclf.data.decode.renderer import Renderer


_TRIED = 12  # batches, of a measurement


class ImageLoader(Loader):
    """Decodes, augments and normalises images: x is `[B, 3, sz, sz] float32`.

    The batches of an epoch are the same whatever the number of threads. What makes them is built at the first batch and
    serves all epochs.

    Attributes:
        tfms: how an image becomes x.
        split: which set the rows are of: with seed and epoch it decides their augmentations.
    """

    def __init__(
        self,
        ds: Dataset,
        tfms: TransformSpec,
        options: LoaderOptions,
        split: Split,
        *,
        shuffle: bool = False,
        drop_single: bool = False,
    ) -> None:
        super().__init__(ds, options, shuffle=shuffle, drop_single=drop_single)
        self.tfms = tfms
        self.split = split
        self.images = DatasetImages(ds, options.num_threads)
        self._idle: list[Renderer] = []  # built ones that no running epoch uses

    def shares_renderers(self, other: ImageLoader) -> None:
        """Take what makes batches from another loader of such batches, and give it back there."""
        self._idle = other._idle

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ImageLoader:
        """Return a loader of the same images, augmented alike and normalised otherwise, in data set order."""
        return ImageLoader(self.ds, self.tfms.normalised(mean, std), self.options, self.split)

    def batches_of(self, epoch: int, chunks: Sequence[RowNumbers], *, least: int) -> Iterator[Batch]:
        """See `Loader.batches_of`.

        An image that turns out to be bad is noted in `ds.bad`. Where that says skip, its batch is served without it,
        and later epochs leave it out.

        Raises:
            BadImageError: images of a batch cannot be decoded and may not be skipped; names them all.
        """
        stall = self.input_stall = InputStall(self.options.num_threads, marks_on(self.device))
        stall.asked()
        flow = _Flow(self, epoch, chunks, least)
        try:
            for rows, x in flow:
                stall.given()
                yield x, self._targets(rows)
                stall.asked()
        except GeneratorExit:  # the loop was left early
            flow.end()
            raise
        flow.end()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles build their own: threads cannot be copied."""
        return self.__dict__ | {"_idle": []}

    def close(self) -> None:
        """Give back what makes batches, with its threads. The next epoch builds it anew."""
        self._idle.clear()

    def take_renderer(self) -> Renderer:
        """Return a renderer that nobody uses."""
        starts_threads("ImageLoader")
        return self._idle.pop() if self._idle else self._build()

    def return_renderer(self, renderer: Renderer) -> None:
        """Keep a renderer, which has nothing left in the making, for the next epoch."""
        self._idle.append(renderer)

    def feed(self, renderer: Renderer, rows: RowNumbers, epoch: int, *, keep: bool = True) -> None:
        """Start a batch; with ``keep=False`` every image is decoded, and none is kept."""
        parameters = sample(self.tfms, self.options.seed, epoch, self.split, rows)
        memory = self.options.memory if keep and renderer.keeps else None
        renderer.feed(self.images.inputs(rows, memory), parameters, self.images.pixels(rows))

    def _build(self) -> Renderer:
        from fastclf.data.decode.graphs import GraphInput
        from fastclf.data.decode.renderer import cpu_renderer, gpu_renderer

        images, by_path = self.ds.images, self.ds.source.has_paths
        source = GraphInput(by_path=by_path)
        if images is not None:
            source = GraphInput(files=False, white=255.0 if images.dtype == np.uint8 else 1.0)
        bs, device, threads = min(self.bs, self.n), self.device, self.options.num_threads
        if device.type == "cpu":
            return cpu_renderer(self.tfms, source, bs, threads)
        return gpu_renderer(self.tfms, source, bs, device, threads, self.n, self._try)

    def _try(self, renderer: Renderer) -> None:
        """Make the first batches, as an epoch would, for a measurement."""
        fed = 0
        for rows in self._chunks(np.arange(self.n))[:_TRIED]:
            if not self.images.bad(rows):
                self.feed(renderer, rows, 0, keep=False)
                fed += 1
            if fed > renderer.ahead:
                renderer.take()
                fed -= 1
        for _ in range(fed):
            renderer.take()


class _Flow:
    """The batches of one epoch. The first few that have not been given are in the making."""

    def __init__(self, loader: ImageLoader, epoch: int, chunks: Sequence[RowNumbers], least: int) -> None:
        self._loader, self._epoch, self._least = loader, epoch, least
        self._chunks = deque(chunks)  # not yet given
        self._fed = 0  # how many of them are in the making
        self._renderer: Renderer | None = None

    def __iter__(self) -> Iterator[tuple[RowNumbers, torch.Tensor]]:
        while self._chunks:
            if not len(self._chunks[0]):
                sz = self._loader.tfms.sz
                yield self._chunks.popleft(), torch.empty(0, 3, sz, sz, dtype=torch.float32, device=self._loader.device)
                continue
            self._feed_ahead()
            x, error = self._take()
            if x is None:
                self._drop_bad(error)
                continue
            rows = self._chunks.popleft()
            self._fed -= 1
            self._feed_ahead()  # so that the next ones are in the making while this one is used
            yield rows, x

    def end(self) -> None:
        """Finish what is in the making, so that its renderer can serve the next epoch."""
        while self._renderer is not None and self._fed:
            self._take()
            self._fed -= 1
        if self._renderer is not None:
            self._loader.return_renderer(self._renderer)
        self._loader.images.save()

    def _feed_ahead(self) -> None:
        """Feed batches, but none with an image that must not be decoded: it is dealt with when its turn comes."""
        self._renderer = self._renderer or self._loader.take_renderer()
        while self._fed < min(len(self._chunks), max(1, self._renderer.ahead)):
            rows = self._chunks[self._fed]
            if not len(rows) or self._loader.images.bad(rows):
                return
            self._loader.feed(self._renderer, rows, self._epoch)
            self._fed += 1

    def _take(self) -> tuple[torch.Tensor | None, DecodeError | None]:
        try:
            return (self._renderer.take() if self._renderer and self._fed else None), None
        except DecodeError as error:
            self._renderer = None  # an error ends its life
            return None, error

    def _drop_bad(self, error: DecodeError | None) -> None:
        """Leave the bad images out of the next batch; it and those after it are fed again."""
        rest = self._loader.images.without_bad(self._chunks.popleft(), error)
        self._fed = 0
        if len(rest) >= self._least:
            self._chunks.appendleft(rest)
