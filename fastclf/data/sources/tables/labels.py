"""What the label columns of a table mean."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from fastclf.data.sources.labels import Labels, check_classes, in_order, indicators
from fastclf.data.sources.tables.columns import OFF, ON, Columns, distinct_cells, flag, is_indicator
from fastclf.data.sources.tables.reading import Cell, LabelTable
from fastclf.data.sources.tables.rules import TableRules, column_argument
from fastclf.errors import DataError, LabelError
from fastclf.report import warn

_CERTAIN = ("|", ";")  # no name holds them
_DELIMS = (*_CERTAIN, ",", " ")
_WORD = r"""'([^'\\]*)'|"([^"\\]*)"|(-?[0-9]+)"""
_ITEM = rf"{_WORD}(?:\.0*)?"  # numpy writes 1.0 as '1.'
# As str() and JSON write a list, a tuple or a set, and numpy an array; '(0, 10]' is an interval.
_LIST = re.compile(
    "|".join(
        rf"{opened}\s*(?:(?:{item})(?:{between}(?:{item}))*[\s,]*)?{closed}"
        for opened, item, between, closed in (
            (r"\[", _ITEM, r"[\s,]+", r"\]"),
            (r"\(", _WORD, r"\s*,\s*", r"\)"),
            (r"\{", _WORD, r"\s*,\s*", r"\}"),
        )
    )
)
_MANY = 20


@dataclass(frozen=True)
class Values:
    """The labels of some rows, as text.

    Attributes:
        texts: for each row its labels, sorted, or its numbers.
        is_multi: whether a row may have several labels.
        is_reg: whether they are numbers to be predicted.
        how: how they were read, and why.
        otherwise: what would read them in another way.
    """

    texts: list[tuple[str, ...]]
    is_multi: bool
    is_reg: bool
    how: str
    otherwise: str = ""


def read_values(table: LabelTable, columns: Columns, rules: TableRules) -> Values:
    """Read the label columns.

    Raises:
        DataError: a cell has no value.
        LabelError: a row has no label, or a cell is not what its column must hold.
    """
    if not columns.labels:
        return _by_folder(table, columns.file, rules)
    for position in columns.labels:
        check_no_missing(table, position)
    if rules.continuous:
        texts = [tuple(str(row[i]) for i in columns.labels) for row in table.rows]
        return Values(texts, False, True, f"numbers to predict in {_titles(table, columns.labels)}")
    if len(columns.labels) > 1:
        return _by_indicator(table, columns.labels, rules)
    return _by_text(table, columns.labels[0], rules)


def check_no_missing(table: LabelTable, position: int) -> None:
    """Raise DataError for a cell without a value in a column of a data frame; names the row."""
    cells = table.column(position)
    if None in cells:
        title = table.title(position)
        raise DataError(
            f"{table.name}: column {title} has a missing value in {table.where[cells.index(None)]}. Leave such rows "
            f"out: df.dropna(subset=[{title}]). A class named 'NA' is read as missing by default: "
            "pd.read_csv(..., dtype=str, keep_default_na=False)."
        )


def _titles(table: LabelTable, positions: Sequence[int]) -> str:
    shown = ", ".join(map(table.title, positions[:3]))
    if len(positions) == 1:
        return f"column {shown}"
    return f"columns {shown}" + (f" ... {table.title(positions[-1])}" if len(positions) > 3 else "")


def _by_folder(table: LabelTable, file: int, rules: TableRules) -> Values:
    if rules.continuous or rules.multi or rules.delim:
        raise LabelError(
            f"{table.name} has no column of labels. Add one, or leave continuous=, multi= and label_delim= out."
        )
    texts: list[tuple[str, ...]] = [
        (PurePosixPath(str(row[file]).replace("\\", "/")).parent.name,) for row in table.rows
    ]
    return Values(texts, False, False, "no column of labels: the folder of a file is its class")


def _by_indicator(table: LabelTable, positions: list[int], rules: TableRules) -> Values:
    if not is_indicator(table, positions):
        _refuse_cell(table, positions)
    on = {cell for cell in distinct_cells(table, positions) if flag(cell) in ON}
    classes = sorted((_column_class(table, i), i) for i in positions)
    rows = [tuple([name for name, i in classes if row[i] in on]) for row in table.rows]
    other = next((i for i, texts in enumerate(rows) if len(texts) != 1), None)
    titles = _titles(table, positions)
    if other is not None and rules.multi is False:
        fix = "multi=False wants one. Fix the row, or leave multi=False out." if rules.makes_data else "must have one."
        raise LabelError(f"{table.name}: {table.where[other]} has {len(rows[other])} columns with a 1, and {fix}")
    named = {text for texts in rows for text in texts}
    empty = [table.title(i) for i in positions if _column_class(table, i) not in named]
    if empty:
        warn(f"{table.name}: no row has a 1 in {', '.join(empty[:5])}, which is not a class then.")
    if other is None and not rules.multi:
        how = f"one label per image in {titles}: every row has exactly one 1"
        return Values(rows, False, False, how, "multi=True")
    why = "" if other is None else f": {table.where[other]} has {len(rows[other])} columns with a 1"
    return Values(
        rows, True, False, f"several labels per image in {titles}{why}", "multi=False" if other is None else ""
    )


