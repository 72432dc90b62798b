"""The images of a data set as its loaders take them: which may be decoded, and what decoders are fed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf import ranks
from fastclf.arrays import RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.decode.kept_images import ImageMemory, KeptImage
from fastclf.data.sources.names import printable
from fastclf.data.validation.scan_cache import ScanCache
from fastclf.data.validation.verified import ChangedError, VerifiedImages
from fastclf.errors import BackendError


class DatasetImages:
    """The images of one data set.

    Args:
        ds: the data set.
        num_threads: threads that decode.
        cache: of verdicts; by default that of the source's root.
    """

    def __init__(self, ds: Dataset, num_threads: int, cache: ScanCache | None = None) -> None:
        self._ds = ds
        self._verified = VerifiedImages(ds.source, num_threads, cache)
        self._failed: set[int] = set()  # rows of batches that DALI has failed on

    def bad(self, rows: RowNumbers, *, anew: bool = False) -> dict[int, str]:
        """Return which rows are bad, and why; see `VerifiedImages.bad`. Arrays are good."""
        if self._ds.images is not None:
            return {}
        return self._verified.bad(rows.tolist(), self._ds.bad.max_pixels, anew=anew)

    def without_bad(self, rows: RowNumbers, error: Exception | None) -> RowNumbers:
        """Note in `ds.bad` which images of a batch are bad, and return the other rows.

        Args:
            rows: of the batch.
            error: how DALI failed on it, though its images could be decoded before: a file has changed, a copy is
                lost, or another decoder, that of a GPU, refuses what this machine's processor does not. Then Pillow
                makes copies of all of them. None when an image is known to be bad.

        Raises:
            BadImageError: as `BadImages.note` says; names them all.
            BackendError: DALI fails on copies.
        """
        if error is not None and (self._ds.images is not None or self._failed.issuperset(rows.tolist())):
            raise BackendError(f"DALI failed on a batch whose images can each be decoded: {error}") from error
        if error is not None:
            self._failed.update(rows.tolist())
        found = self.bad(rows, anew=error is not None)
        self._ds.bad.note(found)
        return rows[~np.isin(rows, list(found))]

    def inputs(
        self, rows: RowNumbers, memory: ImageMemory | None = None
    ) -> Sequence[npt.NDArray[np.generic]] | Sequence[KeptImage] | npt.NDArray[np.generic]:
        """Return what a renderer is fed for good rows, after `bad`.

        That is images `[H, W, 3]`, which may change in their array; else paths or bytes, or what `memory` has of them.
        """
        if self._ds.images is not None:
            images = np.ascontiguousarray(self._ds.images[rows])  # a transposed array's rows come transposed
            return np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
        if memory is not None:
            return [self._verified.kept(row, memory) for row in rows.tolist()]
        return [self._verified.encoded(row) for row in rows.tolist()]

    def pixels(self, rows: RowNumbers) -> list[int]:
        """Return the pixels of the images of good rows, after `bad`."""
        if self._ds.images is not None:
            return [self._ds.images.shape[1] * self._ds.images.shape[2]] * len(rows)
        verdicts = map(self._verified.verdict, rows.tolist())
        return [known.height * known.width for known in verdicts]

    def contents(self, rows: RowNumbers) -> tuple[list[bytes], RowNumbers]:
        """Return digests and versions `[B, 3]` of good rows, after `bad`.

        Inode numbers have no part in a version here: mounted anew, some file systems give others.

        Raises:
            ChangedError: an image cannot be read any more.
        """
        if ranks.size() == 1:
            return self._contents(rows)
        parts = ranks.gather(self._contents_or_error(rows[ranks.share(len(rows))]))
        for part in parts:
            if isinstance(part, ChangedError):  # in all processes, wherever it was found
                raise part
        return [digest for digests, _ in parts for digest in digests], np.concatenate([part for _, part in parts])

    def _contents_or_error(self, rows: RowNumbers) -> Any:
        try:
            return self._contents(rows)
        except ChangedError as error:
            return error

    def _contents(self, rows: RowNumbers) -> tuple[list[bytes], RowNumbers]:
        if self._ds.images is not None:
            return [self._ds.source.digest(row) for row in rows.tolist()], np.zeros((len(rows), 3), np.int64)
        known = filter(None, self._verified.verdicts(rows.tolist()))
        versions = np.fromiter((number for one in known for number in one[:3]), np.int64, 3 * len(rows)).reshape(-1, 3)
        digests = self._verified.digests(rows.tolist())
        self._verified.cache.save()
        return digests, versions

    def check_unchanged(self, rows: RowNumbers, versions: RowNumbers) -> None:
        """Check that images still are the versions that `contents` gave.

        Raises:
            ChangedError: one is not, or is gone; names it.
        """
        source = self._ds.source
        for row, version in zip(rows.tolist(), versions.tolist(), strict=True):
            unchanged = self._ds.images is not None
            with suppress(OSError):
                unchanged = unchanged or list(source.stat(row)[:3]) == version
            if not unchanged:
                raise ChangedError(printable(source.name(row)))

    def save(self) -> None:
        """Keep what was found for later processes."""
        self._failed.clear()
        self._verified.cache.save()
