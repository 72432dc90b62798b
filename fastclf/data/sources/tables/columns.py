"""Which column of a table holds the files, which the labels, which the set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastclf.data.sources.layout import in_folder
from fastclf.data.sources.set_names import set_asked
from fastclf.data.sources.tables.files import Files
from fastclf.data.sources.tables.reading import Cell, LabelTable
from fastclf.data.sources.tables.rules import Column, TableRules, column_argument
from fastclf.errors import DataError, LabelError
from fastclf.report import listed, remedy

_SAMPLE = 500
_FEWEST_PIXELS = 64
_SHOWN = 12  # columns of a listing
_NUMBER = re.compile(r"\s*([-+]?[\d.,]+|true|false|)\s*", re.I)
_LABELS = re.compile(
    r"(class|label|tag|target|categor|diagnosis|breed|species|genre|dx)(es|s|y|ies|_?name|_?id)?", re.I
)
_SPLITS = re.compile(r"(split|(sub)?set|partition|phase|fold)(_?(img|image|set))?", re.I)
_GROUPS = re.compile(
    r"(patient|subject|lesion|person|individual|animal|sender|user|author|owner|site|location|place|camera|seq|sequence|"
    r"burst|event|video|clip|scene|session|slide|case|group|family)(_?(id|name|nr|no|number|code))?", re.I
)  # fmt: skip

ON, OFF, MINUS = {"1", "1.0", "true"}, {"0", "0.0", "false"}, {"-1", "-1.0"}


@dataclass(frozen=True)
class Columns:
    """Positions of columns.

    Attributes:
        file: names of files.
        labels: the labels; empty where the folder of a file is its class.
        split: the set of each row, or None.
        group: what each row belongs to, or None.
        unused: all others.
    """

    file: int
    labels: list[int]
    split: int | None
    group: int | None
    unused: list[int]


def choose(table: LabelTable, files: Files, rules: TableRules) -> Columns:
    """Find the columns that were not named.

    Raises:
        DataError: no column holds the files, or a named column is not there.
        LabelError: several could hold the labels; lists them and shows the call that would work.
    """
    split = None if rules.split_col is None else _position(table, rules.split_col, "split_col")
    group = None if rules.groups is None else _position(table, rules.groups, "groups")
    labels = _named_labels(table, rules)
    others = [position for position in (split, group, *(labels or ())) if position is not None]
    file = file_column(table, files, rules.fn_col, others)
    named = [file, *others]
    if len(set(named)) < len(named):
        raise LabelError(f"{table.name}: fn_col, label_col, split_col and groups must name different columns.")
    free = [i for i in range(table.width) if i not in named]
    if labels is None:
        uncounted = [i for i in free if not _is_row_number(table, i)]
        if uncounted or _have_folders(table, file):
            free = uncounted
        labels = _label_columns(table, files, rules, file, free)
    unused = [i for i in range(table.width) if i not in (file, split, group, *labels)]
    return Columns(file, labels, split, group, unused)


def _named_labels(table: LabelTable, rules: TableRules) -> list[int] | None:
    if rules.label_col is None:
        return None
    named = [rules.label_col] if isinstance(rules.label_col, str | int) else list(rules.label_col)
    if not named:
        raise ValueError(f"{rules.call}: label_col must name a column, got an empty list.")
    return [_position(table, column, "label_col") for column in named]


def _position(table: LabelTable, column: Column, argument: str) -> int:
    """Return the position of a column that is named, or numbered from 0."""
    header = table.header or []
    if isinstance(column, bool) or not isinstance(column, str | int | np.integer):
        raise TypeError(f"{argument} must be the name of a column or its number, got {column!r}.")
    if isinstance(column, str):
        column = column.strip()
        if header.count(column) == 1:
            return header.index(column)
        if column in header:
            raise DataError(
                f"{table.name}: {header.count(column)} columns are called {column!r}. "
                f"Pass {column_argument(argument)} as a number, e.g. {header.index(column)}."
            )
        if not header:
            raise DataError(
                f"{table.name} has no names of columns. Pass {column_argument(argument)} as a number, counted from 0."
            )
        near = difflib.get_close_matches(column.lower(), [name.lower() for name in header], 1)
        mean = next((f" Did you mean {name!r}?" for name in header if [name.lower()] == near), "")
        raise DataError(f"{table.name} has no column {column!r} ({argument}), but {listed(header, 20, repr)}.{mean}")
    if not 0 <= column < table.width:
        if header.count(str(column)) == 1:
            return header.index(str(column))
        raise DataError(
            f"{table.name} has columns 0 to {table.width - 1}, got {column_argument(argument, repr(column))}."
        )
    if str(column) in header and header.index(str(column)) != column:
        raise DataError(
            f"{table.name}: {column_argument(argument, column)} could be the position or the name of a column. "
            f"Pass {str(column)!r} for the name, or rename it."
        )
    return int(column)


def file_column(table: LabelTable, files: Files, fn_col: Column | None, others: Sequence[int] = ()) -> int:
    """Return the column of the files: ``fn_col``, else the one most of whose cells name files, the first if none does.

    Args:
        table: its rows.
        files: that rows may name.
        fn_col: the column, where it was named.
        others: columns that hold something else.

    Raises:
        DataError: there is no such column.
    """
    if fn_col is not None:
        return _position(table, fn_col, "fn_col")
    free = [i for i in range(table.width) if i not in others]
    if not free:
        raise DataError(f"{table.name} has no column left that could name the files. Pass {column_argument('fn_col')}.")
    rows = table.rows[:: -(-len(table.rows) // _SAMPLE)]
    hits = {i: sum(files.find(row[i]) is not None for row in rows) for i in free}
    if not any(hits.values()):
        hits = {i: sum(files.has_stem(row[i]) for row in rows) for i in free}
    if not any(hits.values()) and any(files.find(text) or files.has_stem(text) for text in table.index):
        raise DataError("from_df: the index holds the names of the files, no column does. Pass df.reset_index().")
    return max(free, key=lambda i: (hits[i], -i))


def _is_row_number(table: LabelTable, position: int) -> bool:
    """Return whether a column without a name of its own numbers the rows, as pandas' index does when it is written."""
    cells = table.column(position)
    if table.header is None:
        return any(cells == [str(i) for i in range(start, start + len(cells))] for start in (0, 1))
    if not re.fullmatch(r"(Unnamed: \d+)?|index", table.header[position]):
        return False
    are_numbers = all(isinstance(cell, str) and re.fullmatch("[0-9]+", cell) for cell in cells)
    return are_numbers and len(set(cells)) == len(cells)


