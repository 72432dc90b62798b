"""Where a head's rows are on a GPU: in its own memory, or batch by batch from the mapped file."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from fastclf.ops.arguments import RowSource
from fastclf.ops.cuda.arguments import RowBatch

_AT_ONCE = 1 << 14  # rows that are gathered on their way to the device
_kept: dict[tuple[int, torch.device], Tensor] = {}
_keeping = Lock()


class Batches(NamedTuple):
    """Batches of one size whose rows are found in one place, `steps` of them one after another."""

    slot: int
    rows: int
    steps: int


class Resident:
    """Rows that lie on the device."""

    def __init__(self, rows: Tensor, step_counter: Tensor) -> None:
        self._rows, self._step_counter = rows, step_counter

    def serve(self, order: Tensor, batch_size: int) -> Iterator[Batches]:
        """Yield the whole batches, then the last, smaller one."""
        whole, left = divmod(len(order), batch_size)
        if whole:
            yield Batches(0, batch_size, whole)
        if left:
            yield Batches(0, left, 1)

    def batch(self, slot: int, order: Tensor, rows: int, stride: int) -> RowBatch:
        """Return how the kernels find the batch."""
        return RowBatch(self._rows, rows, self._step_counter, order, stride)


class Staged:
    """Rows that are copied to the device a batch ahead: gathered into pinned memory, sent on a stream of their own.

    Two slots: while the device computes on one, the other is filled.
    """

    def __init__(self, rows: RowSource, device: torch.device, max_batch: int, step_counter: Tensor) -> None:
        shape, on_gpu, dtype = (2, max_batch, rows.columns), device.type == "cuda", rows.matrix.dtype
        self._rows, self._step_counter = rows, step_counter
        self._host = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
        self._slots = torch.empty(shape, dtype=dtype, device=device)
        self._copies = _CopyStream(device) if on_gpu else None

    def serve(self, order: Tensor, batch_size: int) -> Iterator[Batches]:
        """Yield each batch by itself; the next one is filled before the caller is asked to wait."""
        parts = torch.split(order, batch_size) if len(order) else ()
        for i, part in enumerate(parts):
            if i == 0:
                self._fill(0, part)
            if self._copies is not None:
                self._copies.wait_filled(i % 2)
            yield Batches(i % 2, len(part), 1)
            if self._copies is not None:
                self._copies.mark_used(i % 2)
            if i + 1 < len(parts):
                self._fill((i + 1) % 2, parts[i + 1])

    def _fill(self, slot: int, index: Tensor) -> None:
        host, to = self._host[slot, : len(index)], self._slots[slot, : len(index)]
        if self._copies is not None:
            self._copies.wait_sent(slot)  # the copy before last has left this memory
        torch.index_select(self._rows.matrix, 0, self._rows.places(index), out=host)
        if self._copies is not None:
            self._copies.send(slot, host, to)
        else:
            to.copy_(host)

    def batch(self, slot: int, order: Tensor, rows: int, stride: int) -> RowBatch:
        """Return how the kernels find the batch."""
        return RowBatch(self._slots[slot], rows, self._step_counter)


class _CopyStream:
    """A stream for copies to the device, and who must wait for whom."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._filled: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._used: list[torch.cuda.Event] = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def send(self, slot: int, host: Tensor, to: Tensor) -> None:
        """Copy once the last batch in this slot has been used."""
        self._stream.wait_event(self._used[slot])
        with torch.cuda.stream(self._stream):
            to.copy_(host, non_blocking=True)
            self._filled[slot].record(self._stream)

    def wait_sent(self, slot: int) -> None:
        """Wait on the host for the last copy from this slot's pinned memory."""
        self._filled[slot].synchronize()

    def wait_filled(self, slot: int) -> None:
        """Make the computing stream wait for the copy."""
        torch.cuda.current_stream(self._device).wait_event(self._filled[slot])

    def mark_used(self, slot: int) -> None:
        """Note that the computing stream has been given all work on this slot."""
        self._used[slot].record(torch.cuda.current_stream(self._device))


def row_source(
    rows: RowSource, device: torch.device, max_batch: int, step_counter: Tensor, resident_bytes: int | None
) -> Resident | Staged:
    """Keep the rows on the device when they take at most `resident_bytes` (None: half of what is free there)."""
    found = rows_on(rows, device)
    if found is not None:
        return Resident(found, step_counter)
    if resident_bytes is None:
        resident_bytes = _free_bytes(device) // 2 if device.type == "cuda" else rows.nbytes
    if rows.nbytes <= resident_bytes:
        return Resident(_copied(rows, device), step_counter)
    return Staged(rows, device, max_batch, step_counter)


def rows_on(rows: RowSource, device: torch.device) -> Tensor | None:
    """Return all rows on the device, copied there once for as long as their owner lives.

    None where nobody owns them (`RowSource.owner`): they could change after they were copied. None, too, where they
    take more than a quarter of the device's free memory, which whatever comes later has to share.
    """
    if rows.owner is None:
        return None
    key = id(rows.owner), device
    with _keeping:
        if key not in _kept:
            if device.type == "cuda" and rows.nbytes > _free_bytes(device) // 4:
                return None
            _kept[key] = _copied(rows, device)
            weakref.finalize(rows.owner, _kept.pop, key, None)
        return _kept[key]


def _copied(rows: RowSource, device: torch.device) -> Tensor:
    if rows.index is None:
        return rows.matrix.to(device)
    found = torch.empty(len(rows), rows.columns, dtype=rows.matrix.dtype, device=device)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows.index[first : first + _AT_ONCE]
        found[first : first + len(part)] = rows.matrix[part]
    return found


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]
