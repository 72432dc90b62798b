"""Decodes every picture once, before anything is learnt from it, and names all that are bad at once.

A truncated picture has a sound header, so only decoding it whole tells. Each block of files goes through the header
(too many pixels: nothing that large is ever allocated) and then through the decoder that the loaders use. What was
found good is remembered by name, size and time of modification.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastclf.data.bad_images import reason, too_large
from fastclf.data.bad_pictures import note_together
from fastclf.data.samples import Dataset
from fastclf.data.seen import Seen, SeenFiles
from fastclf.errors import BadImageError
from fastclf.progress import Progress

if TYPE_CHECKING:
    from fastclf.data.pipeline import ScanPipeline

_FILES_AT_ONCE = 64
_PIXELS_AT_ONCE = 1 << 25
_UNDER_WAY = 2  # groups of files: while one is read, or waits for its last picture, the other is decoded
_FORMATS = (
    (b"\xff\xd8", (".jpg", ".jpeg", ".jpe")),
    (b"\x89PNG", (".png",)),
    (b"RIFF", (".webp",)),
    (b"BM", (".bmp",)),
    (b"II", (".tif", ".tiff")),
    (b"MM", (".tif", ".tiff")),
    (b"P", (".pnm", ".ppm", ".pgm", ".pbm")),
    (b"\0\0\0\x0cjP", (".jp2",)),
    (b"\xff\x4f", (".jp2",)),
)


@dataclass
class ScanReport:
    """What a scan has found.

    Attributes:
        n: pictures looked at.
        decoded: pictures decoded in this scan; the others were known.
        bad: names of bad files and why, of this and earlier scans.
        odd: how many good pictures are unusual, by what is.
    """

    n: int = 0
    decoded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Describes it in one line."""
        odd = "".join(f", {count} {what}" for what, count in self.odd.most_common())
        return f"{self.n:,} pictures, {self.decoded:,} decoded now, {len(self.bad)} bad{odd}"


@dataclass(frozen=True)
class _File:
    """A file to look at: its data set, its row there, where it is, and what the file system tells."""

    ds: Dataset
    row: int
    name: str
    path: bytes
    stat: os.stat_result


_Group = list[tuple[_File, Seen]]  # with what has been seen of each so far
_Shapes = list[list[int] | None]


def scan_sets(sets: Sequence[Dataset], num_threads: int, *, decode: bool = True, raises: bool = True) -> ScanReport:
    """Looks at every picture in files that is not known to be good, and notes the bad ones in `ds.bad`.

    Args:
        sets: of one data object.
        num_threads: threads that decode.
        decode: False to read headers only, ahead of a pass that decodes every picture anyway and then calls
            `decoded`.
        raises: False to report bad pictures and go on whatever the policy.

    Raises:
        BadImageError: as `BadPictures.note` says; names every bad file.
    """
    sets = [ds for ds in sets if _is_to_scan(ds)]
    report = ScanReport()
    if not sets:
        return report
    scan = _Scan(sets, num_threads, decode, report)
    try:
        scan.run()
    finally:
        scan.seen.save()
    try:
        note_together([(ds.bad, scan.bad[id(ds)]) for ds in sets])
    except BadImageError as error:
        if raises:
            raise
        report.bad = error.reasons
        return report
    report.bad = {ds.fnames[row]: why for ds in sets for row, why in sorted(ds.bad.reasons.items())}
    return report


def _is_to_scan(ds: Dataset) -> bool:
    """Tells whether it is pictures in files; smaller copies of them were made from pictures that could be decoded."""
    return bool(ds.fnames) and ds.rows is None and ds.path == ds.bad.path


def decoded(ds: Dataset) -> None:
    """Remembers that a pass has decoded every picture of a data set, after `scan_sets` had read the headers."""
    if not _is_to_scan(ds):
        return
    seen = SeenFiles(ds.path)
    for row in ds.bad.good_rows():
        known = seen.named(ds.fnames[row])
        if known is not None and not known.decoded:
            seen.put(ds.fnames[row], known._replace(decoded=1))
    seen.save()