def _have_folders(table: LabelTable, file: int) -> bool:
    return all(isinstance(cell, str) and "/" in cell.replace("\\", "/").strip("/") for cell in table.column(file))


def _label_columns(table: LabelTable, files: Files, rules: TableRules, file: int, free: list[int]) -> list[int]:
    if len(free) == 1 or (free and rules.continuous):
        return free
    if not free:
        if _have_folders(table, file):
            return []
        raise DataError(
            f"{table.name}: found 1 column, of file names, and neither labels nor folders in the names. Add a column."
        )
    if is_indicator(table, free) and not any(_fits(_LABELS, table, i) or _splits(table, i) for i in free):
        return free
    _refuse_pixels(table, files, file, free)
    raise LabelError(_listing(table, files, rules, file, free))


def _refuse_pixels(table: LabelTable, files: Files, file: int, free: Sequence[int]) -> None:
    """Raise DataError where a table that names no file holds the pixels of images, as those of MNIST and FER2013 do."""
    fields = [str(table.rows[0][i]).split() for i in (file, *free)]
    numeric = [len(words) for words in fields if _is_numbers({*words})]
    numbers = max(len(numeric), *numeric, 0)  # a column each, or all in one cell
    if numbers >= _FEWEST_PIXELS and not any(files.find(one[file]) for one in table.rows[:_SAMPLE]):
        raise DataError(
            f"{table.name} names no file: it seems to hold pixels, {numbers} numbers a row. Make an array "
            "[N, h, w, 3] uint8 of them, np.repeat(gray[..., None], 3, 3) of gray ones, and pass from_arrays(...)."
        )


