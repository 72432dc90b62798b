"""Rows of text, from a file or a data frame."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fastclf.data.sources.names import Names
from fastclf.errors import DataError
from fastclf.interop import as_text
from fastclf.paths import given_path
from fastclf.report import counted, log, remedy

if TYPE_CHECKING:
    import pandas as pd

Cell: TypeAlias = str | tuple[str, ...] | None
"""Text; several labels, where a cell of a data frame holds a list; None, where it holds no value."""

_DELIMITERS = ("\t", ",", ";", "|")
_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NO_TEXT = {  # first bytes -> what reads it
    b"PK\x03\x04": "pd.read_excel(file), or pd.read_csv(file) of a zipped table",
    b"\xd0\xcf\x11\xe0": "pd.read_excel(file)",
    b"\x1f\x8b": "pd.read_csv(file)",
    b"PAR1": "pd.read_parquet(file)",
}
_JSON = {  # what a text begins with -> what it is, and what reads it
    r'\s*\[\s*\{\s*"': "a list of records: pd.read_json(file, dtype=False)",
    r'\s*\{\s*".*\}\s*\n\s*\{': "lines of records: pd.read_json(file, lines=True, dtype=False)",
    r'\s*\{\s*"': "an object: make a data frame with a column of names and one of labels",
}
_SKIPPING = 'pd.read_csv(file, dtype=str, on_bad_lines="skip")'
_HEAD = 100
_NEARLY_ALL = 0.9
_SHARED = 1 << 15  # texts of a column
_ENDS_AS_FILE = re.compile(r"\.[A-Za-z][A-Za-z0-9]{2,3}\s*$")
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class LabelTable:
    """Rows of cells.

    Attributes:
        name: of the file, for messages.
        rows: the cells of each row, equally many.
        where: where each row stands, for messages: 'line 3'.
        header: the names of the columns; None when nothing names them.
        header_where: where the header stands.
        index: of a data frame, where it holds text.
        parts: for each row the set it belongs to, where the caller has one table for each.
    """

    name: str
    rows: list[list[Cell]]
    where: Names
    header: list[str] | None = None
    header_where: str = ""
    index: Sequence[str] = ()
    parts: Sequence[str] = ()

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.rows[0])

    def column(self, position: int) -> list[Cell]:
        """Return the cells of a column."""
        return [row[position] for row in self.rows]

    def title(self, position: int) -> str:
        """Name a column in a message: by its name, or by its number where it has none."""
        return repr(self.header[position]) if self.header and self.header[position] else str(position)

    def headless(self) -> LabelTable:
        """Take the header for the first row."""
        assert self.header is not None
        rows: list[list[Cell]] = [[*self.header], *self.rows]
        where = Names.joined([Names([self.header_where]), self.where])
        return replace(self, rows=rows, where=where, header=None)

    def take(self, rows: Sequence[int]) -> LabelTable:
        """Return the table of some of the rows."""
        if len(rows) == len(self.rows):
            return replace(self, index=(), parts=())
        where = self.where.take(np.array(rows, np.int64))
        return replace(self, rows=[self.rows[i] for i in rows], where=where, index=(), parts=())


def find_csv(csv_fname: str | os.PathLike[str], path: Path) -> Path:
    """Find a table below the working folder or below the data's path.

    Raises:
        FileNotFoundError: it is in neither.
        ValueError: another file of that name is in each.
    """
    here, there = given_path(csv_fname), path / csv_fname
    found = [file for file in (here, there) if file.is_file()]
    if not found:
        where = f"{here}" if here == there else f"{here}, and none {there}"
        raise FileNotFoundError(f"there is no table {where}. Check the path.")
    if len(found) == 2 and not here.samefile(there):
        raise ValueError(f"a table must be one file, got {here.resolve()} and {there}. Pass a full path.")
    return found[0]


def read_csv(
    csv_fname: str | os.PathLike[str], path: Path, sep: str | None, encoding: str, *, skip_header: bool = True
) -> LabelTable:
    """Read a table as text: nothing is taken for a number or for missing, every line must have the same fields.

    Args:
        csv_fname: the table.
        path: where it is looked for besides the working folder.
        sep: what stands between the fields; a blank means any white space; None to find out.
        encoding: of the text. A byte order mark of UTF-16 or UTF-32 is heeded whatever it is.
        skip_header: whether the first line names the columns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the delimiter is not one character, or the encoding is unknown.
        DataError: it is empty, not in this encoding, or a line has another number of fields; names the line.
    """
    file = find_csv(csv_fname, path)
    if sep is not None and (len(sep) != 1 or sep in '\r\n"'):
        raise ValueError(
            f"from_csv: sep must be one character, not a quote or a line's end, got {sep!r}. Pass e.g. ','."
        )
    text, skipped, named = _without_preamble(_decoded(file, encoding))
    text, remarks = _without_remarks(text, sep or named)
    skipped += remarks
    used = sep or named or _delimiter(text)
    rows, lines = _records(text, used, file.name, skipped)
    _drop_empty_ends(rows, lines)
    if used == " " and len(rows) > 1 and all(len(row) == len(rows[0]) + 1 for row in rows[1:]):
        rows[0].insert(0, "")  # a header that does not name the first column, as R and CelebA write it
    elif used == " " and sep is None and _have_rests([*map(len, rows)]):
        rows, lines = _records(text, used, file.name, skipped, most=2)
    header, header_where = None, ""
    if skip_header and rows:
        header, header_where = [str(cell).strip() for cell in rows[0]], f"line {lines[0]}"
        del rows[0], lines[0]
    table = LabelTable(file.name, rows, Names(f"line {line}" for line in lines), header, header_where)
    _check_fields(table, sep, used)
    return table


def _decoded(file: Path, encoding: str) -> str:
    content = file.read_bytes()
    if reader := next((reader for mark, reader in _NO_TEXT.items() if content.startswith(mark)), None):
        raise DataError(f"{file.name} is not text. Read it with pandas and pass from_df(..., {reader}, ...).")
    mark = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    plain = encoding.lower().replace("_", "-")
    wide = content[:1000].count(0) > len(content[:1000]) // 4
    try:
        if mark is not None and not plain.startswith(mark):
            if not plain.startswith("utf-8"):
                raise DataError(f"{file.name} begins with the mark of {mark}. Pass encoding={mark!r}.")
            encoding = mark
        text = content.decode(encoding).removeprefix("\ufeff")
        if wide and "\0" in text:
            raise UnicodeError("every other byte is 0")
    except LookupError as error:
        raise ValueError(f"from_csv: encoding must be a text encoding that Python knows, got {encoding!r}.") from error
    except UnicodeError as error:
        other = "utf-16-le" if wide else "latin-1"
        save = remedy(f"Pass e.g. encoding={other!r}", "Save it as UTF-8")
        raise DataError(f"{file.name} is not in {encoding}: {error}. {save}.") from error
    if form := next((form for begin, form in _JSON.items() if re.match(begin, text)), None):
        raise DataError(f"{file.name} is JSON, {form}, and pass from_df(..., df, ...).")
    return text


def _without_preamble(text: str) -> tuple[str, int, str | None]:
    """Take away a first line that is no row: Excel's 'sep=;', or the number of rows (CelebA).

    Returns:
        The rest, how many lines were taken away, and the delimiter that Excel names.
    """
    first, *rest = _LINE_END.split(text, maxsplit=1)
    if not rest:
        return text, 0, None
    if excel := re.fullmatch(r'"?sep=(.)"?[,;\s]*', first, re.IGNORECASE):
        return rest[0], 1, excel[1]
    n = len(_LINE_END.split(rest[0].rstrip("\r\n")))
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", first) and int(first) in (n, n - 1):
        return rest[0], 1, None
    return text, 0, None


def _without_remarks(text: str, sep: str | None) -> tuple[str, int]:
    """Take away lines above the table that begin with '#' and have other fields than it; a header may begin so, too.

    Returns:
        The rest, and how many lines were taken away: up to the last of them.
    """
    lines = _LINE_END.split(text, maxsplit=_HEAD)
    begin = next((i for i, line in enumerate(lines[:_HEAD]) if not line.startswith("#")), 0)
    rest = lines[begin:]
    used = sep or _delimiter("\n".join(rest))
    fields = _widths(rest[:1], used)
    above = begin
    while above and _widths(lines[above - 1 : above], used) == fields:
        above -= 1
    if not above:
        return text, 0
    log(f"{counted(above, 'line')} of remarks, which begin with '#', above the table are left out")
    return _LINE_END.split(text, maxsplit=above)[-1], above


def _delimiter(text: str) -> str:
    """Find what gives every one of the first lines the same number of fields, two or more."""
    lines = _LINE_END.split(text, maxsplit=_HEAD)[:_HEAD]
    widths = {sep: _widths(lines, sep) for sep in (*_DELIMITERS, " ")}
    for sep, found in widths.items():
        if found and found[-1] > 1 and len(set(found[1:])) <= 1 and found[-1] - found[0] in (0, int(sep == " ")):
            return sep
    often = {sep: sum(width > 1 for width in widths[sep]) for sep in _DELIMITERS}  # not everywhere: a line is odd
    if any(often.values()):
        return max(often, key=often.__getitem__)
    first = [line.split()[0] for line in lines if line.strip()]
    names = len({*first}) == len(first) and not any(map(_ENDS_AS_FILE.search, lines))
    return " " if names and _have_rests(widths[" "]) else ","


def _have_rests(widths: Sequence[int]) -> bool:
    """Return whether lines hold a word and then one or more, of different number: a name, and a label with blanks.

    Of a table with more columns few lines have other fields, and are faults.
    """
    if len({*widths}) == 1 or min(widths, default=0) < 2:
        return False
    usual, lines = Counter(widths).most_common(1)[0]
    return usual == 2 or lines < _NEARLY_ALL * len(widths)


def _widths(lines: Sequence[str], sep: str) -> list[int]:
    if sep == " ":
        return [len(line.split()) for line in lines if line.strip()]
    try:
        return [len(row) for row in csv.reader(lines, delimiter=sep) if row]
    except csv.Error:
        return []


def _records(text: str, sep: str, name: str, skipped: int, most: int = 0) -> tuple[list[list[Cell]], list[int]]:
    """Split lines into fields, at most so many of blanks, and return which line each row is; blank lines are none."""
    if sep == " " and '"' not in text:
        lines = enumerate(_LINE_END.split(text), skipped + 1)
        return _shared((number, line.strip().split(maxsplit=most - 1)) for number, line in lines)
    skip = sep == " " or f'{sep} "' in text  # what looks like a, "b, c" means a quoted field
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep, strict=True, skipinitialspace=skip)
    try:
        return _shared((skipped + reader.line_num, row) for row in reader)
    except csv.Error as error:
        line = skipped + reader.line_num
        raise DataError(f"{name}: line {line} is not a proper row: {error}. Fix its quotes.") from error


def _shared(numbered: Iterable[tuple[int, list[str]]]) -> tuple[list[list[Cell]], list[int]]:
    """Collect rows and their numbers; the labels of a million rows are few texts, each held once."""
    rows: list[list[Cell]] = []
    numbers: list[int] = []
    known: list[dict[str, str]] = []
    for number, row in numbered:
        if not row or (len(row) == 1 and not row[0].strip()):
            continue
        known += [{} for _ in range(len(row) - len(known))]
        for i, cell in enumerate(row):
            if len(known[i]) < _SHARED:
                row[i] = known[i].setdefault(cell, cell)
            elif cell in known[i]:
                row[i] = known[i][cell]
        rows.append([*row])  # as long as it is, where the reader leaves room for more
        numbers.append(number)
    return rows, numbers


def _drop_empty_ends(rows: list[list[Cell]], lines: list[int]) -> None:
    """Take away empty rows above and below the others, and empty columns behind them: spreadsheets write them.

    An empty row between others stays, and is refused later: pandas counts it, and so may `val_idxs`.
    """
    for end in (-1, 0):
        while rows and not _filled(rows[end]):
            del rows[end], lines[end]
    if not rows or (rows[0][-1] and all(len(row) == len(rows[0]) for row in rows)):
        return
    width = max(_filled(rows[0]), min(len(rows[0]), max(map(_filled, rows))))
    for row in rows:
        del row[max(width, _filled(row)) :]


def _filled(row: list[Cell]) -> int:
    """Return the number of cells up to the last that is not empty."""
    return max((i + 1 for i, cell in enumerate(row) if str(cell).strip()), default=0)


def read_df(df: pd.DataFrame) -> LabelTable:
    """Take the columns of a data frame as text, and lists in cells as several labels.

    Raises:
        TypeError: it is none.
        DataError: it has no rows or columns.
    """
    if not hasattr(df, "iloc") or not hasattr(df, "columns"):
        ways = [f"df.{way}()" for way in ("to_pandas", "reset_index") if hasattr(df, way)]
        kind = f"{type(df).__module__}.{type(df).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"from_df: df must be a pandas data frame, got {kind}. Pass {[*ways, 'pd.DataFrame(df)'][0]}.")
    columns = [_cells(df.iloc[:, position]) for position in range(df.shape[1])]
    rows: list[list[Cell]] = [[*row] for row in zip(*columns, strict=True)]
    index = [value for value in df.index if isinstance(value, str)]
    table = LabelTable(
        "data frame",
        rows,
        Names(f"row {i}" for i in range(len(rows))),
        [str(name).strip() for name in df.columns],
        index=index if len(index) == len(rows) else (),
    )
    _check_fields(table, None, "")
    return table


def _cells(column: pd.Series[Any]) -> list[Cell]:
    missing = column.isna().to_numpy(bool)
    return [None if none else _cell(value) for none, value in zip(missing, column.tolist(), strict=True)]


def _cell(value: Any) -> Cell:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_text, value))
    return _text(value)


def _text(value: Any) -> str:
    """Whole numbers without '.0': pandas makes floats of whole numbers beside a missing value."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else as_text(value))


