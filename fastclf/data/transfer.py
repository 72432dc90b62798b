"""Copies from a GPU that wait for nothing else: into page-locked memory, in the stream's order.

A plain `.cpu()` waits until the GPU has finished all that was launched before, and while the processor waits it
launches nothing. `fastclf.ops.registry.to_device` copies the other way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_IN_FLIGHT = 2  # batches: one runs, the next is launched, and the GPU never waits for the processor


def in_flight(device: torch.device) -> int:
    """Return how many batches may be under way on a device while the next one is launched; none on the processor."""
    return _IN_FLIGHT if device.type == "cuda" else 0


class Returning:
    """Tensors on their way to main memory: from a GPU, while other work goes on there."""

    def __init__(self, *tensors: Tensor) -> None:
        self._host = [_on_its_way(tensor) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        devices = [tensor.device for tensor in tensors if tensor.is_cuda]
        if devices:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(devices[0]))

    def wait(self) -> Sequence[Tensor]:
        """Return them as they are in main memory, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def _on_its_way(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor.cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
