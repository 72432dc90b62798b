"""How batches of pictures are made on this device: on the GPU by the DALI graph alone, on the processor natively.

On the processor DALI's resampling takes longer than its decoder. There the graph only decodes, and the native module
draws.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.decode.gpu_tuning import Tuning, fastest
from fastclf.data.decode.graphs import DECODER, DecodePipeline, PicturePipeline, Source
from fastclf.data.transforms.augmentations import Geometry, RandomLighting, RandomZoom
from fastclf.data.transforms.crop_geometry import Arrays, Seen, seen_of
from fastclf.data.transforms.sampling import Parameters
from fastclf.data.transforms.spec import Transforms
from fastclf.ops.crop_resize import Canvas, Windows, can_draw, draw_windows

T = TypeVar("T")
Pictures: TypeAlias = Sequence[npt.NDArray[Any]] | npt.NDArray[Any]

_AHEAD = 3  # batches in the making while one is used
_PART = 1 << 26  # pixels that are decoded at once, unless one image alone has more
_IN_FLIGHT = 2 * _PART  # pixels that are being decoded, or wait to be used


class BatchMaker(Protocol):
    """Pictures to normalised batches, in the order in which they are fed. After an error it is of no use."""

    @property
    def ahead(self) -> int:
        """How many batches should be in the making while one is used."""

    def feed(self, pictures: Pictures, parameters: Parameters, pixels: Sequence[int]) -> None:
        """Starts one batch.

        Args:
            pictures: `[B]` file names as uint8 arrays, or images.
            parameters: of `draws.draw`.
            pixels: of each image: a batch of many is decoded in parts.
        """

    def take(self) -> torch.Tensor:
        """Waits for the oldest batch: `[B, 3, sz, sz] float32`. Its memory is its own and is never written again.

        Raises:
            RuntimeError: when a picture of the batch cannot be read or decoded.
        """


def batch_maker(tfms: Transforms, source: Source, bs: int, num_threads: int) -> BatchMaker:
    """Returns what makes batches of at most bs pictures fastest on the processor."""
    known = all(isinstance(aug, Geometry | RandomZoom | RandomLighting) for aug in tfms.augs)
    if known and can_draw():
        return _Drawn(tfms, source, bs, num_threads)
    return _Graphed(tfms, source, bs, torch.device("cpu"), Tuning(num_threads))


def gpu_batch_maker(
    tfms: Transforms,
    source: Source,
    bs: int,
    device: torch.device,
    num_threads: int,
    work: Callable[[BatchMaker], object],
) -> BatchMaker:
    """Returns what makes batches of at most bs pictures fastest on a GPU; `work` makes some, for a measurement."""

    def build(tuning: Tuning) -> BatchMaker:
        return _Graphed(tfms, replace(source, hw_decoder_load=tuning.hw_decoder_load), bs, device, tuning)

    def work_done(maker: BatchMaker) -> None:
        work(maker)
        torch.cuda.synchronize(device)

    if not source.files:
        return build(Tuning(num_threads))
    situation = {"decoder": DECODER, "card": torch.cuda.get_device_name(device), "bs": bs, "sz": tfms.sz}
    return fastest(situation, num_threads, build, work_done)


class _Parts:
    """Batches in parts of bounded size, so that memory does not grow with the images of a batch.

    Args:
        run: starts one part.
    """

    def __init__(self, run: Callable[[Pictures, Parameters], None]) -> None:
        self._run = run
        self._waiting: deque[tuple[Pictures, Parameters, int]] = deque()
        self._running: deque[int] = deque()  # pixels of each part
        self._batches: deque[list[Parameters]] = deque()  # of the parts of each batch

    def feed(self, pictures: Pictures, parameters: Parameters, pixels: Sequence[int]) -> None:
        """See `BatchMaker.feed`."""
        parts = []
        for rows in _split(pixels):
            part = {name: values[rows] for name, values in parameters.items()}
            self._waiting.append((pictures[rows], part, sum(pixels[rows])))
            parts.append(part)
        self._batches.append(parts)
        self._start()

    def take(self, wait: Callable[[], T]) -> Iterator[tuple[T, Parameters]]:
        """Yields what `wait` returns for each part of the oldest batch, and the part's parameters."""
        for parameters in self._batches.popleft():
            made = wait()
            self._running.popleft()
            self._start()
            yield made, parameters

    def _start(self) -> None:
        while self._waiting and (not self._running or sum(self._running) + self._waiting[0][2] <= _IN_FLIGHT):
            pictures, parameters, pixels = self._waiting.popleft()
            self._run(pictures, parameters)
            self._running.append(pixels)