def _check_fields(table: LabelTable, sep: str | None, used: str) -> None:
    if not table.rows:
        what = "only a header line" if table.header else "empty"
        raise DataError(f"{table.name} is {what}. It must hold rows of a file name and a label.")
    n = len(table.header or table.rows[0])
    if n == 0 or (n == 1 and sep is not None):
        first = "".join(table.header or map(str, table.rows[0]))
        other = next((mark for mark in (*_DELIMITERS, " ") if mark != sep and mark in first), None)
        hint = f"Is the delimiter {other!r}? Pass sep={other!r}." if other else "It needs file names and labels."
        raise DataError(f"{table.name}: found {n} column{'' if n == 1 else 's'} with the delimiter {sep!r}. {hint}")
    for row, where in zip(table.rows, table.where, strict=True):
        if len(row) != n:
            raise DataError(
                f"{table.name}: {where} has {len(row)} fields, expected {n}. Quote a field that holds a {used!r}"
                f"{remedy(f', or leave such lines out: from_df(..., {_SKIPPING}, ...)', '')}."
            )


def join(tables: dict[str, LabelTable]) -> LabelTable:
    """Put the tables of several sets one below the other; columns belong together that have one name.

    Args:
        tables: by the name of their set, 'train' first. That for test may lack columns: its labels.

    Raises:
        DataError: their columns differ.
    """
    first, *others = tables.values()
    if not others:
        return first
    aligned = [first] + [_aligned(table, first, lacks=part == "test") for part, table in [*tables.items()][1:]]
    return LabelTable(
        " + ".join(table.name for table in aligned),
        [row for table in aligned for row in table.rows],
        Names.joined([table.where.prefixed(f"{table.name} ") for table in aligned]),
        first.header,
        parts=[part for part, table in zip(tables, aligned, strict=True) for _ in table.rows],
    )


def _aligned(table: LabelTable, first: LabelTable, *, lacks: bool) -> LabelTable:
    """Return a table with the columns of ``first``, found by name; empty ones for those it may lack."""
    if table.header == first.header and table.width == first.width:
        return table
    names, wanted = table.header or [], first.header or []
    unique = len({*names}) == len(names) > 0 and len({*wanted}) == len(wanted)
    if not unique or not (({*names} < {*wanted} and lacks) or {*names} == {*wanted}):
        raise DataError(
            f"{table.name} must have the columns of {first.name}: {wanted or first.width}, got "
            f"{names or table.width}. Rename them."
        )
    places = [names.index(name) if name in names else None for name in wanted]
    rows: list[list[Cell]] = [[None if place is None else row[place] for place in places] for row in table.rows]
    return replace(table, rows=rows, header=wanted)
