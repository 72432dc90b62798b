"""What is known of each image from the one time that it was decoded, for as long as it is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fastclf.data.sources.source import Version
from fastclf.data.validation.verdicts import Verdict, VerdictDatabase, make_private
from fastclf.paths import temporary_folder, user_cache
from fastclf.report import log

_RECENT = 1 << 15  # verdicts in memory, some 20 MB
_UNWRITTEN = 1 << 13  # new ones after which they are written, so that a scan that is killed loses little


class ScanCache:
    """The verdicts on the images below one root, by name, and copies of what Pillow has decoded; see `scan_cache`.

    Kept in the user's cache folder, never beside the images: who made those could claim any sizes, and a decoder
    allocates what is claimed. A cache that is damaged, was written with another decoder, or lies where others
    may write, is ignored. It is an SQLite database: of a million images, those that were asked for last are in memory.

    Attributes:
        folder: where the copies are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = self._place = folder
        self._new: dict[str, Verdict] = {}  # not yet written
        self._recent: dict[str, Verdict | None] = {}  # what was asked for last
        self._database = VerdictDatabase(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles share what is kept, as connections cannot be copied."""
        return _cache_in, (self._place,)

    def get(self, name: str) -> Verdict | None:
        """Return the last verdict on an image, without looking at the image."""
        if (found := self._new.get(name)) is not None:
            return found
        if name not in self._recent:
            self.look_up([name])
        return self._recent.get(name)

    def look_up(self, names: Sequence[str]) -> None:
        """Read what is kept of some thousand images at once, six times as fast as one by one; `get` knows it then."""
        missing = [name for name in names if name not in self._recent and name not in self._new]
        self._make_room(len(missing))
        self._recent |= dict.fromkeys(missing)
        self._recent |= self._stored(missing)

    def _make_room(self, n: int) -> None:
        if len(self._recent) + n > _RECENT:
            self._recent.clear()

    def look_again(self) -> None:
        """Ask the file anew for what it did not have: another process may have written it."""
        self._recent = {name: verdict for name, verdict in self._recent.items() if verdict is not None}

    def put(self, name: str, verdict: Verdict) -> None:
        """Add or replace a verdict; the copy of an older version goes."""
        self._replace(name, verdict)
        if len(self._new) % _UNWRITTEN == 0:
            self.save()

    def _replace(self, name: str, verdict: Verdict) -> None:
        old = self.get(name)
        if old is not None and old.decoded == 2 and old.version != verdict.version:
            with suppress(OSError):
                self.copy_of(name, old.version).unlink()
        self._new[name] = verdict

    def copy_of(self, name: str, version: Version) -> Path:
        """Return where the copy of a version of an image is or goes."""
        key = hashlib.sha256(json.dumps([name, *version]).encode()).hexdigest()[:32]
        return self.folder / f"{key}.png"

    def prepare(self) -> None:
        """Make the folder for copies: in the user's cache folder, or a temporary one where that cannot be written."""
        try:
            make_private(self._place)
            with tempfile.TemporaryFile(dir=self._place):
                self.folder = self._place
        except OSError:
            self.folder = _temporary()

    def save(self) -> None:
        """Write the verdicts, whole or not at all; where that cannot be, the next scan decodes the images again."""
        if self._new and self._database.write(self._new):
            self._make_room(len(self._new))
            self._recent |= self._new
            self._new.clear()

    def _stored(self, names: Sequence[str]) -> dict[str, Verdict]:
        return self._database.read(names)


_in_use: WeakValueDictionary[Path, ScanCache] = WeakValueDictionary()


def scan_cache(root: Path) -> ScanCache:
    """Return the verdicts on the images below a root, shared by all who use them."""
    own = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    return _cache_in(user_cache() / "scans" / own)


def _cache_in(folder: Path) -> ScanCache:
    cache = _in_use.get(folder)
    if cache is None:
        cache = _in_use[folder] = ScanCache(folder)
    return cache


class PassingCache(ScanCache):
    """The verdicts on images that are served once and forgotten: nothing is kept, so that a stream may be endless."""

    def __init__(self) -> None:
        super().__init__(Path())

    def __reduce__(self) -> tuple[Any, ...]:
        """See `ScanCache`."""
        return PassingCache, ()

    def prepare(self) -> None:
        """See `ScanCache.prepare`; in a folder that goes with the process."""
        self.folder = _of_streams()

    def put(self, name: str, verdict: Verdict) -> None:
        """See `ScanCache.put`."""
        self._replace(name, verdict)

    def save(self) -> None:
        """Forget the verdicts, and remove the copies."""
        for name, verdict in self._new.items():
            if verdict.decoded == 2:
                with suppress(OSError):
                    self.copy_of(name, verdict.version).unlink()
        self._new.clear()
        self._recent.clear()

    def _stored(self, names: Sequence[str]) -> dict[str, Verdict]:
        return {}


@cache
def _of_streams() -> Path:
    return temporary_folder()


@cache
def _temporary() -> Path:
    folder = temporary_folder()
    log(
        f"{user_cache()} cannot be written: what is decoded once for all goes to {folder}, for this process alone. Set "
        "XDG_CACHE_HOME to a folder that can be written."
    )
    return folder
