"""What earlier scans have seen of each file: its shape and whether it was decoded, for as long as it is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fastclf.files import check_private, publish, user_cache

_SCHEMA = 1
_NAME = "scanned.json"


class Seen(NamedTuple):
    """One file as it was when it was read.

    Attributes:
        size: in bytes.
        mtime_ns: when it was modified.
        height: in pixels, orientation applied.
        width: in pixels.
        channels: that the file holds; 3 for a palette.
        renamed: 1 where the extension names another format.
        decoded: 1 once every pixel has been decoded, 0 while only the header has been read.
    """

    size: int
    mtime_ns: int
    height: int
    width: int
    channels: int
    renamed: int
    decoded: int


class SeenFiles:
    """The files below one folder that scans have found good, by name.

    Kept in the user's cache folder, never beside the pictures: who made those could say anything of their sizes, and a
    decoder allocates what it is told. A file that is damaged, was written with another decoder, or lies where others
    may write, is ignored.
    """

    def __init__(self, path: Path) -> None:
        own = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
        self._place = user_cache() / "scans" / own / _NAME
        from fastclf.data.pipeline import DECODER

        self._decoder = DECODER
        self._files = self._read()
        self._changed = False

    def get(self, name: str, stat: os.stat_result) -> Seen | None:
        """Returns what is known of a file; None when it is new or has changed."""
        seen = self._files.get(name)
        return seen if seen is not None and seen[:2] == (stat.st_size, stat.st_mtime_ns) else None

    def named(self, name: str) -> Seen | None:
        """Returns what was known of a file when it was last read, without looking at it."""
        return self._files.get(name)

    def put(self, name: str, seen: Seen) -> None:
        """Adds or replaces a file."""
        self._files[name] = seen
        self._changed = True

    def save(self) -> None:
        """Writes the files, whole or not at all; where that cannot be, the next scan reads them again."""
        if not self._changed:
            return
        content = json.dumps({"schema": _SCHEMA, "decoder": self._decoder, "files": self._files}, separators=(",", ":"))
        with suppress(OSError):
            self._place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_private(self._place.parent)
            publish(self._place, lambda file: file.write_text(content))
            self._changed = False

    def _read(self) -> dict[str, Seen]:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            check_private(self._place.parent)
            content = json.loads(self._place.read_bytes())
            if (content["schema"], content["decoder"]) == (_SCHEMA, self._decoder):
                return {name: _checked(values) for name, values in content["files"].items()}
        return {}


def _checked(values: object) -> Seen:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError(values)
    return Seen(*values)
