"""What is kept so that nobody makes it twice: what Pillow has decoded, parquet's row groups, indexes of archives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastclf.paths import check_private, user_cache


@dataclass(frozen=True)
class Copy:
    """A file that is made again where it is missing.

    Attributes:
        path: of the file.
        size: in bytes.
        last_used: when it was last read or written, in seconds since 1970. File systems note reading once a day, or
            not at all.
    """

    path: Path
    size: int
    last_used: float


def copies_in(tmp: Path | None) -> Iterator[Copy]:
    """Yield the copies in this user's cache, and in a data folder's ``tmp``, folder by folder.

    Raises:
        PermissionError: others may have written into the user's cache.
    """
    places = [] if tmp is None else [*(tmp / "row_groups").glob("*.arrow")]
    for folder in (*sorted((user_cache() / "scans").glob("*")), *user_cache().glob("shards")):
        check_private(folder)
        places += folder.glob("*.npz" if folder.name == "shards" else "*.png")
    for place in places:
        with suppress(FileNotFoundError):  # its process has replaced it
            status = place.lstat()
            yield Copy(place, status.st_size, max(status.st_atime, status.st_mtime))
