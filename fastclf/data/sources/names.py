"""Names of images: many in little memory, some in a message, all of them in a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from fastclf.files import publish
from fastclf.paths import user_cache
from fastclf.report import listed

_MOST_SHOWN = 28  # characters
_TAKEN_AT_ONCE = 1 << 16  # names


def _ends_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each of some pieces ends, the first with a 0 before it."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


class Names(Sequence[str]):
    """Names in one buffer: a million take a third of the memory that a list of them does.

    Indexing makes the text; a slice is a list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._join([name.encode("utf-8", "surrogateescape") for name in names])

    def _join(self, encoded: Sequence[bytes]) -> None:
        self._buffer = b"".join(encoded)
        self._ends = _ends_of(np.fromiter(map(len, encoded), np.int64, len(encoded)))

    @classmethod
    def of_bytes(cls, encoded: Sequence[bytes]) -> Self:
        """Return names that are encoded already."""
        names = cls(())
        names._join(encoded)
        return names

    @classmethod
    def of_packed(cls, content: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> Self:
        """Return the names that `packed` has given.

        Raises:
            ValueError: the arrays cannot be of any names.
        """
        if ends.ndim != 1 or not len(ends) or ends[0] != 0 or ends[-1] != content.size or (np.diff(ends) < 0).any():
            raise ValueError("ends must grow from 0 to the size of the content")
        return cls._of(content.tobytes(), ends)

    @classmethod
    def joined(cls, parts: Sequence[Names]) -> Self:
        """Return the names of all parts, one after the other."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(part._ends) for part in parts)])
        return cls._of(b"".join(part._buffer for part in parts), _ends_of(lengths))

    @classmethod
    def _of(cls, content: bytes, ends: npt.NDArray[np.int64]) -> Self:
        names = cls(())
        names._buffer, names._ends = content, ends
        return names

    def packed(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Return their bytes, one after the other, and where each ends, the first with a 0 before it."""
        return np.frombuffer(self._buffer, np.uint8), self._ends

    def take(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return some of the names: ten times as fast as by their texts."""
        if len(rows) > _TAKEN_AT_ONCE:
            parts = np.split(rows, range(_TAKEN_AT_ONCE, len(rows), _TAKEN_AT_ONCE))
            return self.joined([self.take(part) for part in parts])
        starts, lengths = self._ends[:-1][rows], self._ends[1:][rows] - self._ends[:-1][rows]
        ends = _ends_of(lengths)
        places = np.arange(ends[-1]) + np.repeat(starts - ends[:-1], lengths)
        return self._of(np.frombuffer(self._buffer, np.uint8)[places].tobytes(), ends)

    def prefixed(self, prefix: str) -> Self:
        """Return them with a text before each."""
        start = prefix.encode("utf-8", "surrogateescape")
        ends = self._ends.tolist()
        pieces = [self._buffer[first:last] for first, last in pairwise(ends)]
        ends_of_all = _ends_of(np.diff(self._ends) + len(start))
        return self._of(b"".join(start + piece for piece in pieces), ends_of_all)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]  # raises IndexError, counts from the end
        return self._buffer[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"[{shown}, ... {len(self):,} names]" if len(self) > 3 else f"[{shown}]"


def printable(name: str) -> str:
    r"""Return a name as one line: control characters and bytes that are no text as escapes such as '\n'."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def shorten(name: str) -> str:
    """Return a name as one line of at most 28 characters, for tables and axes, see `printable`."""
    name = printable(name)
    return name if len(name) <= _MOST_SHOWN else name[: _MOST_SHOWN - 1] + "…"


def some(names: Sequence[str]) -> str:
    """Quote the first five of some names."""
    return listed(names, form=repr) or "none"


def write_list(path: Path, name: str, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Path | None:
    """Write the table path/tmp/<name>, or else <name> in the user's cache folder.

    Returns:
        The file; None where neither can be written.
    """
    lines = [header, *((_cell(first), _cell(second)) for first, second in rows)]

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(lines)

    for folder in (path / "tmp", user_cache()):
        try:
            publish(folder / name, write)
        except OSError:
            continue
        return folder / name
    return None


def _cell(text: str) -> str:
    """Keep spreadsheets from taking a name for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
