"""Which pictures of a failed batch are to blame, and why; and which must not be decoded at all."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastclf.data.bad_pictures import MAX_PIXELS
from fastclf.data.samples import Dataset
from fastclf.data.seen import SeenFiles
from fastclf.errors import BackendError

if TYPE_CHECKING:
    from fastclf.data.pipeline import ScanPipeline

Rows = npt.NDArray[np.int64]

_MAGIC = (
    (b"GIF8", "unsupported format GIF"),
    (b"<svg", "unsupported format SVG"),
    (b"<?xml", "unsupported format SVG or XML"),
    (b"\xff\x0a", "unsupported format JPEG XL"),
    (b"\0\0\0\x0cJXL ", "unsupported format JPEG XL"),
    (b"<", "not a picture but a text or web page"),
    (b"\xff\xd8", "damaged or truncated JPEG"),
    (b"\x89PNG", "damaged or truncated PNG"),
    (b"RIFF", "damaged or truncated WebP"),
)
_ISO_MEDIA = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF"}
_CHANGED = "changed since the scan"


def file_of(ds: Dataset, row: int) -> bytes:
    """Returns the path of a picture as the file system has it."""
    return os.fsencode(f"{ds.path}/{ds.fnames[row]}")  # some times faster than joining paths


def without_bad(ds: Dataset, rows: Rows, error: Exception | None) -> Rows:
    """Notes in `ds.bad` which pictures of a failed batch are bad, and returns the other rows.

    Args:
        ds: the pictures.
        rows: of the batch.
        error: how it failed; None when a header was no good.

    Raises:
        BadImageError: as `BadPictures.note` says; names them all.
        BackendError: when every picture can be decoded by itself.
    """
    found = _culprits(ds, rows)
    if not found:
        raise BackendError(f"DALI failed on a batch whose pictures can each be decoded: {error}") from error
    ds.bad.note(found)
    return rows[~np.isin(rows, list(found))]


def _culprits(ds: Dataset, rows: Rows) -> dict[int, str]:
    """Decodes pictures one by one, since DALI's own message often names no file: row -> why one cannot be decoded."""
    if ds.images is not None:
        return {}
    checked = ((row, reason(ds.path / ds.fnames[row], ds.bad.max_pixels)) for row in rows.tolist())
    found = {row: why for row, why in checked if why is not None}
    if not found:
        return {}
    seen = SeenFiles(ds.path)
    return {row: f"{why}; {_CHANGED}" if _changed(ds, row, seen) else why for row, why in found.items()}


def _changed(ds: Dataset, row: int, seen: SeenFiles) -> bool:
    try:
        stat = (ds.path / ds.fnames[row]).stat()
    except FileNotFoundError:
        return True
    known = seen.named(ds.fnames[row])
    return known is not None and known[:2] != (stat.st_size, stat.st_mtime_ns)


def reason(file: Path, max_pixels: int = MAX_PIXELS) -> str | None:
    """Says why a file cannot be decoded; None when it can. Of a picture with more pixels only the header is read."""
    try:
        with file.open("rb") as handle:
            head = handle.read(16)
    except OSError as error:
        return "not found" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
    if not head:
        return "empty file"
    from fastclf.data.pipeline import ScanPipeline, decode

    try:
        header = ScanPipeline(1, 1, decode=False)
        header.feed([os.fsencode(file)])
        height, width, _ = header.take()[0].tolist()
        if height * width > max_pixels:
            return too_large(height, width, max_pixels)
        decode(os.fsencode(file))
    except RuntimeError:
        if head[4:8] == b"ftyp" and head[8:12] in _ISO_MEDIA:
            return f"unsupported format {_ISO_MEDIA[head[8:12]]}"
        return next((why for magic, why in _MAGIC if head.startswith(magic)), "damaged, or no known picture format")
    return None


def too_large(height: int, width: int, max_pixels: int) -> str:
    """Says why a picture is not decoded although its header is sound."""
    return f"too large: {width:,} x {height:,} pixels, max_pixels={max_pixels:,}"


class Headers:
    """Reads the headers of pictures before a decoder sees them, since it would allocate any size that they claim.

    A file that a scan has read is not read again unless it has changed.

    Args:
        ds: the pictures.
        bs: most rows at once.
    """

    def __init__(self, ds: Dataset, bs: int) -> None:
        self._ds, self._bs = ds, bs
        self._known: dict[int, tuple[int, int]] = {}  # row -> size and time of modification of a file that may pass
        self._scanned: SeenFiles | None = None
        self._pipe: ScanPipeline | None = None

    def pass_all(self, rows: Rows) -> bool:
        """Tells whether every picture may go to the decoder: False when one is too large, or its header is no good."""
        if self._ds.images is not None:
            return True
        try:
            stats = {row: os.stat(file_of(self._ds, row)) for row in rows.tolist()}  # noqa: PTH116
        except OSError:
            return False
        versions = {row: (stat.st_size, stat.st_mtime_ns) for row, stat in stats.items()}
        new = {row: stats[row] for row, version in versions.items() if self._known.get(row) != version}
        if new and max(self._pixels(new)) > self._ds.bad.max_pixels:
            return False
        self._known |= versions
        return True

    def close(self) -> None:
        """Gives back the threads that read headers."""
        self._pipe = None

    def _pixels(self, stats: dict[int, os.stat_result]) -> list[float]:
        """Pixels of each picture: infinitely many where the header of one cannot be read."""
        self._scanned = self._scanned or SeenFiles(self._ds.path)
        seen = {row: self._scanned.get(self._ds.fnames[row], stat) for row, stat in stats.items()}
        pixels: list[float] = [known.height * known.width for known in seen.values() if known is not None]
        unread = [file_of(self._ds, row) for row, known in seen.items() if known is None]
        return pixels + self._peek(unread) if unread else pixels

    def _peek(self, files: list[bytes]) -> list[float]:
        from fastclf.data.pipeline import ScanPipeline

        self._pipe = self._pipe or ScanPipeline(self._bs, 1, decode=False)
        try:
            self._pipe.feed(files)
            return [float(height * width) for height, width, _ in self._pipe.take().tolist()]
        except RuntimeError:
            self._pipe = None  # an error ends a graph's life
            return [math.inf]
