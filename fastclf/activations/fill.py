"""Open an activation file, or fill one: in the first folder that takes it, else in memory."""

from __future__ import annotations

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastclf.activations.store import Accept, older_files, open_activations
from fastclf.activations.writer import ActivationWriter, as_block
from fastclf.errors import ActivationFileError
from fastclf.files import check_private, user_cache
from fastclf.interrupts import Interrupts
from fastclf.report import log, log_once, warn

Blocks: TypeAlias = Iterator[tuple[NDArray[np.float32], dict[int, str]]]

_TRIES = 3  # another process may remove or damage a file that has just been published
_LOGGED_AFTER = 3  # blocks: the first also builds the decoder's graph and the body's runtime
_LONG = 10.0  # seconds


class StaleError(ActivationFileError):
    """What the rows were computed from has changed meanwhile."""


@dataclass(frozen=True)
class Job:
    """One activation file.

    Attributes:
        key: its fingerprint.
        shape: rows and features, ``(N, F)``.
        dtype: ``float16`` or ``float32``.
        what: a name for messages, such as ``"train"``.
        rows: what its rows are, for messages, such as ``"700 images"``.
        accept: called with row -> reason of rows that an earlier fill could not compute; whether its rows may be used.
    """

    key: str
    shape: tuple[int, int]
    dtype: str
    what: str
    rows: str
    accept: Accept

    @property
    def size(self) -> int:
        """Bytes of the rows."""
        return self.shape[0] * self.shape[1] * np.dtype(self.dtype).itemsize


class MemoryRows:
    """Takes the blocks of a `Job` that no folder takes."""

    def __init__(self, job: Job, done: NDArray[Any] | None = None) -> None:
        free = _free_memory()
        if job.size > free:
            raise ActivationFileError(
                f"activations of {job.what} need {job.size:,} bytes, no folder takes them (see the warnings), and "
                f"{free:,} bytes of memory are free. Free disk space, or keep the data on a larger disk."
            )
        self._job = job
        self._rows: NDArray[Any] = np.zeros(job.shape, job.dtype)
        self.rows_done = 0
        if done is not None:
            self._rows[: len(done)] = done
            self.rows_done = len(done)

    def write(self, rows: NDArray[Any], bad: dict[int, str]) -> None:
        """Append rows ``[B, F]``, see `ActivationWriter.write`."""
        block = as_block(rows, self.rows_done, self._job.shape, self._job.dtype)
        self._rows[self.rows_done : self.rows_done + len(block)] = block
        self.rows_done += len(block)

    def result(self) -> NDArray[Any]:
        """Return all rows ``[N, F]``."""
        assert self.rows_done == self._job.shape[0]
        return self._rows


def places_for(folder: Path) -> list[Path]:
    """Return where activation files of data below ``folder`` are kept, best first."""
    return [folder / "activations", user_cache() / "activations"]


def stored(
    job: Job, folders: Sequence[Path], blocks: Callable[[int], Blocks], still: Callable[[], bool]
) -> NDArray[Any]:
    """Return the rows ``[N, F]`` of ``job``: from the first folder that has them, else computed and kept there.

    Args:
        job: which rows.
        folders: where activation files are kept, best first.
        blocks: computes the rows from a given one on: rows ``[B, F]``, and row -> reason of those that are bad.
        still: whether the rows are still those that ``job.key`` names, after they were computed.

    Raises:
        ActivationFileError: a value is not finite, or neither disk nor memory has space for the rows.
        StaleError: the images have changed while they were computed.
    """
    for _ in range(_TRIES):
        found = _found(job, folders)
        if found is not None:
            return found
        with ExitStack() as stack:
            sink = _filled(job, _sink(job, folders, stack), blocks)
            if not still():
                if isinstance(sink, ActivationWriter):
                    sink.drop()
                raise StaleError(f"{job.what}: images were changed while their activations were computed")
            kept_in_memory = _finished(job, sink)
        if kept_in_memory is not None:
            return kept_in_memory
    raise ActivationFileError(f"activations of {job.what}: other processes keep removing {folders[0] / job.key}")


