"""Labels from a table: one row per picture, its file name and its label or labels."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fastclf.data.bad_pictures import printable
from fastclf.data.folders import check_classes, warn_absent
from fastclf.data.listing import EXTENSIONS, Found
from fastclf.data.samples import Labels
from fastclf.data.split import check_val_idxs, stratified_idxs, warn_single
from fastclf.errors import DataError, LabelError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        name: of the file, for messages.
        rows: the fields of each row: file name, label, further columns.
        where: where each row stands, for messages: 'line 3'.
        header: whether a first line named the columns.
    """

    name: str
    rows: list[list[str]]
    where: list[str]
    header: list[str] | None = None


@dataclass(frozen=True)
class LabelForm:
    """How the label column is to be read; see `ImageClassifierData.from_csv`.

    Raises:
        ValueError: when nothing separates the labels.
    """

    continuous: bool
    multi: bool | None
    cat_separator: str

    def __post_init__(self) -> None:
        if not self.cat_separator:
            raise ValueError("from_csv: cat_separator must not be empty. Pass e.g. ' '.")


def read_csv(csv_fname: str | os.PathLike[str], sep: str, encoding: str, skip_header: bool) -> Table:
    """Reads a table as text: nothing is taken for a number or for missing, every line must have the same fields.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the delimiter is not one character, or the encoding is unknown.
        DataError: when it is empty, not in this encoding, or a line has another number of fields; names the line.
    """
    file = Path(csv_fname)
    if not file.is_file():
        raise FileNotFoundError(f"from_csv: there is no file {file}. Check the path.")
    _check_form(sep, encoding)
    rows, where = [], []
    try:
        with file.open(encoding=encoding, newline="") as handle:
            reader = csv.reader(handle, delimiter=sep, strict=True)
            for row in reader:
                if row:
                    rows.append(row)
                    where.append(f"line {reader.line_num}")
    except UnicodeError as error:
        raise DataError(f"{file.name} is not in {encoding}: {error}. Pass e.g. encoding='latin-1'.") from error
    except csv.Error as error:
        raise DataError(f"{file.name}: line {reader.line_num} is no proper row: {error}. Mend its quotes.") from error
    header = None
    if skip_header and rows:
        header, rows, where = rows[0], rows[1:], where[1:]
    table = Table(file.name, rows, where, header)
    _check_fields(table, sep)
    return table


def _check_form(sep: str, encoding: str) -> None:
    if len(sep) != 1 or sep in '\r\n"':
        raise ValueError(
            f"from_csv: sep must be one character, not a quote or a line's end, got {sep!r}. Pass e.g. ','."
        )
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # unlike codecs.lookup, refuses those that are no texts'
    except LookupError as error:
        raise ValueError(f"from_csv: encoding must be a text encoding that Python knows, got {encoding!r}.") from error


def read_df(df: pd.DataFrame) -> Table:
    """Takes the columns of a data frame as text.

    Raises:
        DataError: when it has no rows, fewer than two columns, or a missing value; names the row.
    """
    for position in range(min(2, df.shape[1])):
        missing = df.iloc[:, position].isna().to_numpy()
        if missing.any():
            raise DataError(
                f"from_df: column {df.columns[position]!r} has a missing value in row {int(missing.argmax())}. "
                "A class named 'NA' is read as missing by default: pd.read_csv(..., dtype=str, keep_default_na=False)."
            )
    rows = [[str(value) for value in row] for row in df.itertuples(index=False, name=None)]
    table = Table("data frame", rows, [f"row {i}" for i in range(len(rows))], [str(name) for name in df.columns])
    _check_fields(table, ",")
    return table


def _check_fields(table: Table, sep: str) -> None:
    if not table.rows:
        what = "only a header line" if table.header else "empty"
        raise DataError(f"{table.name} is {what}. It must hold rows of a file name and a label.")
    n = len(table.header or table.rows[0])
    if n < 2:
        first = "".join(table.header or table.rows[0])
        other = next((mark for mark in (";", "\t", ",", "|") if mark != sep and mark in first), None)
        hint = f"Is the delimiter {other!r}? Pass sep={other!r}." if other else "It needs file names and labels."
        raise DataError(f"{table.name}: found {n} column{'' if n == 1 else 's'} with the delimiter {sep!r}. {hint}")
    for row, where in zip(table.rows, table.where, strict=True):
        if len(row) != n:
            raise DataError(
                f"{table.name}: {where} has {len(row)} fields, expected {n}. Quote a field that holds a {sep!r}."
            )


