"""Whether cached feature maps come faster than images through the frozen layers, by a measurement."""

from __future__ import annotations

import time

import numpy as np
import torch

from fastclf.activations.precompute import InOrder
from fastclf.data.image_loader import ImageLoader
from fastclf.models.body import Body
from fastclf.models.precision import autocast
from fastclf.ops import gather_rows
from fastclf.ops.arguments import RowMatrix
from fastclf.philox import permutation

_BATCH = 8
_BATCHES = 4  # of images, the first of which is not timed: it builds what decodes


def rates(body: Body, loader: ImageLoader, rows: RowMatrix) -> tuple[float, float] | None:
    """Measure images per second: read as cached rows, and computed from images; None where images are too few.

    What is read are random rows of all, so that where they are more than memory holds, as many come from the disk as
    in an epoch. The frozen layers run in torch, as they do while others train.

    Args:
        body: the frozen layers.
        loader: of the images, as training decodes them.
        rows: ``[views * N, F]``, what the frozen layers give.
    """
    order = permutation(0, 0, loader.n)
    chosen = order[np.isin(order, loader.served)][: _BATCHES * _BATCH]
    if len(chosen) < _BATCHES * _BATCH:
        return None
    start = time.perf_counter()
    for first in range(0, len(chosen), _BATCH):
        gather_rows(rows, chosen[first : first + _BATCH]).to(loader.device)
    read = len(chosen) / (time.perf_counter() - start)
    images, times = InOrder(loader, _BATCH), []
    images.rows = chosen
    with torch.inference_mode():
        for x, _ in images.batches(0):
            with autocast(x.device):
                float(body(x)[0, 0])  # waits for it
            times.append(time.perf_counter())
    return read, (len(chosen) - _BATCH) / (times[-1] - times[0])
