"""What a network computes with now, in a form that is quick to compare: its layers, their settings and their values."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

Layers = tuple[tuple[nn.Module, str], ...]

_COLUMNS = 509  # a prime: rows or filters that change places change columns too
_SMALL = 1 << 15  # bytes: below, CRC-32 alone is as fast


def layers_of(modules: Iterable[nn.Module]) -> Layers:
    """Return the layers themselves, not their ids, which may be used again, and what they print of their settings."""
    return tuple((module, module.extra_repr()) for module in modules)


def checksum(modules: Sequence[nn.Module]) -> int:
    """Return a checksum of every bit of all parameters and buffers.

    Values are read, not torch's version counters: those miss what is written through ``.data``, numpy or native code.
    Large tensors are first added up in 509 columns of 64-bit integers, at the speed of memory; CRC-32 does the rest.
    """
    crc = 0
    for module in modules:
        for values in (module._parameters, module._buffers):  # the methods take longer than the values of small layers
            for value in values.values():
                if value is not None:
                    crc = _add(value.detach().cpu(), crc)
    return crc


def _add(value: Tensor, crc: int) -> int:
    crc ^= hash((value.shape, value.stride())) & 0xFFFFFFFF
    dense = value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)
    flat = (value.as_strided((value.numel(),), (1,)) if dense else value.reshape(-1)).numpy()
    if flat.nbytes >= _SMALL:
        # By numpy, on one thread: torch would wake all of them for every tensor, also while others decode.
        head = flat.nbytes // (8 * _COLUMNS) * (8 * _COLUMNS) // flat.itemsize
        columns = flat[:head].view(np.int64).reshape(-1, _COLUMNS).sum(0)
        crc, flat = zlib.crc32(columns.data, crc), flat[head:]
    return zlib.crc32(flat.data, crc)