def _finished(job: Job, sink: ActivationWriter | MemoryRows) -> NDArray[Any] | None:
    """Publish the file, or return the rows themselves where the disk does not take them."""
    if isinstance(sink, ActivationWriter):
        try:
            sink.finish()
        except OSError as error:
            return _in_memory(job, sink, error).result()
        return None
    return sink.result()


def _in_memory(job: Job, writer: ActivationWriter, error: OSError) -> MemoryRows:
    """Move the rows of a file that the disk does not take into memory."""
    _warn(job, writer.final.parent, error)
    memory = MemoryRows(job, writer.rows_so_far())
    writer.drop()
    return memory


def _found(job: Job, folders: Sequence[Path]) -> NDArray[Any] | None:
    for folder in folders:
        try:
            check_private(folder)
            rows = open_activations(folder, job.key, job.shape, job.dtype, job.accept)
        except OSError as error:
            _warn(job, folder, error)
            continue
        if rows is not None:
            return rows
    return None


def _sink(job: Job, folders: Sequence[Path], stack: ExitStack) -> ActivationWriter | MemoryRows:
    for folder in folders:
        try:
            check_private(folder)
            writer = stack.enter_context(ActivationWriter(folder, job.key, job.shape, job.dtype, job.accept))
        except OSError as error:
            _warn(job, folder, error)
            continue
        left = f", going on after {writer.rows_done:,} rows" if writer.rows_done else ""
        log(f"{job.what}: computing activations of {job.rows}, {job.size / 1e6:.1f} MB, into {folder}{left}")
        _say_older(folder)
        return writer
    return MemoryRows(job)


def _filled(
    job: Job, sink: ActivationWriter | MemoryRows, blocks: Callable[[int], Blocks]
) -> ActivationWriter | MemoryRows:
    """Return the sink that took the last block: a full disk does not stop the pass, which goes on in memory."""
    pace = _Pace(job.what, job.shape[0] - sink.rows_done)
    try:
        with Interrupts() as interrupts:
            source = blocks(sink.rows_done)
            while True:
                with interrupts.released():
                    block = next(source, None)
                if block is None:
                    break
                sink = _written(job, sink, *block)
                pace.advance(len(block[0]))
    except ActivationFileError:
        if isinstance(sink, ActivationWriter):
            sink.drop()  # it could never be finished
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(job, sink)) from None
    return sink


def _written(
    job: Job, sink: ActivationWriter | MemoryRows, rows: NDArray[np.float32], bad: dict[int, str]
) -> ActivationWriter | MemoryRows:
    try:
        sink.write(rows, bad)
    except OSError as error:
        assert isinstance(sink, ActivationWriter)
        sink = _in_memory(job, sink, error)
        sink.write(rows, bad)
    return sink


def _stopped(job: Job, sink: ActivationWriter | MemoryRows) -> str:
    """Return what Ctrl-C leaves of a pass, and how to go on."""
    kept = "are lost"
    if isinstance(sink, ActivationWriter):
        kept = f"are kept in {sink.final.parent}; do it again to go on"
    return f"activations of {job.what} were stopped: {sink.rows_done:,} of {job.shape[0]:,} rows {kept}."


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
                log(f"{self._what}: about {_duration(self._left / rate)} at {rate:.3g} images/s")


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _warn(job: Job, folder: Path, error: OSError) -> None:
    why = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        why = f"they need {job.size:,} bytes, and {shutil.disk_usage(folder).free:,} are free"
    warn(f"activations are not kept in {folder}: {why}")


def _say_older(folder: Path) -> None:
    older = older_files(folder)
    if older:
        log_once(
            f"{len(older)} files in {folder} are of another version of fastclf; they are not used and may be deleted",
            key=("older activation files", folder),
        )


def _free_memory() -> int:
    """Return how many bytes of memory this machine can give without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert found is not None
    return 1024 * int(found[1])
