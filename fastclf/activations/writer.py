"""Fill an activation file so that nothing is lost, and nothing half-written is ever read, whenever it is stopped.

Rows go into ``KEY.tmp-<who>-<random>/``, a block at a time: first the rows, then the block's line in the manifest, with
its checksum. A fill that was interrupted leaves that folder. The next one, and one that runs at the same time, copies
the blocks whose checksums agree into a folder of its own and goes on after them. Nothing is ever taken from a process
that may be alive, and no lock is needed: a folder is removed when the process in its name has certainly ended.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf import files
from fastclf.activations.manifest import Block, block_line, header_line, read_manifest
from fastclf.activations.store import DTYPES, MANIFEST, ROWS, Accept, accept_all, header_of, row_bytes
from fastclf.errors import ActivationFileError

_SYNC_SECONDS = 30.0  # what a power cut may cost
_KEEP_SECONDS = 7 * 24 * 3600.0  # how long an interrupted fill waits to be gone on with
_CHUNK = 1 << 20


def as_block(rows: NDArray[Any], first: int, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
    """Round rows ``[B, F]``, which follow row ``first`` of ``shape``, to the file's dtype.

    Raises:
        ActivationFileError: a value is not finite, or too large for fp16; names the row.
    """
    if rows.ndim != 2 or rows.shape[1] != shape[1] or first + len(rows) > shape[0]:
        raise ValueError(f"write: rows must fit into {shape} after row {first}, got {rows.shape}")
    with np.errstate(over="ignore"):
        block = np.ascontiguousarray(rows, dtype=dtype)
    finite = np.isfinite(block).all(axis=1)
    if not finite.all():
        row = first + int(np.argmin(finite))
        hint = " Pass act_dtype='float32'." if np.isfinite(rows).all() else ""
        raise ActivationFileError(f"activations of row {row} are not finite in {dtype}.{hint}")
    return block


class ActivationWriter:
    """Fills one activation file, block by block in row order, then publishes it.

    Use as a context manager. Leaving it without `finish`, by an error or an interrupt, keeps the blocks that are
    finished for the next writer of the same file.

    Args:
        folder: where activation files are kept; made if it does not exist, for this user alone.
        key: the file's fingerprint, and its name.
        shape: rows and features, ``(N, F)``.
        dtype: ``float16`` or ``float32``.
        accept: called with row -> reason of the bad rows of a block that an earlier fill left; whether to take it.

    Attributes:
        rows_done: the rows that are there, those that earlier fills left among them.

    Raises:
        OSError: the folder cannot be written, or the disk cannot hold the file (its whole size is taken at once).
    """

    def __init__(self, folder: Path, key: str, shape: tuple[int, int], dtype: str, accept: Accept = accept_all) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"ActivationWriter: dtype must be one of {DTYPES}, got {dtype!r}")
        self.final, self.key, self.shape, self.dtype = folder / key, key, shape, dtype
        self.rows_done = 0
        self._width = row_bytes(shape, dtype)
        self._handles: list[int] = []
        files.on_disk(folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        self._place = files.temporary_sibling(self.final)
        try:
            self._start(accept)
        except OSError:
            self.drop()
            raise
        except BaseException:
            self._leave()
            raise

    def _start(self, accept: Accept) -> None:
        files.on_disk(self._place.mkdir, mode=0o700)
        self._manifest = self._create(MANIFEST)
        self._rows = self._create(ROWS)
        self._allocate()
        files.append(self._manifest, header_line(header_of(self.key, self.shape, self.dtype)))
        self._synced = time.monotonic()
        self._take_up(accept)

    def _create(self, name: str) -> int:
        self._handles.append(files.create(self._place / name, 0o600))
        return self._handles[-1]

    def _allocate(self) -> None:
        size = self.shape[0] * self._width
        if not size:
            return
        try:
            files.on_disk(os.posix_fallocate, self._rows, 0, size)
        except OSError as error:
            left = _left_behind(self.final.parent, "*")
            if error.errno != errno.ENOSPC or not left:
                raise
            for partial in left:  # what they hold costs less to compute again than a file that is not kept
                _remove(partial)
            files.on_disk(os.posix_fallocate, self._rows, 0, size)

    def write(self, rows: NDArray[Any], bad: dict[int, str] | None = None) -> None:
        """Append rows ``[B, F]``; values are rounded to the file's dtype.

        Args:
            rows: zeros where a row could not be computed.
            bad: row, counted from the file's first -> why it could not be computed.

        Raises:
            ActivationFileError: a value is not finite, or too large for fp16.
            OSError: the disk is full, or fails.
        """
        data = as_block(rows, self.rows_done, self.shape, self.dtype).tobytes()
        files.append(self._rows, data)
        self._append(Block(self.rows_done, len(rows), zlib.crc32(data), bad or {}))
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self._sync()

    def _append(self, block: Block) -> None:
        files.append(self._manifest, block_line(block))
        self.rows_done += block.rows

    def finish(self) -> None:
        """Publish the file; if another process has published the same one meanwhile, that one stays.

        Raises:
            OSError: the disk is full, or fails, or somebody has removed the folder; the rows can still be read back.
        """
        if self.rows_done != self.shape[0]:
            raise ValueError(f"finish: {self.shape[0]} rows were announced, {self.rows_done} written")
        self._sync()
        try:
            files.sync(self._place)
            files.on_disk(self._place.rename, self.final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            self.drop()
        files.sync(self.final.parent)
        self._close()
        for partial in _left_behind(self.final.parent, self.key):
            _remove(partial)

    def rows_so_far(self) -> NDArray[Any]:
        """Read back the rows that are done, ``[rows_done, F]``."""
        data, done = bytearray(self.rows_done * self._width), 0
        while done < len(data):
            read = os.preadv(self._rows, [memoryview(data)[done:]], done)
            if not read:
                raise OSError(errno.EIO, "activations cannot be read back from", str(self._place))
            done += read
        return np.frombuffer(data, self.dtype).reshape(self.rows_done, self.shape[1])

    def drop(self) -> None:
        """Give up the fill, with all that was done."""
        self._close()
        files.on_disk(shutil.rmtree, self._place, ignore_errors=True)

    def _sync(self) -> None:
        for handle in self._handles:
            files.sync(handle)
        self._synced = time.monotonic()

    def _close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            self._leave()

    def _leave(self) -> None:
        """Leave the finished blocks to the next fill; the folder's name then tells that this one has ended."""
        if not self.rows_done:
            self.drop()
            return
        with suppress(OSError):  # the rest of the disk is not held meanwhile
            files.on_disk(os.ftruncate, self._rows, self.rows_done * self._width)
        with suppress(OSError):
            files.on_disk(self._place.rename, files.given_up_sibling(self.final))
        self._close()

    # Blocks that other fills have left, or are writing

    def _take_up(self, accept: Accept) -> None:
        """Copy finished blocks of other fills of this file, then remove those that had ended before."""
        ended = _left_behind(self.final.parent, self.key)
        for partial in sorted(self.final.parent.glob(f"{self.key}.tmp-*")):
            if partial != self._place:
                with suppress(FileNotFoundError):
                    self._copy(partial, accept)
        if ended:
            self._sync()
        with suppress(OSError):  # from here on the blocks are in this folder
            for partial in ended:
                _remove(partial)
            _remove_old(self.final.parent)

    def _copy(self, partial: Path, accept: Accept) -> None:
        blocks = read_manifest(partial / MANIFEST, header_of(self.key, self.shape, self.dtype)) or []
        with (partial / ROWS).open("rb", buffering=0) as source:
            for block in blocks:
                if block.first == self.rows_done and not (
                    accept(block.bad) and self._copy_block(source.fileno(), block)
                ):
                    return

    def _copy_block(self, source: int, block: Block) -> bool:
        start, size, crc = block.first * self._width, block.rows * self._width, 0
        for at in range(start, start + size, _CHUNK):
            data = os.pread(source, min(_CHUNK, start + size - at), at)
            crc = zlib.crc32(data, crc)
            files.append(self._rows, data)
        if crc != block.crc32:
            os.lseek(self._rows, start, os.SEEK_SET)
            return False
        self._append(block)
        return True


def _left_behind(folder: Path, key: str) -> list[Path]:
    """Temporary folders of the file ``key`` ("*": of all) whose processes have ended."""
    return sorted(partial for partial in folder.glob(f"{key}.tmp-*") if files.is_left_behind(partial))


def _remove_old(folder: Path) -> None:
    """Remove what interrupted fills of any file have left, a week after."""
    for partial in _left_behind(folder, "*"):
        if time.time() - partial.stat().st_mtime > _KEEP_SECONDS:
            _remove(partial)


def _remove(partial: Path) -> None:
    """Rename a temporary folder in one step, as two processes may remove it at once; then delete it."""
    aside = files.given_up_sibling(partial.with_name(partial.name.partition(".tmp-")[0]))
    with suppress(OSError):
        files.on_disk(partial.rename, aside)
        files.on_disk(shutil.rmtree, aside, ignore_errors=True)