def labelled_by_table(
    table: Table,
    found: Found,
    suffix: str,
    form: LabelForm,
    val_idxs: Sequence[int] | npt.NDArray[np.int64] | None,
    val_pct: float,
    seed: int,
) -> tuple[list[str], Labels, npt.NDArray[np.int64], dict[str, int]]:
    """Finds the file and the labels of every row.

    Returns:
        File names relative to the data's path, their labels, which of them are for validation, all in the table's
        order; and how many files of each kind are left out.

    Raises:
        FileNotFoundError: when rows have no file.
        LabelError: when a row cannot be used.
        ValueError: when val_idxs do not fit.
    """
    chosen = None if val_idxs is None else check_val_idxs(val_idxs, len(table.rows))
    names = _files_of(table, found, suffix)
    texts, is_multi = _label_texts(table, form)
    kept = _without_repeats(names, texts, table)
    names, texts = [names[i] for i in kept], [texts[i] for i in kept]
    labels = _numbers(texts, table, kept) if form.continuous else _categories(texts, table.name, is_multi)
    if chosen is None:
        if not is_multi and not form.continuous:
            warn_single([text for (text,) in texts])
        val_rows = stratified_idxs([()] * len(texts) if form.continuous else texts, val_pct, seed)
        print(f"{table.name}: {len(val_rows)} of {len(names)} pictures are for validation; val_idxs= names others")
    else:
        val_rows = np.flatnonzero(np.isin(kept, chosen))
    unused = len(set(found.pictures).difference(names))
    if unused:
        print(f"{table.name}: {unused} pictures in {found.folder} have no row and are not used")
    return names, labels, val_rows, found.ignored | {"pictures without a row": unused}


def check_trained(trn: Labels, val: Labels, name: str) -> None:
    """Checks that the training rows have every class, and warns of those without a validation row.

    Raises:
        LabelError: when a class has no training row.
    """
    if trn.is_reg:
        return
    counts = [y.y.sum(axis=0) if y.is_multi else np.bincount(y.y, minlength=y.c) for y in (trn, val)]
    untrained, unmeasured = ([c for c, count in zip(trn.classes, n, strict=True) if count == 0] for n in counts)
    if untrained:
        raise LabelError(
            f"{name}: {', '.join(map(repr, untrained[:5]))} occur in validation rows only. "
            "Choose other val_idxs; without val_idxs every class keeps a training row."
        )
    warn_absent(unmeasured, name)


def _checked_id(text: str, name: str, where: str) -> str:
    parts = PurePosixPath(text).parts
    if not text or "\0" in text or "\\" in text or text.startswith("/") or ".." in parts:
        raise LabelError(
            f"{name}: {where} must name a file inside the folder, got {text!r}. "
            "Use a relative name with forward slashes and without '..'."
        )
    return text


def _files_of(table: Table, found: Found, suffix: str) -> list[str]:
    there = {*found.pictures, *found.others}
    folder = PurePosixPath(found.folder)
    ids = [_checked_id(row[0], table.name, where) for row, where in zip(table.rows, table.where, strict=True)]
    names = [(folder / f"{text}{suffix}").as_posix() for text in ids]
    missing = [i for i, name in enumerate(names) if name not in there]
    if missing:
        first = ", ".join(f"{printable(ids[i])}{suffix} ({table.where[i]})" for i in missing[:5])
        hint = _missing_hint([(folder / ids[i]).as_posix() for i in missing], suffix, there)
        raise FileNotFoundError(
            f"{table.name}: {len(missing)} of {len(names)} rows have no file in {found.path / folder}, first {first}. "
            f"{hint}"
        )
    if table.header and (folder / f"{table.header[0]}{suffix}").as_posix() in there:
        raise LabelError(
            f"{table.name}: the first line is taken for a header, but {table.header[0]}{suffix} is a picture. "
            "Pass skip_header=False."
        )
    return names


