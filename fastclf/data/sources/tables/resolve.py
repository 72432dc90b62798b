"""Labels from tables: one row per image, its file name and its label or labels.

`reading` makes rows of text of a file or a data frame, `columns` finds out which column holds what, `files` which file
a name means, `labels` what the cells mean, `parts` which set a row is for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.labels import Labels
from fastclf.data.sources.listing import Found
from fastclf.data.sources.names import printable, write_list
from fastclf.data.sources.tables.columns import Columns, choose, file_column, seems_to_group
from fastclf.data.sources.tables.files import EXACT, Files
from fastclf.data.sources.tables.labels import Values, as_labels, check_no_missing, read_values
from fastclf.data.sources.tables.parts import TEST, VALID, parts_of
from fastclf.data.sources.tables.reading import Cell, LabelTable, join
from fastclf.data.sources.tables.rules import TableRules
from fastclf.errors import LabelError
from fastclf.report import counted, log, remedy, warn

MISSING_NAME = "missing_images.csv"


@dataclass(frozen=True)
class Labelled:
    """Files with labels, and which of them are for what.

    Attributes:
        names: of the files, relative to the data's path, in the table's order.
        labels: one entry per file.
        groups: what each file belongs to, or None where no column says.
        val_idxs: entries for validation, ascending; None where nothing says.
        test_names: of the files for test.
        test_labels: their labels, zeros where the table has none; None when no row is for test.
        ignored: how many files of each kind are left out.
    """

    names: list[str]
    labels: Labels
    groups: list[Cell] | None
    val_idxs: npt.NDArray[np.int64] | None
    test_names: list[str]
    test_labels: Labels | None
    ignored: dict[str, int]


def labelled_by_table(
    tables: dict[str, LabelTable],
    found: Found,
    rules: TableRules,
    val_idxs: Sequence[int] | npt.NDArray[np.int64] | None,
) -> Labelled:
    """Find the file and the labels of every row.

    Args:
        tables: 'train' and, when there are tables for them, 'valid' and 'test'.
        found: the files that rows may name.
        rules: how the table is to be read.
        val_idxs: rows for validation, or None.

    Raises:
        FileNotFoundError: rows have no file.
        DataError: a column cannot be used.
        LabelError: a row cannot be used.
        ValueError: val_idxs do not fit.
    """
    rows = find_rows(tables, found, rules)
    table, columns = rows.table, rows.columns
    parts, undecided = parts_of(table, columns.split, val_idxs)
    unlabelled = _unlabelled_test_rows(table, columns, parts)
    labelled, values = read_labels(rows, [i for i in rows.there if i not in unlabelled], rules)
    used = table.take(labelled)
    labels = as_labels(values, used, columns.labels[0] if len(columns.labels) == 1 else None)
    _say(rows, values, labels)
    blank = [rows.names[i] for i in rows.there if i in unlabelled]
    result = _by_set([rows.names[i] for i in labelled], parts[labelled], labels, blank)
    others = (parts[labelled] != TEST).tolist()
    if columns.group is not None:
        result = replace(result, groups=[*compress(_groups(used, columns.group), others)])
    if undecided:
        result = replace(result, val_idxs=None)
    unused = len(set(found.images).difference(result.names, result.test_names))
    if unused:
        verbs = ("has", "is") if unused == 1 else ("have", "are")
        log(f"{table.name}: {counted(unused, 'image')} in {found.folder} {verbs[0]} no row and {verbs[1]} not used")
    return replace(result, ignored=found.ignored | {"images without a row": unused})


@dataclass(frozen=True)
class NamedRows:
    """What the rows of a table name.

    Attributes:
        table: its rows; of several tables those of all.
        columns: what its columns hold.
        names: for each row its file, relative to the data's path; empty for a row without one.
        remarks: how names differ from those of the files.
    """

    table: LabelTable
    columns: Columns
    names: list[str]
    remarks: list[str]

    @property
    def there(self) -> list[int]:
        """The rows that have a file."""
        return [i for i, name in enumerate(self.names) if name]

    def described(self, values: Values) -> list[str]:
        """Say which columns were read, and how."""
        rows = counted(len(self.table.rows), "row")
        return [f"{self.table.name}: {rows}, files in column {self.table.title(self.columns.file)}", values.how]


def find_rows(tables: dict[str, LabelTable], found: Found, rules: TableRules) -> NamedRows:
    """Find the columns of tables, and the file of every row. Arguments and errors as of `labelled_by_table`."""
    files = Files(found, rules.suffix)
    tables = {part: _without_false_header(one, files) for part, one in tables.items()}
    table = join(tables)
    columns = choose(join({part: one for part, one in tables.items() if part != "test"}), files, rules)
    names, remarks = _files_of(table, columns.file, files)
    _check_missing(table, columns.file, names, files, rules)
    return NamedRows(table, columns, names, remarks)


def read_labels(rows: NamedRows, wanted: list[int], rules: TableRules) -> tuple[list[int], Values]:
    """Read the labels of some rows that have a file.

    Returns:
        Those of the rows that are the first of their file, and their labels.

    Raises:
        LabelError: a row has no label, or another one than an earlier row of its file.
    """
    values = read_values(rows.table.take(wanted), rows.columns, rules)
    kept = _without_repeats([rows.names[i] for i in wanted], wanted, values.texts, rows.table)
    return [wanted[i] for i in kept], replace(values, texts=[values.texts[i] for i in kept])


def named_files(table: LabelTable, found: Found, rules: TableRules) -> list[str]:
    """Return the file that each row names, of a table that needs no labels: a path, or one below the data's path.

    Where no listed file has a row's name, it is taken as it is: who reads the files says which are not there.

    Raises:
        FileNotFoundError: no row has a file.
        DataError: there is no such column, or a row has no name.
    """
    files = Files(found, rules.suffix)
    table = _without_false_header(table, files)
    file = file_column(table, files, rules.fn_col)
    names, remarks = _files_of(table, file, files)
    cells = table.column(file)
    for i in (i for i, name in enumerate(names) if not name):
        files.check_text(cells[i], table.name, table.where[i])
        names[i] = (files.folder / f"{cells[i]}{rules.suffix}").as_posix()
    if not any(os.path.isfile(found.place(name)) for name in names):  # noqa: PTH113 any text
        _check_missing(table, file, [""] * len(names), files, rules)
    log("; ".join([f"{table.name}: {counted(len(names), 'row')}, files in column {table.title(file)}", *remarks]))
    return names


def _without_false_header(table: LabelTable, files: Files) -> LabelTable:
    """A first line that names a file is a row, and no header."""
    return table.headless() if table.header and any(map(files.looks_like_file, table.header)) else table


def _files_of(table: LabelTable, file: int, files: Files) -> tuple[list[str], list[str]]:
    """Return the file of each row, empty for those without one, and remarks on their names."""
    check_no_missing(table, file)
    names: list[str] = []
    ways: Counter[str] = Counter()
    for name, how in (files.find(cell) or ("", EXACT) for cell in table.column(file)):
        names.append(name)
        ways[how] += 1
    return names, [f"{count:,} names {how}" for how, count in ways.items() if how != EXACT]


def _check_missing(table: LabelTable, file: int, names: Sequence[str], files: Files, rules: TableRules) -> None:
    """Raise FileNotFoundError for rows without a file; or list them, where the rules say so and others have one."""
    missing = [i for i, name in enumerate(names) if not name]
    if not missing:
        return
    cells = table.column(file)
    for i in missing:
        files.check_name(cells[i], table.name, table.where[i])
    without, where = [cells[i] for i in missing], [table.where[i] for i in missing]
    root, shown = files.found.path / files.folder, files.missing_text(without, where)
    text = f"{table.name}: {len(missing)} of {len(cells)} rows have no file in {root}, first {shown}."
    if rules.missing == "raise" or len(missing) == len(cells):
        skip = remedy("missing='skip'", "--missing skip")
        goes_on = rules.makes_data and len(missing) < len(cells)
        others = f" Or pass {skip} to leave these rows out." if goes_on else ""
        raise FileNotFoundError(f"{text} {files.hint(without)}{others}")
    rows = zip(map(str, without), where, strict=True)
    listed = write_list(files.found.path, MISSING_NAME, ("name", "where"), rows)
    log(f"{text} They are left out.{f' Full list: {listed}.' if listed else ''}")


def _unlabelled_test_rows(table: LabelTable, columns: Columns, parts: npt.NDArray[np.int64]) -> set[int]:
    """Return the rows for test when none of them has a label."""
    rows: list[int] = np.flatnonzero(parts == TEST).tolist()
    blank = bool(columns.labels) and all(table.rows[i][j] in (None, "") for i in rows for j in columns.labels)
    return set(rows) if blank else set()


def _without_repeats(names: list[str], rows: list[int], texts: list[tuple[str, ...]], table: LabelTable) -> list[int]:
    """Return where a file is named first, of the names and texts of some rows.

    Raises:
        LabelError: a later row has another label.
    """
    first: dict[str, int] = {}
    differing = []
    for place, name in enumerate(names):
        earlier = first.setdefault(name, place)
        if texts[earlier] != texts[place]:
            differing.append(
                f"{printable(name)} in {table.where[rows[earlier]]} and {table.where[rows[place]]}: "
                f"{' '.join(texts[earlier])!r} and {' '.join(texts[place])!r}"
            )
    if differing:
        raise LabelError(
            f"{table.name}: {counted(len(differing), 'row gives', 'rows give')} another label than an earlier row of "
            f"the same image, first "
            f"{'; '.join(differing[:5])}. Keep one row for each image."
        )
    if len(first) < len(names):
        n_repeated = len(names) - len(first)
        warn(f"{table.name}: {counted(n_repeated, 'row repeats', 'rows repeat')} another: left out.")
    return [*first.values()]


def _by_set(names: list[str], parts: npt.NDArray[np.int64], labels: Labels, unlabelled: list[str]) -> Labelled:
    """Separate the test rows from the others."""
    test, other = np.flatnonzero(parts == TEST), np.flatnonzero(parts != TEST)
    test_names = [names[i] for i in test] or list(dict.fromkeys(unlabelled))
    test_labels = labels.zeros(len(test_names)) if unlabelled else labels.take(test) if test_names else None
    val_idxs = np.flatnonzero(parts[other] == VALID)
    return Labelled([names[i] for i in other], labels.take(other), None, val_idxs, test_names, test_labels, {})


def _groups(table: LabelTable, position: int) -> list[Cell]:
    cells = table.column(position)
    alone = next((where for cell, where in zip(cells, table.where, strict=True) if cell in (None, "")), None)
    if alone is not None:
        raise LabelError(
            f"{table.name}: column {table.title(position)} of the groups is empty in {alone}. Give rows that "
            "belong to no others an entry of their own, such as the name of the file."
        )
    return cells


def _may_belong(title: str) -> str:
    groups = remedy(f"groups={title}", f"--group-col {title}")
    return f"if images of one {title} are alike, {groups} keeps them in one set"


def _say(rows: NamedRows, values: Values, labels: Labels) -> None:
    """Describe in one line how the table was read."""
    table, columns = rows.table, rows.columns
    parts = rows.described(values)
    if not values.is_reg:
        parts.append(f"{labels.c:,} classes")
    if columns.group is not None:
        parts.append(f"groups in column {table.title(columns.group)}")
    if columns.unused:
        shown = ", ".join(map(table.title, columns.unused[:5]))
        parts.append(f"not used: {shown}" + (" ..." if len(columns.unused) > 5 else ""))
    if columns.group is None:
        parts += [_may_belong(table.title(i)) for i in columns.unused if seems_to_group(table, i)][:1]
    if otherwise := remedy(values.otherwise, ""):
        parts.append(f"{otherwise} would change that")
    log("; ".join([*parts, *rows.remarks]))