def _column_class(table: LabelTable, position: int) -> str:
    return str(position) if table.header is None else table.header[position]


def _refuse_cell(table: LabelTable, positions: Sequence[int]) -> None:
    for row, where in zip(table.rows, table.where, strict=True):
        for i in positions:
            cell = row[i]
            if flag(cell) not in ON | OFF:
                raise LabelError(
                    f"{table.name}: {where} has {cell!r} in the label column {table.title(i)}: several label columns "
                    "must hold 0 and 1, or -1 and 1. Decide what other values mean, e.g. from_df(PATH, folder, "
                    "pd.read_csv(file).fillna(0).replace(-1, 1), ...); continuous=True predicts numbers."
                )


def _by_text(table: LabelTable, position: int, rules: TableRules) -> Values:
    column = table.column(position)
    cells = column if rules.multi is False else _unpacked(column)
    plain = [cell for cell in cells if isinstance(cell, str)]
    where = f"in column {table.title(position)}"
    if rules.multi is False and len(plain) < len(cells):
        raise LabelError(f"{table.name}: column {table.title(position)} holds lists, and multi=False wants one label.")
    if rules.multi is not False:
        _check_no_json(cells, table, position)
    delim, why = _choose_delim(set(plain), rules)
    if delim is not None or len(plain) < len(cells):
        lists = [_items(cell, delim) for cell in cells]
        _check_no_vectors(lists, table, position)
        texts = [tuple(sorted(set(labels))) for labels in lists]
        how = f"several labels per image {where}, " + (f"separated by {delim!r}{why}" if plain else "as lists")
        undo = "multi=False" if all(isinstance(cell, str) for cell in column) else ""
        return Values(texts, True, False, how, undo)
    known = {cell: (cell.strip(),) for cell in set(plain)}
    empty = next((row for row, cell in enumerate(plain) if not known[cell][0]), None)
    if empty is not None:
        raise LabelError(f"{table.name}: {table.where[empty]} has no label. Fill it in, or remove the row.")
    trimmed: list[tuple[str, ...]] = [known[cell] for cell in plain]
    blanks = sum(text != cell for (text,), cell in zip(trimmed, plain, strict=True))
    why += f"; blanks around {blanks} labels are taken off" if blanks else ""
    return Values(trimmed, False, False, f"one label per image {where}{why}", "multi=True or label_delim=")


def _unpacked(cells: Sequence[Cell]) -> Sequence[Cell]:
    """Lists that were written as text, such as "['a', 'b']", are lists again, when all cells are."""
    texts = {cell for cell in cells if isinstance(cell, str)}
    if not texts or not all(_LIST.fullmatch(text) for text in texts):
        return cells
    return [tuple(map("".join, re.findall(_ITEM, cell))) if isinstance(cell, str) else cell for cell in cells]


def _check_no_json(cells: Sequence[Cell], table: LabelTable, position: int) -> None:
    """Raise LabelError where some cells are lists or objects that were written as text: their text is no label."""
    written = {cell for cell in set(cells) if isinstance(cell, str) and (_LIST.fullmatch(cell) or _is_object(cell))}
    if written:
        row, title = next(i for i, cell in enumerate(cells) if cell in written), table.title(position)
        raise LabelError(
            f"{table.name}: {table.where[row]} has {cells[row]!r} in column {title}, and not all of its cells are "
            f"lists. Make lists of all, e.g. df[{title}] = df[{title}].map(f), f('a') == ['a'], then from_df(...). "
            "Or pass multi=False, for which it is one name."
        )


def _is_object(cell: str) -> bool:
    try:
        return cell.lstrip().startswith("{") and isinstance(json.loads(cell), dict)
    except ValueError:
        return False


def _items(cell: Cell, delim: str | None) -> Sequence[str]:
    if isinstance(cell, str):
        return split_tags(cell, delim) if delim else (cell,)
    return cell or ()


def _check_no_vectors(lists: Sequence[Sequence[str]], table: LabelTable, position: int) -> None:
    """Raise LabelError for lists with a 0 or 1 for each class, which are not lists of labels."""
    n, *others = {len(items) for items in lists}
    if others or n < 2 or not {item for items in lists for item in items} <= {"0", "1"}:
        return
    title = table.title(position)
    is_text = isinstance(table.rows[0][position], str)
    as_lists = f"df[{title}]" + (r'.str.findall(r"(?<![.0-9])[01]")' if is_text else "") + ".tolist()"
    raise LabelError(
        f"{table.name}: column {title} holds lists of {n} zeros and ones, one for each class, and no lists "
        f"of labels. Make a column of each class: df[NAMES] = {as_lists}, then from_df(..., label_col=NAMES)."
    )


