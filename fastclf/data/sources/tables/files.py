"""Which file of the folder a name in a table means."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from fastclf.data.sources.listing import EXTENSIONS, UNSUPPORTED, Found
from fastclf.data.sources.names import printable
from fastclf.data.sources.tables.reading import Cell
from fastclf.errors import LabelError
from fastclf.report import remedy

_IMAGE = re.compile(f".+({'|'.join(map(re.escape, EXTENSIONS + UNSUPPORTED))})", re.IGNORECASE | re.DOTALL)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)

EXACT = ""
BLANKS = "have blanks or backslashes that the files do not"
ROOTED = "are paths from the root of the data"
CASE = "differ from the files in upper and lower case only"
BELOW = "lie in folders below, which the table does not name"


class Files:
    """Finds files by the names that a table has for them. Only a listed file is ever found."""

    def __init__(self, found: Found, suffix: str) -> None:
        self.found, self.suffix = found, suffix
        self.folder = PurePosixPath(found.folder)
        self.prefix = "" if found.folder == "." else f"{found.folder}/"
        self.there = {name: name for names in (found.images, found.others) for name in names}

    def find(self, cell: Cell) -> tuple[str, str] | None:
        """Find the one file that a name can mean.

        Returns:
            The file, relative to the data's path, and in what the name differs: `EXACT`, `BLANKS`, ...; None when no
            file, or several, would do.
        """
        if not isinstance(cell, str) or not cell:
            return None
        plain = self.there.get(f"{self.prefix}{cell}{self.suffix}")  # most names, without making a path of them
        if plain is not None:
            return plain, EXACT
        exact = self.in_folder(cell)
        if exact in self.there:
            return exact, EXACT
        names = list(self._readings(cell))
        for name, how in names:
            if name in self.there:
                return name, how
        for name in (exact, *(name for name, _ in names)):
            match = self._by_case.get(name.casefold())
            if match:
                return match, CASE
        match = self._by_base.get(f"{cell}{self.suffix}")
        return (match, BELOW) if match else None

    def has_stem(self, cell: Cell) -> bool:
        """Return whether files are named like this, whatever their suffix."""
        return isinstance(cell, str) and self.in_folder(cell).removesuffix(self.suffix) in self._stems

    def in_folder(self, text: str) -> str:
        """Return the name of a file that a cell names as it stands, relative to the data's path."""
        return (self.folder / f"{text}{self.suffix}").as_posix()

    def _readings(self, text: str) -> Iterator[tuple[str, str]]:
        plain = text.strip().replace("\\", "/")
        if plain != text:
            yield self.in_folder(plain), BLANKS
        path = PurePosixPath(f"{plain}{self.suffix}")
        if not path.is_absolute():
            yield path.as_posix(), ROOTED
        for root in self._roots:
            if path.is_relative_to(root):
                yield path.relative_to(root).as_posix(), ROOTED

    @cached_property
    def _roots(self) -> set[Path]:
        return {self.found.path.absolute(), self.found.path.resolve()}

    @cached_property
    def _by_case(self) -> dict[str, str]:
        """Lower case -> the file of that name; '' where there are several."""
        return _only_one((name.casefold(), name) for name in self.there)

    @cached_property
    def _by_base(self) -> dict[str, str]:
        return _only_one((name.rpartition("/")[2], name) for name in self.there)

    @cached_property
    def _endings(self) -> list[str]:
        """The suffixes of the files, most frequent first."""
        counts = Counter(ending for name in self.there if (ending := PurePosixPath(name).suffix))
        return [ending for ending, _ in counts.most_common(20)]

    @cached_property
    def _stems(self) -> set[str]:
        return {name.rsplit(".", 1)[0] for name in self.there}

    def check_name(self, cell: Cell, table: str, where: str) -> None:
        """Raise LabelError for what can be no name of a file inside the folder."""
        text = cell if isinstance(cell, str) else ""
        self.check_text(cell, table, where)
        plain = PurePosixPath(text.replace("\\", "/"))
        outside = plain.is_absolute() and not any(plain.is_relative_to(root) for root in self._roots)
        drive = re.match("[A-Za-z]:", text)
        if not text.strip() or "\0" in text or outside or drive or ".." in plain.parts:
            base = plain.name
            there = f" {base!r} is in the folder: keep the last part of the names." if base in self._by_base else ""
            raise LabelError(
                f"{table}: {where} must name a file inside the folder {self.found.path / self.folder}, got {cell!r}. "
                f"Use a relative name without '..'.{there}"
            )

    @staticmethod
    def check_text(cell: Cell, table: str, where: str) -> None:
        """Raise LabelError for text that names no file anywhere."""
        if isinstance(cell, str) and not cell.strip():
            raise LabelError(f"{table}: {where} names no file. Fill it in, or remove the row.")
        if isinstance(cell, str) and _URL.match(cell):
            raise LabelError(f"{table}: {where} has the URL {cell!r}. Download the files and name them in the table.")

    def looks_like_file(self, cell: Cell) -> bool:
        """Return whether a cell is a file's name: there is such a file, or it ends like an image."""
        if not isinstance(cell, str):
            return False
        return bool(_IMAGE.fullmatch(cell.strip()) or self.find(cell) or self.has_stem(cell))

    def hint(self, cells: Sequence[Cell]) -> str:
        """Describe what would find the files of these names, which have none."""
        texts = [str(cell) for cell in cells]
        looks = (self._other_suffix, self._other_delimiter, self._other_case, self._other_form, self._other_ending)
        hints = (look(texts) for look in (*looks, self._zeros, self._below, self._beside))
        return next(filter(None, hints), "Check the folder.")

    def _other_suffix(self, texts: Sequence[str]) -> str:
        for suffix in ("", *self._endings):
            other = Files(self.found, suffix)
            fixed = sum(other.in_folder(text) in self.there for text in texts) if suffix != self.suffix else 0
            if fixed:
                return f"Did you mean {remedy(f'suffix={suffix!r}', f'--suffix {suffix}')}? It finds {fixed} of them."
        return ""

    def _other_delimiter(self, texts: Sequence[str]) -> str:
        mark = next((mark for mark in ";\t|" if mark in texts[0]), None)
        return f"Is the delimiter {mark!r}? Pass sep={mark!r}." if mark else ""

    def _other_case(self, texts: Sequence[str]) -> str:
        n = sum(self._by_case.get(self.in_folder(text).casefold()) == "" for text in texts)
        return (
            f"{n} of them are there in several spellings that differ in case. Write the one that is meant." if n else ""
        )

    def _other_form(self, texts: Sequence[str]) -> str:
        plain = {unicodedata.normalize("NFC", name) for name in self.there}
        n = sum(unicodedata.normalize("NFC", self.in_folder(text)) in plain for text in texts)
        if not n:
            return ""
        return f"{n} of them are there in another Unicode form (NFC or NFD). Write them as the files are named."

    def _other_ending(self, texts: Sequence[str]) -> str:
        stems = [PurePosixPath(self.in_folder(text)).with_suffix("").as_posix() for text in texts]
        for ending in self._endings:
            n = sum(stem + ending in self.there for stem in stems)
            if n:
                return f"{n} of them are there as {ending!r}: change the suffix in the table."
        return ""

    def _zeros(self, texts: Sequence[str]) -> str:
        by_number = {_without_zeros(name): name for name in (*self._stems, *self.there)}
        there = [by_number.get(_without_zeros(self.in_folder(text.removesuffix(".0")))) for text in texts]
        example = next(filter(None, there), None)
        if example is None:
            return ""
        return (
            f"{len(there) - there.count(None)} of them are there with zeros in front, such as {printable(example)!r}. "
            "Spreadsheets and pandas drop them: write the names as the files are named; pd.read_csv(file, dtype=str) "
            "keeps them."
        )

    def _below(self, texts: Sequence[str]) -> str:
        n = sum(PurePosixPath(f"{text}{self.suffix}").name in self._by_base for text in texts)
        return f"{n} of them are there in another folder. Write the folders that the files are in." if n else ""

    def _beside(self, texts: Sequence[str]) -> str:
        first = f"{texts[0]}{self.suffix}"
        folders = self.found.path.iterdir()
        home = next((folder.name for folder in folders if os.path.isfile(folder / first)), None)  # noqa: PTH113 any text
        if home is None:
            return ""
        return f"{printable(first)} is in the folder {home!r}: with folder='.' files are found in all folders."

    def missing_text(self, cells: Sequence[Cell], where: Sequence[str]) -> str:
        """List the first names that have no file."""
        shown = zip(cells[:5], where[:5], strict=True)
        return ", ".join(f"{printable(str(cell))}{self.suffix} ({line})" for cell, line in shown)


def _without_zeros(name: str) -> str:
    """Return a name with its numbers as a spreadsheet writes them, without zeros in front."""
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", name)


def _only_one(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, name in pairs:
        found[key] = "" if key in found else name
    return found
