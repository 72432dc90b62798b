"""Pillow in the place of DALI's decoder, for predictions on a machine without DALI."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.decode.decode_error import DecodeError
from fastclf.data.decode.parts import Images
from fastclf.data.decode.worker import BadFileError, decoded


class PillowDecoder:
    """Images, decoded on the CPU; `feed` and `take` as in `graphs.DecodePipeline`.

    Args:
        files: whether file names come in, else pixels.
        num_threads: threads that decode.
    """

    def __init__(self, files: bool, num_threads: int) -> None:
        self._files = files
        self._pool = ThreadPoolExecutor(num_threads, "pillow")
        self._running: deque[Sequence[Future[npt.NDArray[Any]]]] = deque()

    def feed(self, images: Images) -> None:
        """Start one batch: `[B]` file names as uint8 arrays, or pixels `[H, W, 3]`."""
        read = _read if self._files else np.ascontiguousarray
        self._running.append([self._pool.submit(read, image) for image in images])

    def take(self) -> list[npt.NDArray[Any]]:
        """Wait for the oldest batch: each image `[H, W, 3]`.

        Raises:
            DecodeError: an image of the batch cannot be read or decoded.
        """
        try:
            return [image.result() for image in self._running.popleft()]
        except (BadFileError, OSError) as error:
            raise DecodeError(str(error)) from error


def _read(name: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return decoded(os.fsencode(name.tobytes()))
