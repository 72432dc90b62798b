"""What is known of each image from the one time that it was decoded, for as long as it is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

from fastclf.data.sources.source import Version
from fastclf.files import check_private, publish, temporary_folder, user_cache
from fastclf.report import log

_SCHEMA = 3
_NAME = "scanned.json"


class Verdict(NamedTuple):
    """One image as it was when it was decoded.

    Attributes:
        size: see `Version`, as the three that follow.
        mtime_ns: see there.
        ctime_ns: see there.
        inode: see there.
        height: in pixels, orientation applied.
        width: in pixels.
        channels: that the encoded image holds; 3 for a palette.
        renamed: 1 where the extension names another format.
        decoded: 0 when only the header was read, since the image is too large; 1 when DALI has decoded it; 2 when
            Pillow has, so that the loaders decode a copy.
        why: why it cannot be decoded; empty for a good image.
        digest: of its contents, see `Source.digest`, in hex; empty until somebody asked.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    height: int = 0
    width: int = 0
    channels: int = 0
    renamed: int = 0
    decoded: int = 0
    why: str = ""
    digest: str = ""

    @property
    def version(self) -> Version:
        """Which version of the image was decoded."""
        return Version(*self[:4])

    def is_of(self, version: Version) -> bool:
        """Return whether an image is still the same version."""
        return self[:4] == version

    def is_open(self, max_pixels: int) -> bool:
        """Return whether the pixels were never decoded, under a lower bound, and may be now."""
        return not self.decoded and not self.why and self.height * self.width <= max_pixels

    def reason(self, max_pixels: int) -> str:
        """Return why the image must not be decoded; empty for a good one."""
        if self.height * self.width > max_pixels:
            return f"too large: {self.width:,} x {self.height:,} pixels, max_pixels={max_pixels:,}"
        return self.why


class ScanCache:
    """The verdicts on the images below one root, by name, and copies of what Pillow has decoded; see `scan_cache`.

    Kept in the user's cache folder, never beside the images: who made those could claim any sizes, and a decoder
    allocates what is claimed. A cache that is damaged, was written with another decoder, or lies where others
    may write, is ignored.

    Attributes:
        folder: where the copies are.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.folder = self._place.parent
        self._new: dict[str, Verdict] = {}

    @cached_property
    def _files(self) -> dict[str, Verdict]:
        return self._read()

    def get(self, name: str) -> Verdict | None:
        """Return the last verdict on an image, without looking at the image."""
        return self._files.get(name)

    def put(self, name: str, verdict: Verdict) -> None:
        """Add or replace a verdict; the copy of an older version goes."""
        old = self._files.get(name)
        if old is not None and old.decoded == 2 and old.version != verdict.version:
            with suppress(OSError):
                self.copy_of(name, old.version).unlink()
        self._files[name] = self._new[name] = verdict

    def copy_of(self, name: str, version: Version) -> Path:
        """Return where the copy of a version of an image is or goes."""
        key = hashlib.sha256(json.dumps([name, *version]).encode()).hexdigest()[:32]
        return self.folder / f"{key}.png"

    def prepare(self) -> None:
        """Make the folder for copies: in the user's cache folder, or a temporary one where that cannot be written."""
        try:
            _make_private(self._place.parent)
            with tempfile.TemporaryFile(dir=self._place.parent):
                self.folder = self._place.parent
        except OSError:
            self.folder = _temporary()

    def save(self) -> None:
        """Write the verdicts, whole or not at all; where that cannot be, the next scan decodes the images again."""
        if not self._new:
            return
        files = self._read() | self._new  # what another process has found meanwhile stays
        content = json.dumps({"schema": _SCHEMA, "decoder": _decoders(), "files": files}, separators=(",", ":"))
        with suppress(OSError):
            _make_private(self._place.parent)
            publish(self._place, lambda file: file.write_text(content))
            self._new.clear()

    def _read(self) -> dict[str, Verdict]:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            check_private(self._place.parent)
            content = json.loads(self._place.read_bytes())
            if (content["schema"], content["decoder"]) == (_SCHEMA, _decoders()):
                return {name: _checked(values) for name, values in content["files"].items()}
        return {}


_in_use: WeakValueDictionary[Path, ScanCache] = WeakValueDictionary()


def scan_cache(root: Path) -> ScanCache:
    """Return the verdicts on the images below a root: read from their file once, and shared by all who use them."""
    own = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    place = user_cache() / "scans" / own / _NAME
    cache = _in_use.get(place)
    if cache is None:
        cache = _in_use[place] = ScanCache(place)
    return cache


class PassingCache(ScanCache):
    """The verdicts on images that are served once and forgotten: nothing is kept, so that a stream may be endless."""

    def __init__(self) -> None:
        super().__init__(Path())

    def prepare(self) -> None:
        """See `ScanCache.prepare`; in a folder that goes with the process."""
        self.folder = _of_streams()

    def save(self) -> None:
        """Forget the verdicts, and remove the copies."""
        for name, verdict in self._files.items():
            if verdict.decoded == 2:
                with suppress(OSError):
                    self.copy_of(name, verdict.version).unlink()
        self._files.clear()
        self._new.clear()

    def _read(self) -> dict[str, Verdict]:
        return {}


@cache
def _of_streams() -> Path:
    return temporary_folder()


def _checked(values: object) -> Verdict:
    if not isinstance(values, list) or [type(value) for value in values] != [int] * 9 + [str] * 2:
        raise TypeError(values)
    return Verdict(*values)


@cache
def _decoders() -> str:
    """What decodes: a verdict with another version is none."""
    from fastclf.data.decode.graphs import DECODER

    heif = None
    with suppress(PackageNotFoundError):
        heif = version("pillow-heif")
    return f"{DECODER}, pillow {version('pillow')}, pillow-heif {heif}"


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)


@cache
def _temporary() -> Path:
    folder = temporary_folder()
    log(
        f"{user_cache()} cannot be written: what is decoded once for all goes to {folder}, for this process alone. Set "
        "XDG_CACHE_HOME to a folder that can be written."
    )
    return folder