def distinct_cells(table: LabelTable, columns: Sequence[int]) -> set[Cell]:
    """Return what some columns hold, each once."""
    return {row[i] for row in table.rows for i in columns}


def is_indicator(table: LabelTable, columns: Sequence[int]) -> bool:
    """Return whether columns hold nothing but 0 and 1, or -1 and 1."""
    cells = {flag(cell) for cell in distinct_cells(table, columns)}
    return cells <= ON | OFF or cells <= ON | MINUS


def flag(cell: Cell) -> str | None:
    """Return a cell as `ON`, `OFF` and `MINUS` hold it; None where it holds no text."""
    return cell.strip().lower() if isinstance(cell, str) else None


def seems_to_group(table: LabelTable, position: int) -> bool:
    """Return whether a column is named as what images belong to, and rows share values of it."""
    cells = table.column(position)
    return _fits(_GROUPS, table, position) and 1 < len(set(cells)) < len(cells)


def _fits(pattern: re.Pattern[str], table: LabelTable, position: int) -> bool:
    return table.header is not None and pattern.fullmatch(table.header[position].strip()) is not None


def _splits(table: LabelTable, position: int) -> bool:
    """Return whether a column is named as one that tells the set of each row."""
    return table.header is not None and bool(set_asked(table.header[position]) or _fits(_SPLITS, table, position))


def _listing(table: LabelTable, files: Files, rules: TableRules, file: int, free: Sequence[int]) -> str:
    """List the columns with examples, and the call that would work."""
    values = {i: set(table.column(i)) for i in free}
    split = next((i for i in free if _splits(table, i)), None)
    rest = [i for i in free if i != split] or list(free)
    label = next((i for i in rest if _fits(_LABELS, table, i)), None)
    if label is None:
        label = min(rest, key=lambda i: (_is_numbers(values[i]), len(values[i]) < 2, len(values[i])))
    wanted = {"fn_col": file, "label_col": label} | (
        {"split_col": split} if split is not None and rules.makes_data else {}
    )
    shown = sorted({*wanted.values(), *free[:_SHOWN]})
    lines = [_described(table, files, i, is_file=i == file) for i in shown]
    lines += [f"  and {1 + len(free) - len(shown):,} more"] if len(shown) <= len(free) else []
    arguments = [column_argument(name, table.title(i)) for name, i in wanted.items()]
    folder, source = files.found.folder, "df" if rules.call == "from_df" else f"'{table.name}'"
    places = [repr(folder), source, "tfms=tfms"] if rules.makes_data else [f"csv={source}", f"folder={folder!r}"]
    numbers = f"; {remedy('', 'in Python, ')}continuous=True predicts their numbers" if rules.makes_data else ""
    call = f"{rules.call}(PATH, {', '.join([*places, *arguments])})"
    return (
        f"{table.name} has {table.width} columns, and none is named as the one of the labels:\n"
        + "\n".join(lines)
        + f"\nName them, e.g. {remedy(call, ' '.join([f'--csv {source}{in_folder(folder)}', *arguments]))}. A list of "
        f"columns of 0 and 1 is several labels{numbers}."
    )


def _described(table: LabelTable, files: Files, position: int, *, is_file: bool) -> str:
    """Return a line on a column: its number, name and first values."""
    cells = table.column(position)
    examples = [_cut(repr(cell)) for cell in dict.fromkeys(cells[:_SAMPLE]) if cell not in ("", None)]
    named = is_file and any(map(files.find, cells[:_SAMPLE]))
    what = "names of files" if named else f"{len(set(cells)):,} different"
    number = f"{position}: " if table.title(position) != str(position) else ""
    return f"  {number}{table.title(position)}: {', '.join(examples[:4])} ({what})"


def _is_numbers(cells: set[Cell]) -> bool:
    """Return whether cells hold numbers only: those are less often labels than words are."""
    return all(not isinstance(cell, str) or _NUMBER.fullmatch(cell) for cell in cells)


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
