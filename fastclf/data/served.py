"""Blocks of images, in files or as pixels, to normalised batches: what was served is forgotten."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fastclf.arrays import RowNumbers
from fastclf.data.bad_images import MAX_PIXELS
from fastclf.data.dataset import Dataset
from fastclf.data.decode.kept_images import ImageMemory
from fastclf.data.decode.native_renderer import BatchMemory, crops_of
from fastclf.data.decode.process import Child, Decoded, Task
from fastclf.data.image_loader import ImageLoader
from fastclf.data.loader import LoaderOptions
from fastclf.data.stream import ImageBlock
from fastclf.data.transforms.sampling import Split, sample
from fastclf.data.transforms.spec import TransformSpec
from fastclf.data.validation.dataset_images import DatasetImages
from fastclf.data.validation.scan_cache import PassingCache
from fastclf.data.validation.verdicts import Verdict
from fastclf.data.validation.verified import reason
from fastclf.errors import BackendError
from fastclf.ops.crop_resize import CropFormat, crop_resize, has_crop_resize

Batches: TypeAlias = Generator[tuple[RowNumbers, torch.Tensor], None, None]
Image: TypeAlias = tuple[int, npt.NDArray[Any]]  # its row, and its pixels


class BlockServer(Protocol):
    """Serves blocks of images of one kind, one block after another."""

    def batches(self, block: ImageBlock, bad: dict[int, str]) -> Batches:
        """Yield the rows of the good images of a block, and the images: `[B] int64` and `[B, 3, sz, sz] float32`.

        Args:
            block: the images.
            bad: rows are added whose images cannot be decoded, and why.
        """


def block_server(tfms: TransformSpec, options: LoaderOptions) -> BlockServer:
    """Return what makes the batches that a learner on this device would make, to the last bit."""
    if (options.device.type == "cpu" and has_crop_resize(options.device)) or not _has_dali():
        return NativeServer(tfms, options)
    return GraphServer(tfms, options)


def _has_dali() -> bool:
    try:
        from fastclf.data.decode import graphs  # noqa: F401
    except BackendError:
        return False
    return True


class NativeServer:
    """A child process decodes files ahead; the native module makes the crops. DALI and what it opens stay there."""

    def __init__(self, tfms: TransformSpec, options: LoaderOptions) -> None:
        self._tfms, self._options = tfms, options
        self._child = Child()
        self._memory = BatchMemory()

    def batches(self, block: ImageBlock, bad: dict[int, str]) -> Batches:
        """See `BlockServer`."""
        pixels = {row: item.pixels for row, item in enumerate(block.items) if item.pixels is not None}
        white = 1.0 if block.items[0].kind == "float32" else 255.0
        form = CropFormat(self._tfms.sz, white, self._tfms.mean, self._tfms.std)
        groups = _in_memory([*pixels.items()]) if pixels else self._decoded(block, bad)
        bs = min(self._options.bs, len(block.items))
        rows: list[int] = []
        batch = None
        with closing(groups):
            for group in groups:
                while group:
                    if batch is None:
                        batch = self._memory.floats(bs, 3, form.sz, form.sz)
                    part, group = group[: len(batch) - len(rows)], group[len(batch) - len(rows) :]
                    self._crop(part, form, batch[len(rows) : len(rows) + len(part)])
                    rows += [row for row, _ in part]
                    if len(rows) == len(batch):
                        yield np.array(rows), batch
                        rows, batch = [], None
        if batch is not None:
            yield np.array(rows), batch[: len(rows)]

    def _decoded(self, block: ImageBlock, bad: dict[int, str]) -> Generator[list[Image], None, None]:
        """Yield the images of files, some at a time; they are valid until the next ones."""
        source = block.dataset().source
        found = []
        for row in range(len(block.items)):
            try:
                if row not in bad:
                    source.stat(row)
                    found.append(row)
            except OSError as error:
                bad[row] = reason(error)
        task = Task([(source.path(row), "") for row in found], MAX_PIXELS, self._options.num_threads)
        with closing(self._child.pixels(task)) as groups:
            for group in groups:
                good: list[Image] = []
                for i, decoded in group:
                    if decoded.pixels is None:
                        bad[found[i]] = _why(decoded)
                    else:
                        good.append((found[i], decoded.pixels))
                yield good

    def _crop(self, images: list[Image], form: CropFormat, out: torch.Tensor) -> None:
        rows, pixels = np.array([row for row, _ in images]), [x for _, x in images]
        shapes = np.array([x.shape[:2] for x in pixels], np.int64)
        parameters = sample(self._tfms, self._options.seed, 0, Split.VALID, rows)
        crop_resize(pixels, crops_of(self._tfms, shapes, parameters), form, out, self._options.num_threads)


def _in_memory(images: list[Image]) -> Generator[list[Image], None, None]:
    yield images


def _why(decoded: Decoded) -> str:
    return Verdict(0, 0, 0, 0, *decoded[:4], why=decoded.why).reason(MAX_PIXELS)


class GraphServer:
    """DALI decodes in this process, or on the GPU, what the child process has decoded before."""

    def __init__(self, tfms: TransformSpec, options: LoaderOptions) -> None:
        self._tfms, self._options = tfms, options
        self._loader: _StreamLoader | None = None

    def batches(self, block: ImageBlock, bad: dict[int, str]) -> Batches:
        """See `BlockServer`."""
        ds = block.dataset()
        ds.bad.reasons = bad
        self._loader = self._loader or _StreamLoader(ds, self._tfms, self._options)
        self._loader.serve(ds)
        for rows, images in self._loader.batches(0):
            yield rows.numpy(), images


class _StreamImages(DatasetImages):
    """The images of a block."""

    def inputs(self, rows: RowNumbers, memory: ImageMemory | None = None) -> Any:
        images = self._ds.images
        return super().inputs(rows, memory) if images is None else [images[row] for row in rows.tolist()]


class _StreamLoader(ImageLoader):
    """Serves one data set after another; what makes the batches is kept. Its targets are rows."""

    def __init__(self, ds: Dataset, tfms: TransformSpec, options: LoaderOptions) -> None:
        super().__init__(ds, tfms, options, Split.VALID)
        self._most = 0  # images of the batches that the idle renderers take

    def serve(self, ds: Dataset) -> None:
        """Serve a data set of the same kind from now on."""
        most = min(self.bs, len(ds))
        if most > self._most:
            self.close()
            self._most = most
        self.ds = ds
        self.images = _StreamImages(ds, self.options.num_threads, PassingCache())

    def _targets(self, rows: RowNumbers) -> torch.Tensor:
        return torch.from_numpy(rows)
