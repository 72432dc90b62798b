"""Where each file of a tar archive begins: found once, by a pass over the headers, and kept in the user's cache.

Formats: POSIX ustar and pax, and GNU tar with its long names, as `tarfile` of the standard library reads them. How
names are divided is webdataset's convention: https://github.com/webdataset/webdataset, `base_plus_ext`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.listing import is_image
from fastclf.data.sources.names import Names, printable
from fastclf.errors import DataError
from fastclf.files import publish
from fastclf.paths import check_private, user_cache

_SCHEMA = 1
_SMALL = 4096  # bytes: a file that is no image, and no longer, is kept in the index, so that labels need no reading
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_TAIL = 1 << 20
_NO_END = "has no end mark: it may have been cut off after its last file"


class Stamp(NamedTuple):
    """What tells one version of an archive from another.

    Attributes:
        size: in bytes.
        mtime_ns: when its content was modified.
        ctime_ns: when anything about it was.
    """

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """Return that of a file."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class TarIndex:
    """The regular files of one archive, `[M]`, in its order.

    Attributes:
        stamp: of the archive that was read.
        names: of the files in it.
        offset: where the contents begin, `int64`.
        size: of the contents, in bytes, `int64`.
        sample: which sample a file belongs to, `int64`; -1 for a file that belongs to none.
        extension: which of ``extensions`` it has, `int64`.
        keys: the names of the samples.
        extensions: what follows the first dot of a file's name, in lower case.
        small: the contents of small files that are no images; empty for the others.
        has_small: which files these are.
        links: how many symbolic links were left out.
        remark: what is odd about the archive; or empty.
    """

    stamp: Stamp
    names: Names
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    sample: npt.NDArray[np.int64]
    extension: npt.NDArray[np.int64]
    keys: Names
    extensions: list[str]
    small: Names
    has_small: npt.NDArray[np.bool_]
    links: int = 0
    remark: str = ""

    @cached_property
    def layout(self) -> bytes:
        """A hash of all that the index says but the times: names, places and labels."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (*self._arrays().values(), np.frombuffer("\n".join(self.extensions).encode(), np.uint8)):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.digest()

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name in ("names", "keys", "small"):
            arrays[name], arrays[f"{name}_ends"] = getattr(self, name).packed()
        for name in ("offset", "size", "sample", "extension", "has_small"):
            arrays[name] = getattr(self, name)
        return arrays

    def write(self, file: Path) -> None:
        """Write it as an .npz file."""
        about = [_SCHEMA, *self.stamp, self.extensions, self.links, self.remark]
        with file.open("wb") as handle:
            np.savez(handle, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **self._arrays())  # type: ignore[arg-type]

    @classmethod
    def read(cls, file: Path) -> TarIndex:
        """Read what `write` has written.

        Raises:
            ValueError: it is damaged, or of another version of this library.
            OSError: it cannot be read.
        """
        with np.load(file, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        try:
            schema, size, mtime, ctime, extensions, links, remark = json.loads(arrays.pop("about").tobytes())
            if schema != _SCHEMA:
                raise ValueError(schema)
            packed: dict[str, Any] = {
                n: Names.of_packed(arrays.pop(n), arrays.pop(f"{n}_ends")) for n in ("names", "keys", "small")
            }
            index = cls(
                Stamp(size, mtime, ctime), **packed, **arrays, extensions=extensions, links=links, remark=remark
            )
        except (KeyError, TypeError) as error:
            raise ValueError(file) from error
        index.check()
        return index

    def check(self) -> None:
        """Raise ValueError where it cannot be the index of any archive: then it would point elsewhere."""
        n = len(self.names)
        lengths = {len(part) for part in (self.offset, self.size, self.sample, self.extension, self.small)}
        inside = (self.offset >= 0) & (self.size >= 0) & (self.offset + self.size <= self.stamp.size)
        numbered = (self.sample < len(self.keys)) & (self.extension < len(self.extensions))
        if lengths != {n} or not (inside & numbered).all():
            raise ValueError("damaged")


def tar_index(file: Path) -> TarIndex:
    """Return the index of an archive, from the user's cache where the archive is unchanged.

    Raises:
        DataError: it is compressed, no tar archive, damaged or cut off, or has names that cannot be used; says what
            helps.
        OSError: it cannot be read.
    """
    stamp = Stamp.of(file.stat())
    own = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()[:32]
    place = user_cache() / "shards" / f"{own}.npz"
    with suppress(OSError, ValueError, EOFError):
        check_private(place.parent)
        kept = TarIndex.read(place)
        if kept.stamp == stamp:
            return kept
    index = _read_headers(file, stamp)
    with suppress(OSError):  # the next start reads the headers again
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_private(place.parent)
        publish(place, index.write)
    return index


class _Builder:
    """Collects the files of an archive."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}  # by name, for hard links
        self._samples: dict[str, int] = {}
        self._extensions: dict[str, int] = {}
        self._known: set[tuple[int, int]] = set()
        self._names: list[str] = []
        self._numbers: list[tuple[int, int, int, int]] = []
        self._small: list[bytes | None] = []  # None for other files
        self.links = 0

    def add(self, member: tarfile.TarInfo, handle: int) -> None:
        """Take a member of the archive.

        Raises:
            DataError: see `tar_index`.
        """
        if member.issparse():
            raise DataError(
                f"{self._file}: {printable(member.name)} is stored sparse, so its bytes are not in one piece. Write "
                "the archive anew without --sparse."
            )
        if member.issym():
            self.links += 1
        if not (member.isreg() or member.islnk()):
            return
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        place = self._linked(member) if member.islnk() else (member.offset_data, member.size)
        self._places[member.name] = place
        self._add(name, place, handle)

    def _linked(self, member: tarfile.TarInfo) -> tuple[int, int]:
        """The place of the file that a hard link names: tar stores a second name of a file so."""
        if member.linkname not in self._places:
            raise DataError(
                f"{self._file}: {printable(member.name)} is a link to {printable(member.linkname)}, not before "
                "it in the archive. Write the archive anew with --hard-dereference."
            )
        return self._places[member.linkname]

    def _add(self, name: str, place: tuple[int, int], handle: int) -> None:
        if ".." in name.split("/") or "\0" in name:
            raise DataError(f"{self._file}: a name must not hold '..', got {printable(name)}. Write the archive anew.")
        match = _NAME.fullmatch(name)
        base = name.rpartition("/")[2]
        if match is None or (base.startswith("__") and base.endswith("__")):
            sample, extension = -1, ""
        else:
            sample, extension = self._samples.setdefault(match[1], len(self._samples)), match[2].lower()
        number = self._extensions.setdefault(extension, len(self._extensions))
        if sample >= 0 and (sample, number) in self._known:
            raise DataError(
                f"{self._file}: the sample {printable(match[1] if match else name)} has two files .{extension}, the "
                f"second {printable(name)}. A sample's name ends at its first dot: rename one."
            )
        self._known.add((sample, number))
        self._names.append(name)
        self._numbers.append((*place, sample, number))
        small = not is_image(name) and place[1] <= _SMALL
        self._small.append(os.pread(handle, place[1], place[0]) if small else None)

    def index(self, stamp: Stamp, remark: str) -> TarIndex:
        """Return what was collected."""
        numbers = np.array(self._numbers, np.int64).reshape(-1, 4)
        offset, size, sample, extension = np.ascontiguousarray(numbers.T)
        has_small = np.array([content is not None for content in self._small], bool)
        names, keys = Names(self._names), Names(self._samples)
        small = Names.of_bytes([content or b"" for content in self._small])
        extensions = [*self._extensions]
        return TarIndex(
            stamp, names, offset, size, sample, extension, keys, extensions, small, has_small, self.links, remark
        )