class _Scan:
    """One run over some data sets; while files are decoded, the headers of the next ones are read."""

    def __init__(self, sets: Sequence[Dataset], num_threads: int, decode: bool, report: ScanReport) -> None:
        self.sets, self.decode, self.report = sets, decode, report
        self.seen = SeenFiles(sets[0].path)
        self.bad: dict[int, dict[int, str]] = {id(ds): {} for ds in sets}
        self._headers = _Reader(num_threads, decode=False)
        self._pixels = itertools.cycle([_Reader(num_threads, decode=True) for _ in range(_UNDER_WAY)])

    def run(self) -> None:
        total = sum(len(ds) for ds in self.sets)
        under_way: deque[tuple[_Group, Future[_Shapes]]] = deque()
        with ThreadPoolExecutor(_UNDER_WAY) as pool, Progress(total, "scan", "pictures") as progress:
            for n, files in self._blocks():
                wanted = self._with_headers(files)
                for group in _groups(wanted) if self.decode else ():
                    if len(under_way) == _UNDER_WAY:  # the oldest is that of the next reader
                        self._note_decoded(*under_way.popleft())
                    under_way.append((group, pool.submit(next(self._pixels), [file.path for file, _ in group])))
                progress.advance(n)
            while under_way:
                self._note_decoded(*under_way.popleft())

    def _blocks(self) -> Iterator[tuple[int, list[_File]]]:
        """Yields the number of rows passed and the files among them that are not known."""
        for ds in self.sets:
            rows = ds.bad.good_rows()
            for start in range(0, len(rows), _FILES_AT_ONCE):
                block = rows[start : start + _FILES_AT_ONCE].tolist()
                yield len(block), [file for row in block if (file := self._unknown(ds, row)) is not None]

    def _unknown(self, ds: Dataset, row: int) -> _File | None:
        name = ds.fnames[row]
        path = os.fsencode(f"{ds.path}/{name}")
        self.report.n += 1
        try:
            stat = os.stat(path)  # noqa: PTH116
        except OSError:
            self._note(ds, row)
            return None
        seen = self.seen.get(name, stat)
        if seen is None or seen.decoded < self.decode or seen.height * seen.width > ds.bad.max_pixels:
            return _File(ds, row, name, path, stat)
        self._count_odd(seen)
        return None

    def _note(self, ds: Dataset, row: int, why: str | None = None) -> None:
        why = why or reason(ds.path / ds.fnames[row], ds.bad.max_pixels) or "changed while it was scanned"
        self.bad[id(ds)][row] = why

    def _with_headers(self, files: list[_File]) -> _Group:
        """Reads first bytes and headers; returns the files that may be decoded."""
        heads = [(file, head) for file in files if (head := self._head(file)) is not None]
        wanted = []
        shapes = self._headers([file.path for file, _ in heads])
        for (file, head), shape in zip(heads, shapes, strict=True):
            if shape is None:
                self._note(file.ds, file.row)
                continue
            height, width, channels = shape
            if height * width > file.ds.bad.max_pixels:
                self._note(file.ds, file.row, too_large(height, width, file.ds.bad.max_pixels))
                continue
            renamed = int(not file.name.lower().endswith(_extensions(head)))
            seen = Seen(file.stat.st_size, file.stat.st_mtime_ns, height, width, channels, renamed, 0)
            wanted.append((file, seen))
            if not self.decode:
                self._good(file, seen)
        return wanted

    def _head(self, file: _File) -> bytes | None:
        """Reads the first bytes of a file; None, and the file is noted, when there are none."""
        try:
            head = _first_bytes(file.path)
        except OSError:
            head = b""
        if not head:
            self._note(file.ds, file.row)
        return head or None

    def _note_decoded(self, group: _Group, shapes: Future[_Shapes]) -> None:
        for (file, seen), shape in zip(group, shapes.result(), strict=True):
            if shape is None:
                self._note(file.ds, file.row)
            else:
                self.report.decoded += 1
                self._good(file, seen._replace(decoded=1))

    def _good(self, file: _File, seen: Seen) -> None:
        self.seen.put(file.name, seen)
        self._count_odd(seen)

    def _count_odd(self, seen: Seen) -> None:
        if seen.renamed:
            self.report.odd["with the extension of another format"] += 1
        if seen.channels != 3:
            self.report.odd[{1: "grey", 2: "grey with transparency"}.get(seen.channels, "with 4 channels")] += 1


def _first_bytes(path: bytes) -> bytes:
    handle = os.open(path, os.O_RDONLY)  # far quicker than a file object, for many small files
    try:
        return os.read(handle, 16)
    finally:
        os.close(handle)


def _extensions(head: bytes) -> tuple[str, ...]:
    return next((extensions for magic, extensions in _FORMATS if head.startswith(magic)), ())


def _groups(wanted: _Group) -> Iterator[_Group]:
    """Splits a block so that what is decoded at once fits into memory."""
    group: _Group = []
    pixels = 0
    for file, seen in wanted:
        pixels += seen.height * seen.width
        if group and pixels > _PIXELS_AT_ONCE:
            yield group
            group, pixels = [], seen.height * seen.width
        group.append((file, seen))
    if group:
        yield group


class _Reader:
    """Reads files in batches and finds those that fail, since one file fails its whole batch."""

    def __init__(self, num_threads: int, *, decode: bool) -> None:
        self._num_threads, self._decode = num_threads, decode
        self._pipe: ScanPipeline | None = None

    def __call__(self, files: Sequence[bytes]) -> _Shapes:
        """Reads files: height, width and channels of each, None where it fails."""
        if not files:
            return []
        from fastclf.data.pipeline import ScanPipeline

        if self._pipe is None:
            self._pipe = ScanPipeline(_FILES_AT_ONCE, self._num_threads, decode=self._decode)
        try:
            self._pipe.feed(files)
            return [*self._pipe.take().tolist()]
        except RuntimeError:
            self._pipe = None
        if len(files) == 1:
            return [None]
        half = len(files) // 2
        return [*self(files[:half]), *self(files[half:])]
