"""Batches in parts of bounded size, so that memory does not grow with the images of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy.typing as npt

from fastclf.data.decode.kept_images import KeptImage
from fastclf.data.transforms.sampling import Parameters

T = TypeVar("T")
Images: TypeAlias = Sequence[npt.NDArray[Any]] | Sequence[KeptImage] | npt.NDArray[Any]

_PART = 1 << 26  # pixels that are decoded at once, unless one image alone has more
_IN_FLIGHT = 2 * _PART  # pixels that are being decoded, or are decoded and not yet used


class Parts:
    """Splits batches, and starts their parts as memory comes free.

    Args:
        run: starts one part.
    """

    def __init__(self, run: Callable[[Images, Parameters], None]) -> None:
        self._run = run
        self._queue: deque[tuple[Images, Parameters, int]] = deque()  # parts that have not been started
        self._running: deque[int] = deque()  # pixels of each part
        self._batches: deque[list[Parameters]] = deque()  # of the parts of each batch

    def feed(self, images: Images, parameters: Parameters, pixels: Sequence[int]) -> None:
        """See `Renderer.feed`."""
        parts = []
        for rows in split(pixels):
            part = {name: values[rows] for name, values in parameters.items()}
            self._queue.append((images[rows], part, sum(pixels[rows])))
            parts.append(part)
        self._batches.append(parts)
        self._start()

    def take(self, wait: Callable[[], T]) -> Iterator[tuple[T, Parameters]]:
        """Yield what `wait` returns for each part of the oldest batch, and the part's parameters."""
        for parameters in self._batches.popleft():
            made = wait()
            self._running.popleft()
            self._start()
            yield made, parameters

    def _start(self) -> None:
        while self._queue and (not self._running or sum(self._running) + self._queue[0][2] <= _IN_FLIGHT):
            images, parameters, pixels = self._queue.popleft()
            self._run(images, parameters)
            self._running.append(pixels)


def split(pixels: Sequence[int]) -> Iterator[slice]:
    """Yield the rows of each part of a batch whose images have so many pixels."""
    start, total = 0, 0
    for i, n in enumerate(pixels):
        if i > start and total + n > _PART:
            yield slice(start, i)
            start, total = i, 0
        total += n
    yield slice(start, len(pixels))
