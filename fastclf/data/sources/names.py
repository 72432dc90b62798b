"""Names of images: many in little memory, some in a message, all of them in a table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from fastclf.files import publish, user_cache

_MOST_SHOWN = 28  # characters


class Names(Sequence[str]):
    """Names in one buffer: a million take a third of the memory that a list of them does.

    Indexing makes the text; a slice is a list.
    """

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self._buffer = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

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
    """Return a name in at most 28 characters, for tables and axes."""
    return name if len(name) <= _MOST_SHOWN else name[: _MOST_SHOWN - 1] + "…"


def some(names: Sequence[str]) -> str:
    """Quote the first five of some names."""
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


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
