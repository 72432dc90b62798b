"""Find the rows of a list of images in a store, and compute those that are missing: into a folder, else in memory."""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastclf import ranks
from fastclf.activations.in_turn import InTurn
from fastclf.activations.segment import (
    NO_KEY,
    Keys,
    Kind,
    MemorySegment,
    Segment,
    SegmentWriter,
    has_ended,
    remove,
    segments_in,
)
from fastclf.activations.store import Others, Store, older_stores, write_about
from fastclf.arrays import RowNumbers
from fastclf.errors import ActivationFileError
from fastclf.interrupts import Interrupts
from fastclf.ops.arguments import IndexedRows
from fastclf.paths import check_private, user_cache
from fastclf.report import describe_seconds, log, log_once, warn

Compute: TypeAlias = Callable[[RowNumbers], Generator[tuple[RowNumbers, NDArray[np.float32], int], None, None]]

_TRIES = 3  # others may remove or damage what has just been written
_LOGGED_AFTER = 3  # blocks: the first also builds the decoder's graph and the body's runtime
_LONG = 10.0  # seconds


@dataclass(frozen=True)
class Job:
    """Rows that are wanted.

    Attributes:
        kind: of the rows.
        about: the description that the kind's name is a hash of, kept beside the rows.
        keys: of the rows, in their order, ``[N]``; `NO_KEY` for those that are zeros.
        what: a name for messages, such as ``"train"``.
        unit: what the rows are of, such as ``"images"``.
    """

    kind: Kind
    about: Mapping[str, Any]
    keys: Keys
    what: str
    unit: str = "images"


def places_for(folder: Path) -> list[Path]:
    """Return where activations of data below ``folder`` are kept, best first."""
    return [folder / "activations", user_cache() / "activations"]


def stored(job: Job, folders: Sequence[Path], compute: Compute, in_flight: int = 0) -> IndexedRows:
    """Return the rows ``[N, F]`` of ``job``; what no folder has is computed, and kept in the first that takes it.

    Args:
        job: which rows.
        folders: where activations are kept, best first.
        compute: yields, for row numbers in their order, blocks of rows: their numbers ``[B]``, values ``[B, F]``, and
            how many of the numbers have been dealt with by then. Those that were passed over cannot be computed.
        in_flight: blocks that are rounded, checked and written by a thread of their own while ``compute`` goes on; 0
            for none, so that each is kept before the next is computed.

    Raises:
        ActivationFileError: a value is not finite, or neither disk nor memory has space for the rows.
    """
    store = Store([folder / job.kind.name for folder in folders if _is_usable(folder)], job.kind)
    if ranks.size() > 1:
        _compute_together(job, store, compute, in_flight)
    rows, tries = store.open(job.keys), 0
    while rows is None:
        if tries == _TRIES:
            raise ActivationFileError(f"activations of {job.what}: other processes keep removing {store.folders[0]}")
        missing, tries = store.missing(job.keys), tries + 1
        with _Sink(job, store, len(missing)) as sink:
            while len(missing):
                _compute(job, store, sink, missing, compute, in_flight)
                sink.check()
                before, missing = missing, store.missing(job.keys)
                if len(missing) == len(before):
                    break  # what was written cannot be found again
        rows = store.open(job.keys)
    return rows


def _compute_together(job: Job, store: Store, compute: Compute, in_flight: int) -> None:
    """Compute a part of what is missing, and wait until the other processes have computed the rest."""
    missing = ranks.from_first(lambda: store.missing(job.keys))
    mine = missing[ranks.share(len(missing))]
    part = replace(job, unit=f"of {len(missing):,} {job.unit} that {ranks.size()} processes share")
    with _Sink(replace(part, keys=job.keys[mine]), store, len(mine)) as sink:
        if len(mine):
            _compute(part, store, sink, mine, compute, in_flight)
    ranks.wait()


def _compute(job: Job, store: Store, sink: _Sink, missing: RowNumbers, compute: Compute, in_flight: int) -> None:
    """Compute missing rows up to where another process has begun; those in flight are kept whatever ends it."""

    def keep(keys: Keys, values: NDArray[np.float32], numbers: RowNumbers) -> None:
        sink.write(keys, as_block(values, job.kind.dtype, numbers))

    others = Others(store, sink.place)
    order = _from_the_middle(missing) if others.at_work() else missing
    pace, done = _Pace(job.what, len(order)), 0
    try:
        with closing(compute(order)) as source, Interrupts() as interrupts, InTurn(in_flight) as writing:
            while done < len(order) and not others.have(job.keys[order[done]]):
                with interrupts.released():
                    numbers, values, until = next(source, (order[:0], None, len(order)))
                if values is not None:
                    writing.call(keep, job.keys[numbers], values, numbers)
                    pace.advance(len(numbers))
                job.keys[np.setdiff1d(order[done:until], numbers)] = NO_KEY
                done = until
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"activations of {job.what} were stopped: {sink.left()}.") from None


def _from_the_middle(missing: RowNumbers) -> RowNumbers:
    """Begin amid the longest stretch that nobody has computed: others at work go on at their own places.

    Somewhere amid it, in case others begin at this moment, too.
    """
    longest = max(np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1), key=len)
    at = len(longest) // 4 + secrets.randbelow(len(longest) // 2 + 1)
    return np.roll(missing, -int(np.searchsorted(missing, longest[min(at, len(longest) - 1)])))


def as_block(values: NDArray[Any], dtype: str, numbers: RowNumbers) -> NDArray[Any]:
    """Round rows ``[B, F]`` to the store's dtype.

    Raises:
        ActivationFileError: a value is not finite, or too large for fp16; names the row's number.
    """
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(values, dtype=dtype)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        hint = " Pass act_dtype='float32'." if np.isfinite(values).all() else ""
        row = numbers[np.argmin(finite)]
        raise ActivationFileError(f"activations of row {row} are not finite in {dtype}.{hint}")
    return block