def _split(pixels: Sequence[int]) -> Iterator[slice]:
    start, total = 0, 0
    for i, n in enumerate(pixels):
        if i > start and total + n > _PART:
            yield slice(start, i)
            start, total = i, 0
        total += n
    yield slice(start, len(pixels))


class _Graphed:
    def __init__(self, tfms: Transforms, source: Source, bs: int, device: torch.device, tuning: Tuning) -> None:
        self._graph = PicturePipeline(tfms, source, bs, device, tuning.num_threads)
        self._parts = _Parts(self._graph.feed)
        self.feed = self._parts.feed
        self.ahead = tuning.ahead

    def take(self) -> torch.Tensor:
        """See `BatchMaker.take`."""
        parts = [x for x, _ in self._parts.take(self._graph.take)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Drawn:
    ahead = _AHEAD

    def __init__(self, tfms: Transforms, source: Source, bs: int, num_threads: int) -> None:
        self._decoder = decoder = DecodePipeline(source, bs, num_threads)
        self._parts = _Parts(lambda pictures, _: decoder.feed(pictures))
        self._tfms, self._threads = tfms, num_threads
        self._canvas = Canvas(tfms.sz, source.top, tfms.mean, tfms.std)
        self._sizes: deque[int] = deque()  # of the batches in the making
        self._memory = _Memory()

    def feed(self, pictures: Pictures, parameters: Parameters, pixels: Sequence[int]) -> None:
        """See `BatchMaker.feed`."""
        self._sizes.append(len(pixels))
        self._parts.feed(pictures, parameters, pixels)

    def take(self) -> torch.Tensor:
        """See `BatchMaker.take`."""
        out = self._memory.floats(self._sizes.popleft(), 3, self._canvas.sz, self._canvas.sz)
        start = 0
        for pictures, parameters in self._parts.take(self._decoder.take):
            end = start + len(pictures)
            shapes = np.array([picture.shape[:2] for picture in pictures], np.int64)
            windows = windows_of(self._tfms, shapes, parameters)
            draw_windows(pictures, windows, self._canvas, out[start:end], self._threads)
            start = end
        return out


def windows_of(tfms: Transforms, shapes: npt.NDArray[np.int64], parameters: Parameters) -> Windows:
    """What is drawn of pictures of `shapes [N, 2]` with the parameters of `draws.draw`."""
    seen = seen_of(tfms, shapes[:, 0], shapes[:, 1], Arrays(parameters))
    part = np.stack([*(axis.source_low for axis in seen), *(axis.source_high for axis in seen)], axis=1)
    size = np.stack([axis.high - axis.low for axis in seen], axis=1)
    light = [parameters[f"aug{i}"] for i, aug in enumerate(tfms.augs) if isinstance(aug, RandomLighting)]
    lights = np.stack(light, axis=1) if light else np.empty((len(shapes), 0, 2), np.float32)
    return Windows(part, size, _matrix(tfms, seen, parameters), lights)


def _matrix(tfms: Transforms, seen: Sequence[Seen], parameters: Parameters) -> npt.NDArray[np.float32] | None:
    """The map from window to resized part that keeps the window's middle in place; None where it does nothing."""
    if not (tfms.geometry or tfms.pad):
        return None
    start = np.stack([axis.start - axis.low for axis in reversed(seen)], axis=1).astype(np.float32)
    if not tfms.geometry:
        return np.concatenate([np.tile(np.eye(2, dtype=np.float32), (len(start), 1, 1)), start[:, :, None]], axis=2)
    shift = start + np.float32(tfms.sz / 2) - parameters["middle"]
    return np.concatenate([parameters["linear"], shift[:, :, None]], axis=2)


class _Memory:
    """Memory of batches, which is used again once nobody holds the batch: fresh pages take as long as drawing."""

    def __init__(self) -> None:
        self._free: deque[npt.NDArray[np.float32]] = deque(maxlen=_AHEAD + 1)

    def floats(self, *shape: int) -> torch.Tensor:
        """Returns a tensor whose memory nobody else holds; what is in it is not defined."""
        n = math.prod(shape)
        block = self._free.pop() if self._free else _aligned(n)
        if len(block) < n:
            block = _aligned(n)
        held = block[:n]  # lives as long as any tensor or array over it
        weakref.finalize(held, self._free.append, block).atexit = False
        return torch.from_numpy(held).view(shape)


def _aligned(n: int) -> npt.NDArray[np.float32]:
    """Makes an array that begins with a line of the cache, as PyTorch's memory does and NumPy's does not."""
    memory: npt.NDArray[np.float32] = torch.empty(n, dtype=torch.float32).numpy()
    return memory
