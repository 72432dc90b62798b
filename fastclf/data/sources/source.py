"""What every source of images offers: names, versions and encoded bytes, by row."""

from __future__ import annotations

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.names import Names


class Version(NamedTuple):
    """What differs between two versions of an image, as `os.stat` has it.

    Attributes:
        size: of the encoded image, in bytes.
        mtime_ns: when its content was modified.
        ctime_ns: when anything about it was: nobody can set this time.
        inode: its number in the file system.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        """Return the version of a file; with numbers of 64 bits, also where an inode or a time needs the sign's bit."""
        numbers = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return cls(*((number + (1 << 63)) % (1 << 64) - (1 << 63) for number in numbers))


class Source(ABC):
    """Encoded images, by row. A new kind of source implements `stat` and `read` in a file of its own.

    Attributes:
        root: the folder or archive that the names are relative to, absolute. What scans find is kept by it.
        names: of the images, `[N]`: relative to root, with forward slashes, each for one image; empty for arrays.
        values: `[N, H, W, 3 or 1]` images or `[N, F]` rows where they are in memory, decoded; else None.
        has_paths: whether each image is a file of its own, which decoders read by themselves: see `path`.
    """

    has_paths: ClassVar[bool] = False
    values: npt.NDArray[Any] | None = None

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self.root = root.absolute()  # os.chdir may come later
        self.names = names if isinstance(names, Names) else Names(names)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def holds_rows(self) -> bool:
        """Whether these are rows of activations, not images."""
        return self.values is not None and self.values.ndim == 2

    def name(self, row: int) -> str:
        """Return the name of an image."""
        return self.names[row]

    @abstractmethod
    def stat(self, row: int) -> Version:
        """Return the version of an image: it differs whenever the bytes do.

        Raises:
            OSError: there is no such image; says why.
        """

    @abstractmethod
    def read(self, row: int) -> bytes:
        """Return the encoded image.

        Raises:
            OSError: it cannot be read.
        """

    def path(self, row: int) -> str:
        """Return the file that holds this image alone, where `has_paths`."""
        raise NotImplementedError

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return the source of some of the rows."""
        taken = copy.copy(self)
        taken.names = self.names.take(rows)
        return taken

    def digest(self, row: int) -> bytes:
        """Return the BLAKE2b-256 of an encoded image, 32 bytes: images of the same digest are the same.

        Raises:
            OSError: it cannot be read.
        """
        return hashlib.blake2b(self.read(row), digest_size=32).digest()
