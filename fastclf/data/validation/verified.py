"""Files that may be decoded in this process: the child process, where a crash costs nothing, has decoded each once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastclf.data.dataset import Dataset
from fastclf.data.decode.process import Decoded, Task, decode
from fastclf.data.validation.scan_cache import ScanCache, Verdict, version_of
from fastclf.errors import BackendError, DataError
from fastclf.files import temporary_sibling

CHANGED = "; changed since the scan"
Rows = npt.NDArray[np.int64]


class VerifiedFiles:
    """The images in files below one folder.

    Attributes:
        cache: the verdicts on them.
        decoded: files decoded by the child process for this object.
    """

    def __init__(self, path: Path, num_threads: int) -> None:
        self.cache = ScanCache(path)
        self.decoded = 0
        self._path, self._num_threads = path, num_threads

    def bad(
        self,
        names: Sequence[str],
        max_pixels: int,
        *,
        anew: bool = False,
        done: Callable[[int], object] = bool,
    ) -> dict[str, str]:
        """Decodes what is new or has changed in the child process; returns which files are bad, and why.

        Args:
            names: of the files.
            max_pixels: more of them are bad.
            anew: decode all of them again, by Pillow, into copies.
            done: called with the number of files that have been dealt with.

        Raises:
            DataError: there is no room for a copy.
        """
        bad: dict[str, str] = {}
        new: dict[str, os.stat_result] = {}
        for name in names:
            known = self.cache.get(name)
            try:
                status = os.stat(f"{self._path}/{name}")  # noqa: PTH116  # some times faster
            except OSError as error:
                why = "not found" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
                bad[name] = _after_change(why, known)
                continue
            if not stat.S_ISREG(status.st_mode):
                bad[name] = "Is a directory" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            elif anew or known is None or not known.is_of(status) or known.is_open(max_pixels):
                new[name] = status
            elif why := known.reason(max_pixels):
                bad[name] = why
        done(len(names) - len(new))
        if new:
            self._decode(new, max_pixels, anew, done)
            verdicts = {name: self.cache.get(name) for name in new}
            bad |= {name: why for name, known in verdicts.items() if known and (why := known.reason(max_pixels))}
        return bad

    def file_of(self, name: str) -> bytes:
        """Returns what is decoded in place of a good file: itself, or its copy."""
        known = self.cache.get(name)
        if known is not None and known.decoded == 2:
            return os.fsencode(self.cache.copy_of(name, known[:4]))
        return os.fsencode(f"{self._path}/{name}")

    def pixels_of(self, name: str) -> int:
        """Returns how many pixels a verified file has."""
        known = self.cache.get(name)
        assert known is not None
        return known.height * known.width

    def _decode(
        self, new: dict[str, os.stat_result], max_pixels: int, pillow: bool, done: Callable[[int], object]
    ) -> None:
        names = list(new)
        self.cache.prepare()
        mark = temporary_sibling(self.cache.folder / "copy")
        temporary = [f"{mark.parent}/{i}.{mark.name}" for i in range(len(names))]
        left = set(range(len(names)))

        def note(i: int, decoded: Decoded) -> None:
            name = names[i]
            if decoded.copied:
                Path(temporary[i]).replace(self.cache.copy_of(name, version_of(new[name])))
            left.discard(i)
            self.decoded += decoded.copied is not None
            verdict = Verdict(
                *version_of(new[name]),
                *decoded[:4],
                0 if decoded.copied is None else 1 + decoded.copied,
                _after_change(decoded.why, self.cache.get(name), new[name]) if decoded.why else "",
            )
            if decoded.why:
                Path(temporary[i]).unlink(missing_ok=True)
            self.cache.put(name, verdict)
            done(1)

        files = [(f"{self._path}/{name}", copy) for name, copy in zip(names, temporary, strict=True)]
        try:
            decode(Task(files, max_pixels, self._num_threads, pillow), note)
        except OSError as error:
            raise DataError(str(error)) from error
        finally:
            for i in left:
                with suppress(OSError):
                    Path(temporary[i]).unlink()


def _after_change(why: str, known: Verdict | None, status: os.stat_result | None = None) -> str:
    changed = known is not None and not (status is not None and known.is_of(status))
    return why + CHANGED if changed else why


class DatasetFiles:
    """The images in files of one data set, by row."""

    def __init__(self, ds: Dataset, num_threads: int) -> None:
        self._ds, self._num_threads = ds, num_threads
        self._files: VerifiedFiles | None = None
        self._failed: set[int] = set()  # rows of batches that DALI has failed on

    def bad(self, rows: Rows, *, anew: bool = False) -> dict[int, str]:
        """Returns which rows are bad, and why; see `VerifiedFiles.bad`. Arrays are good."""
        if self._ds.images is not None:
            return {}
        self._files = self._files or VerifiedFiles(self._ds.path, self._num_threads)
        names = {row: self._ds.fnames[row] for row in rows.tolist()}
        found = self._files.bad([*names.values()], self._ds.bad.max_pixels, anew=anew)
        return {row: found[name] for row, name in names.items() if name in found}

    def without_bad(self, rows: Rows, error: Exception | None) -> Rows:
        """Notes in `ds.bad` which images of a batch are bad, and returns the other rows.

        Args:
            rows: of the batch.
            error: how DALI failed on it, though its images could be decoded before: a file has changed, a copy is
                lost, or another decoder, that of a GPU, refuses what this machine's processor does not. Then Pillow
                makes copies of all of them. None when an image is known to be bad.

        Raises:
            BadImageError: as `BadPictures.note` says; names them all.
            BackendError: when DALI fails on copies.
        """
        if error is not None and (self._ds.images is not None or self._failed.issuperset(rows.tolist())):
            raise BackendError(f"DALI failed on a batch whose pictures can each be decoded: {error}") from error
        if error is not None:
            self._failed.update(rows.tolist())
        found = self.bad(rows, anew=error is not None)
        self._ds.bad.note(found)
        return rows[~np.isin(rows, list(found))]

    def paths(self, rows: Rows) -> list[bytes]:
        """Returns what is decoded for rows of good images, after `bad`."""
        assert self._files is not None
        return [self._files.file_of(self._ds.fnames[row]) for row in rows.tolist()]

    def pixels(self, rows: Rows) -> list[int]:
        """Returns the pixels of the images of good rows, after `bad`."""
        if self._ds.images is not None:
            return [self._ds.images.shape[1] * self._ds.images.shape[2]] * len(rows)
        assert self._files is not None
        return [self._files.pixels_of(self._ds.fnames[row]) for row in rows.tolist()]

    def save(self) -> None:
        """Remembers what was decoded for later processes."""
        self._failed.clear()
        if self._files is not None:
            self._files.cache.save()