class _Sink:
    """Takes rows: a segment in the first folder that takes one; else, or when its disk is full later, memory."""

    def __init__(self, job: Job, store: Store, rows: int) -> None:
        self._job, self._store, self._rows = job, store, rows
        self._memory: MemorySegment | None = None
        with ExitStack() as stack:
            self._writer = self._first_that_takes(stack) if rows else None
            self._stack = stack.pop_all()

    @property
    def place(self) -> Path | None:
        """The folder of the segment."""
        return None if self._writer is None else self._writer.place

    def _first_that_takes(self, stack: ExitStack) -> SegmentWriter | None:
        job, size = self._job, self._rows * self._job.kind.row_bytes
        known = len(np.unique(job.keys[job.keys != NO_KEY])) - self._rows
        for folder in self._store.folders:
            try:
                writer = stack.enter_context(SegmentWriter(folder, job.kind))
                if _free_space(folder) < size:
                    raise OSError(errno.ENOSPC, "No space left on device")
                write_about(folder, job.about)
            except OSError as error:
                self._warn(folder, error)
                stack.close()
                continue
            _take_up(writer, folder, self._rows)
            there = f"; {known:,} are there" if known else ""
            log(
                f"{job.what}: computing activations of {self._rows:,} {job.unit}, {size / 1e6:.1f} MB, into "
                f"{folder.parent}{there}"
            )
            _say_older(folder.parent)
            return writer
        return None

    def write(self, keys: Keys, rows: NDArray[Any]) -> None:
        """Append a block."""
        self.check()
        if self._writer is not None:
            try:
                return self._writer.write(keys, rows)
            except OSError as error:
                self._move_to_memory(error)
        return self._in_memory().write(keys, rows)

    def check(self) -> None:
        """Go on in memory if somebody has removed the segment."""
        try:
            if self._writer is not None:
                self._writer.place.stat()
        except OSError as error:
            self._move_to_memory(error)

    def _move_to_memory(self, error: OSError) -> None:
        """Go on in memory: the blocks that are finished stay on the disk, unless somebody has removed them."""
        assert self._writer is not None
        writer, self._writer = self._writer, None
        self._warn(writer.place.parent, error)
        if not writer.place.is_dir():
            self._in_memory().write(*writer.so_far())

    def _in_memory(self) -> MemorySegment:
        if self._memory is None:
            size, free = self._rows * self._job.kind.row_bytes, _free_memory()
            if size > free:
                raise ActivationFileError(
                    f"activations of {self._job.what} need {size:,} bytes, no folder takes them (see the warnings), "
                    f"and {free:,} bytes of memory are free. Free disk space, or keep the data on a larger disk."
                )
            self._memory = MemorySegment(self._job.kind)
            self._store.added.append(self._memory)
        return self._memory

    def left(self) -> str:
        """Return what is left of the work when it is stopped here."""
        if self._writer is None:
            return "its rows are lost"
        place = self._writer.place.parent.parent
        return f"{self._writer.rows_done:,} of {self._rows:,} rows are kept in {place}; do it again to go on"

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None and self._writer is not None and self._writer.rows_done:
                try:
                    self._writer.finish()
                except OSError as error:
                    self._move_to_memory(error)

    def _warn(self, folder: Path, error: OSError) -> None:
        why = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            size, free = self._rows * self._job.kind.row_bytes, _free_space(folder)
            why = f"they need {size:,} bytes, and {free:,} are free"
        warn(f"activations are not kept in {folder.parent}: {why}")


def _take_up(writer: SegmentWriter, folder: Path, rows: int) -> None:
    """Copy the segments that are no larger than the new one will be into it: they stay few, and are copied seldom."""
    found, taken = [], []
    with suppress(OSError):
        for place in segments_in(folder):
            if place != writer.place and has_ended(place):
                segment = Segment(place, writer.kind)
                segment.refresh()
                found.append(segment)
        for segment in sorted(found, key=lambda segment: len(segment.keys)):
            if len(segment.keys) > rows:
                break
            segment.copy_to(writer)
            rows += len(segment.keys)
            taken.append(segment.place)
        if taken:
            writer.sync()
            remove(taken)


def _is_usable(folder: Path) -> bool:
    """Return whether only this user can have written what is in a folder; warn where not."""
    try:
        check_private(folder)
    except OSError as error:
        warn(f"activations are not kept in {folder}: {error.strerror or error}")
        return False
    return True


class _Pace:
    """Logs after a few blocks how long the pass will take, where that is long."""

    def __init__(self, what: str, left: int) -> None:
        self._what, self._left = what, left
        self._blocks = self._rows = 0
        self._start = 0.0

    def advance(self, rows: int) -> None:
        self._blocks += 1
        self._left -= rows
        if self._blocks == 1:
            self._start = time.monotonic()
            return
        self._rows += rows
        if self._blocks == _LOGGED_AFTER:
            rate = self._rows / (time.monotonic() - self._start)
            if self._left > _LONG * rate:
                log(f"{self._what}: about {describe_seconds(self._left / rate)} at {rate:.3g} images/s")


def _say_older(folder: Path) -> None:
    older = older_stores(folder)
    if older:
        log_once(
            f"{len(older)} folders in {folder} are of another version of fastclf; they are not used and may be deleted "
            "(fastclf cache prune)",
            key=("older activation files", folder),
        )


def _free_space(folder: Path) -> int:
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    return shutil.disk_usage(there).free


def _free_memory() -> int:
    """Return how many bytes of memory this machine can give without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return 1024 * int(found[1])