def _read_headers(file: Path, stamp: Stamp) -> TarIndex:
    handle = os.open(file, os.O_RDONLY)
    try:
        first = os.pread(handle, 8, 0)
        for magic, remedy in _COMPRESSED.items():
            if first.startswith(magic):
                raise DataError(
                    f"{file} is compressed, so no image in it can be read by itself. Images are compressed already: "
                    f"run {remedy} {file.name}, and pass the .tar file."
                )
        with tarfile.open(file, "r:") as archive:
            builder = _Builder(file)
            while (member := archive.next()) is not None:
                builder.add(member, handle)
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps all it has seen
            remark = _check_end(file, handle, archive.offset)
        return builder.index(stamp, remark)
    except tarfile.TarError as error:
        raise DataError(
            f"{file} is no tar archive, or is damaged or cut off: {error}. Fetch or write it anew."
        ) from error
    finally:
        os.close(handle)


def _check_end(file: Path, handle: int, at: int) -> str:
    """Check that an archive ends where its last file does, which `tarfile` takes for granted; return a remark.

    Raises:
        DataError: a header is damaged, or more files come after the end mark.
    """
    tail = os.pread(handle, _TAIL, at)
    if not tail:
        return _NO_END
    if any(tail[:512]) or len(tail) < 512:
        raise DataError(f"{file} is damaged or cut off at byte {at:,}. Fetch or write it anew.")
    while tail:
        if any(tail):
            raise DataError(
                f"{file} goes on after its end mark: archives were put together by cat. Join them with "
                "tar --concatenate, or pass them one by one."
            )
        at += len(tail)
        tail = os.pread(handle, _TAIL, at)
    return ""