def split_tags(text: str, delim: str) -> list[str]:
    """Split a cell into labels; a blank means any white space."""
    parts = text.split() if delim == " " else [part.strip() for part in text.split(delim)]
    return [part for part in parts if part]


def _choose_delim(texts: Collection[str], rules: TableRules) -> tuple[str | None, str]:
    """Find what stands between several labels, None where a cell is one label; and why, where that needs a word."""
    if rules.multi is False:
        return None, ""
    if rules.label_delim is not None:
        return rules.label_delim, ""
    if rules.multi:
        return rules.delim or next((delim for delim in _DELIMS if any(delim in text for text in texts)), " "), ""
    if rules.delim is not None:
        return (rules.delim, "") if any(len(set(split_tags(text, rules.delim))) > 1 for text in texts) else (None, "")
    for delim in _DELIMS:
        lists = [split_tags(text, delim) for text in texts]
        if any(len(tags) > 1 for tags in lists) and (delim in _CERTAIN or recombine(lists)):
            words = {word for tags in lists for word in tags}
            return delim, f" ({len(set(map(frozenset, lists)))} combinations of {len(words)} words)"
    name = min((text for text in texts if len(text.split()) > 1), default=None)
    return None, "" if name is None else f": {name!r} is one name, as the words of such names do not recombine"


def recombine(lists: Collection[Sequence[str]]) -> bool:
    """Tell labels from the words of a name: whether words vary independently of each other.

    Tags recombine: 17 of them make 449 combinations in a table of satellite images. A name keeps its words together,
    and brings most of them along: 'Not sure', 'red apple' and 'green apple'. So combinations of several words are
    counted, and the words in them that never stand alone: where there are more combinations than such words, the words
    are labels. So they are where the same words occur in another order.
    """
    combined = {frozenset(tags) for tags in lists if len(set(tags)) > 1}
    alone = {tags[0] for tags in lists if len(set(tags)) == 1}
    bound = {word for tags in combined for word in tags} - alone
    return len(combined) > len(bound) or len({tuple(tags) for tags in lists if len(set(tags)) > 1}) > len(combined)


def as_labels(values: Values, table: LabelTable, position: int | None) -> Labels:
    """Number the classes, or read the numbers.

    Args:
        values: of the rows of `table`.
        table: for messages.
        position: of the one column that they are from; None where there are several.

    Raises:
        LabelError: there are fewer than two classes, a class for every row, or what should be a number is none.
    """
    if values.is_reg:
        return _numbers(values.texts, table)
    classes = in_order(text for texts in values.texts for text in texts)
    check_classes(classes, table.name)
    index = {name: i for i, name in enumerate(classes)}
    if not values.is_multi:
        _check_no_id(len(classes), values, table, position)
        return Labels(np.array([index[text] for (text,) in values.texts], np.int64), classes)
    y = indicators([[index[text] for text in texts] for texts in values.texts], len(classes))
    return Labels(y, classes, is_multi=True)


def _check_no_id(c: int, values: Values, table: LabelTable, position: int | None) -> None:
    """A column with as many values as rows is no label; one with nearly as many hardly."""
    n = len(values.texts)
    if position is None or 2 * c <= n or n < _MANY:
        return
    numeric = all(np.isfinite(_number(text)) for (text,) in values.texts)
    text = (
        f"{table.name}: column {table.title(position)} has {c:,} different labels in {n:,} rows: an id rather than a "
        f"class? {column_argument('label_col')} names another column"
        + ("; for numbers to be predicted pass continuous=True." if numeric else ".")
    )
    if c == n:
        raise LabelError(text)
    warn(text)


def _numbers(texts: list[tuple[str, ...]], table: LabelTable) -> Labels:
    y = np.empty((len(texts), len(texts[0])), np.float32)
    for i, fields in enumerate(texts):
        y[i] = [_number(text) for text in fields]
        if not np.isfinite(y[i]).all():
            comma = any(re.fullmatch(r"\s*[+-]?\d+,\d+\s*", text) for text in fields)
            remedy = (
                "Decimal commas: pass from_df(..., pd.read_csv(file, sep=';', decimal=','), ...)."
                if comma
                else f"Fix or remove it, or name other columns with {column_argument('label_col')}."
            )
            raise LabelError(f"{table.name}: {table.where[i]} must have finite numbers, got {list(fields)}. {remedy}")
    return Labels(y[:, 0] if y.shape[1] == 1 else y, [], is_reg=True)


def _number(text: str) -> float:
    """Read a number; NaN when it is none, or does not fit into float32."""
    try:
        value = float("nan") if "_" in text else float(text)
    except ValueError:
        return float("nan")
    return value if abs(value) <= float(np.finfo(np.float32).max) else float("nan")