def _missing_hint(names: list[str], suffix: str, there: set[str]) -> str:
    for extension in ("", *EXTENSIONS):
        fixed = sum(name + extension in there for name in names) if extension != suffix else 0
        if fixed:
            return f"Did you mean suffix={extension!r}? It finds {fixed} of them."
    plain = {unicodedata.normalize("NFC", name) for name in there}
    twins = sum(unicodedata.normalize("NFC", name + suffix) in plain for name in names)
    if twins:
        return f"{twins} of them are there in another Unicode form (NFC or NFD). Write them as the files are named."
    return "Check the folder, or remove these rows."


def _label_texts(table: Table, form: LabelForm) -> tuple[list[tuple[str, ...]], bool]:
    """Splits the label column; says what was decided."""
    if form.continuous:
        return [tuple(row[1:]) for row in table.rows], False
    width = len(table.rows[0])
    if width > 2:
        warnings.warn(
            f"{table.name} has {width} columns; the first is the file, the second the label, the others are not used.",
            UserWarning,
            stacklevel=5,
        )
    several = [_split_tags(row[1], form.cat_separator) for row in table.rows]
    is_multi = any(len(tags) > 1 for tags in several) if form.multi is None else form.multi
    texts: list[tuple[str, ...]] = several if is_multi else [(row[1],) for row in table.rows]
    if not is_multi:
        empty = [where for row, where in zip(table.rows, table.where, strict=True) if not row[1].strip()]
        if empty:
            raise LabelError(f"{table.name}: {empty[0]} has no label. Fill it in, or remove the row.")
    if form.multi is None:
        kind = f"several labels, separated by {form.cat_separator!r}" if is_multi else "one label"
        print(f"{table.name}: a picture has {kind}; multi={not is_multi} would change that")
    return texts, is_multi


def _split_tags(text: str, cat_separator: str) -> tuple[str, ...]:
    parts = text.split() if cat_separator == " " else [part.strip() for part in text.split(cat_separator)]
    return tuple(sorted({part for part in parts if part}))


def _without_repeats(names: list[str], texts: list[tuple[str, ...]], table: Table) -> npt.NDArray[np.int64]:
    first: dict[str, int] = {}
    differing = [(j, i) for i, name in enumerate(names) if texts[i] != texts[j := first.setdefault(name, i)]]
    if differing:
        shown = "; ".join(
            f"{printable(table.rows[i][0])} in {table.where[j]} and {table.where[i]}: "
            f"{' '.join(texts[j])!r} and {' '.join(texts[i])!r}"
            for j, i in differing[:5]
        )
        raise LabelError(
            f"{table.name}: {len(differing)} row(s) give another label than an earlier row of the same picture, first "
            f"{shown}. Keep one row for each picture."
        )
    if len(first) < len(names):
        twins = len(names) - len(first)
        warnings.warn(f"{table.name}: {twins} row(s) repeat another and are left out.", UserWarning, stacklevel=5)
    return np.array(list(first.values()), np.int64)


def _categories(texts: list[tuple[str, ...]], name: str, is_multi: bool) -> Labels:
    classes = sorted({tag for tags in texts for tag in tags})
    check_classes(classes, name)
    index = {tag: i for i, tag in enumerate(classes)}
    if not is_multi:
        return Labels(np.array([index[tags[0]] for tags in texts], np.int64), classes)
    y = np.zeros((len(texts), len(classes)), np.float32)
    for row, tags in zip(y, texts, strict=True):
        row[[index[tag] for tag in tags]] = 1
    return Labels(y, classes, is_multi=True)


def _numbers(texts: list[tuple[str, ...]], table: Table, kept: npt.NDArray[np.int64]) -> Labels:
    y = np.empty((len(texts), len(texts[0])), np.float32)
    for i, fields in enumerate(texts):
        y[i] = [_number(text) for text in fields]
        if not np.isfinite(y[i]).all():
            raise LabelError(
                f"{table.name}: {table.where[kept[i]]} must have finite numbers, got {list(fields)}. Mend or remove it."
            )
    return Labels(y[:, 0] if y.shape[1] == 1 else y, [], is_reg=True)


def _number(text: str) -> float:
    """Reads a number; NaN when it is none, or does not fit into float32."""
    try:
        value = float("nan") if "_" in text else float(text)
    except ValueError:
        return float("nan")
    return value if abs(value) <= float(np.finfo(np.float32).max) else float("nan")
