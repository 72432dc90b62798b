"""Images that may be decoded in this process: the child process, where a crash costs nothing, has decoded each once."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from fastclf import ranks
from fastclf.arrays import RowNumbers
from fastclf.data.decode.kept_images import ImageMemory, KeptImage
from fastclf.data.decode.process import Decoded, Task, decode
from fastclf.data.sources.listing import is_image
from fastclf.data.sources.names import printable
from fastclf.data.sources.source import Source, Version
from fastclf.data.sources.values import fingerprint
from fastclf.data.validation.scan_cache import ScanCache, scan_cache
from fastclf.data.validation.verdicts import Verdict
from fastclf.errors import DataError
from fastclf.files import temporary_sibling
from fastclf.report import track

AT_ONCE = 4096
"""Rows whose verdicts are read, and which are given to the child process, at once."""
CHANGED = "; changed since the scan"

_TICK_NS = 2 * 10**9  # of the coarsest clock of a file system
_WRITTEN_AT_ONCE = 256  # images, for the child process, where they are not in files
_UNREADABLE = np.zeros(1, np.uint8)  # no decoder takes it, and then the batch is dealt with like any that fails


class ChangedError(DataError):
    """An image is not what it was any more; names it."""


class VerifiedImages:
    """The images of a source.

    Attributes:
        cache: the verdicts on them.
        decoded: images decoded by the child process for this object.
    """

    def __init__(self, source: Source, num_threads: int, cache: ScanCache | None = None) -> None:
        self.cache = cache or scan_cache(source.root)
        self.decoded = 0
        self._source, self._num_threads = source, num_threads
        self._names: dict[int, str] = {}  # of the rows that were asked for last, which are packed in the source

    def bad(
        self, rows: Sequence[int], max_pixels: int, *, anew: bool = False, done: Callable[[int], object] = bool
    ) -> dict[int, str]:
        """Decode what is new or has changed in the child process; return which rows are bad, and why.

        The loaders ask this for every batch: a file that changes between two epochs must not be decoded here before the
        child process has decoded it. Looking at a file takes 2 us, decoding it some hundreds.

        Args:
            rows: of the source.
            max_pixels: an image with more is bad.
            anew: decode all of them again, by Pillow, into copies.
            done: called with the number of rows that have been dealt with.

        Raises:
            DataError: there is no room for a copy.
        """
        bad: dict[int, str] = {}
        for start in range(0, len(rows), AT_ONCE):
            bad |= self._bad(rows[start : start + AT_ONCE], max_pixels, anew, done)
        return bad

    def _bad(self, rows: Sequence[int], max_pixels: int, anew: bool, done: Callable[[int], object]) -> dict[int, str]:
        bad: dict[int, str] = {}
        new: dict[int, Version] = {}
        self._names = {row: self._source.name(row) for row in rows}
        self.cache.look_up([*self._names.values()])
        for row, name in self._names.items():
            known = self.cache.get(name)
            try:
                version = self._source.stat(row)
            except OSError as error:
                bad[row] = _after_change(reason(error), known)
                continue
            if anew or known is None or not self._holds(name, known, version) or known.is_open(max_pixels):
                new[row] = version
            elif why := known.reason(max_pixels):
                bad[row] = why
        done(len(rows) - len(new))
        if new:
            self._decode(new, max_pixels, anew, done)
            bad |= {row: why for row in new if (why := self.verdict(row).reason(max_pixels))}
        return bad

    def _holds(self, name: str, known: Verdict, version: Version) -> bool:
        """Return whether a verdict is of this version, and its copy there: `fastclf cache prune` removes old ones."""
        return known.is_of(version) and (known.decoded != 2 or self.cache.copy_of(name, version).exists())

    def exchange(self, rows: Sequence[int]) -> None:
        """Let all processes know of all images, of which each has looked at its share.

        Only verdicts that a process cannot read from its own cache are sent: none where they share one.
        """
        mine = rows[ranks.share(len(rows))]
        marks = np.concatenate(ranks.gather(np.array([*map(self._mark, self.verdicts(mine))], np.int64)))
        self.cache.look_again()  # by now the others have saved
        lacking = self._lacking(rows, marks)
        wanted = np.unique(np.concatenate(ranks.gather(lacking)))
        first = ranks.share(len(rows)).start
        wanted = wanted[(wanted >= first) & (wanted < first + len(mine))]
        needed = set(lacking.tolist())
        for pairs in ranks.gather([(i, self.verdict(rows[i])) for i in wanted.tolist()]):
            for i, verdict in pairs:
                if i in needed:
                    self.cache.put(self._source.name(rows[i]), verdict)

    def _lacking(self, rows: Sequence[int], marks: RowNumbers) -> RowNumbers:
        """Return the places of the rows on which others have verdicts that this process has not."""
        own = np.fromiter(map(self._mark, self.verdicts(rows)), np.int64, len(rows))
        return np.flatnonzero((own != marks) & (marks != 0))

    def _mark(self, known: Verdict | None) -> int:
        """Return a number that stands for a verdict; 0 for none."""
        return 0 if known is None else 1 + fingerprint(repr(known[:10]).encode()) // 2

    def verdict(self, row: int) -> Verdict:
        """Return what is known of an image, after `bad`."""
        known = self.cache.get(self._name(row))
        assert known is not None
        return known

    def _name(self, row: int) -> str:
        return self._names.get(row) or self._source.name(row)

    def verdicts(self, rows: Sequence[int]) -> Iterator[Verdict | None]:
        """Yield what is known of many images."""
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            self.look_up(part)
            yield from (self.cache.get(self._source.name(row)) for row in part)

    def look_up(self, rows: Sequence[int]) -> None:
        """Read what is known of some rows at once, at most `AT_ONCE`."""
        self.cache.look_up([self._source.name(row) for row in rows])

    def digests(self, rows: Sequence[int]) -> list[bytes]:
        """Return the digests of good images, after `bad`: see `Source.digest`. They are kept for unchanged images.

        Raises:
            ChangedError: an image cannot be read any more.
        """
        pairs = track(zip(rows, self.verdicts(rows), strict=True), len(rows), "hash", "images")
        return [bytes.fromhex(known.digest) if known and known.digest else self._digest(row) for row, known in pairs]

    def digest(self, row: int) -> bytes:
        """Return the digest of an image, whatever is known of it: the one that is kept, where it is unchanged.

        Raises:
            OSError: it cannot be read.
        """
        name, version = self._source.name(row), self._source.stat(row)
        known = self.cache.get(name)
        if known is None or not known.is_of(version):
            return self._source.digest(row)
        if known.digest:
            return bytes.fromhex(known.digest)
        return self._kept(row, known, self._source.digest(row))

    def _digest(self, row: int) -> bytes:
        """Read an image: in 20 us to 50 us, as the scan has just done so."""
        try:
            digest = self._source.digest(row)
        except OSError as error:
            raise ChangedError(f"{printable(self._source.name(row))}: {reason(error)}") from error
        return self._kept(row, self.verdict(row), digest)

    def _kept(self, row: int, known: Verdict, digest: bytes) -> bytes:
        if _is_settled(known):
            self.cache.put(self._source.name(row), known._replace(digest=digest.hex()))
        return digest

    def encoded(self, row: int) -> npt.NDArray[np.uint8]:
        """Return what decoders are fed for a good image: its path where the source has paths, else its bytes.

        Where Pillow has decoded it, its copy takes its place.
        """
        known, by_path = self.verdict(row), self._source.has_paths
        copy = self.cache.copy_of(self._source.name(row), known.version) if known.decoded == 2 else None
        if by_path:
            return np.frombuffer(os.fsencode(copy or self._source.path(row)), np.uint8)
        try:
            return np.frombuffer(copy.read_bytes() if copy else self._source.read(row), np.uint8)
        except (OSError, ValueError):  # ValueError: it is empty
            return _UNREADABLE

    def kept(self, row: int, memory: ImageMemory) -> KeptImage:
        """Return a good image as a memory has it; it is kept there when any later change would show in its version."""
        known = self.verdict(row)
        version = known.version if _is_settled(known) else None
        return memory.image((self._source.root, self._name(row)), version, partial(self.encoded, row))

    def _decode(self, new: dict[int, Version], max_pixels: int, pillow: bool, done: Callable[[int], object]) -> None:
        rows = [*new]
        if self._source.has_paths:
            paths = {row: self._source.path(row) for row in rows}
            self._decode_files(paths, new, max_pixels, pillow, done)
            return
        for start in range(0, len(rows), _WRITTEN_AT_ONCE):
            with tempfile.TemporaryDirectory() as folder:
                paths = {}
                for row in rows[start : start + _WRITTEN_AT_ONCE]:
                    try:
                        content = self._source.read(row)
                    except OSError as error:
                        self._note(row, new[row], Decoded(why=reason(error)))
                        done(1)
                        continue
                    paths[row] = f"{folder}/{row}{image_suffix(self._source.name(row))}"
                    Path(paths[row]).write_bytes(content)
                self._decode_files(paths, new, max_pixels, pillow, done)

    def _decode_files(
        self,
        paths: dict[int, str],
        new: dict[int, Version],
        max_pixels: int,
        pillow: bool,
        done: Callable[[int], object],
    ) -> None:
        rows = [*paths]
        self.cache.prepare()
        mark = temporary_sibling(self.cache.folder / "copy")
        temporary = [f"{mark.parent}/{i}.{mark.name}" for i in range(len(rows))]
        left = set(range(len(rows)))

        def note(i: int, decoded: Decoded) -> None:
            if decoded.copied:
                copy = self.cache.copy_of(self._source.name(rows[i]), new[rows[i]])
                Path(temporary[i]).replace(copy)
            left.discard(i)
            self.decoded += decoded.copied is not None
            if decoded.why:
                Path(temporary[i]).unlink(missing_ok=True)
            self._note(rows[i], new[rows[i]], decoded)
            done(1)

        files = list(zip(paths.values(), temporary, strict=True))
        try:
            decode(Task(files, max_pixels, self._num_threads, pillow), note)
        except OSError as error:
            raise DataError(str(error)) from error
        finally:
            for i in left:
                with suppress(OSError):
                    Path(temporary[i]).unlink()

    def _note(self, row: int, version: Version, decoded: Decoded) -> None:
        name = self._source.name(row)
        why = _after_change(decoded.why, self.cache.get(name), version) if decoded.why else ""
        kept = 0 if decoded.copied is None else 1 + decoded.copied
        self.cache.put(name, Verdict(*version, *decoded[:4], kept, why))


def _is_settled(verdict: Verdict) -> bool:
    """Return whether any later change of an image shows in its version: not one within the same tick of the clock."""
    return 0 < max(verdict.mtime_ns, verdict.ctime_ns) < time.time_ns() - _TICK_NS


def reason(error: OSError) -> str:
    """Return why a file cannot be read."""
    return "not found" if isinstance(error, FileNotFoundError) else error.strerror or str(error)


def _after_change(why: str, known: Verdict | None, version: Version | None = None) -> str:
    changed = known is not None and not (version is not None and known.is_of(version))
    return why + CHANGED if changed else why


def image_suffix(name: str) -> str:
    """Return the extension of a name that claims a format; empty for the others, such as 'images.parquet:12'."""
    return PurePosixPath(name).suffix if is_image(name) else ""
