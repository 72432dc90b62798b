"""Which rows of a table are for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.set_names import SETS, set_asked, set_named
from fastclf.data.sources.split import check_val_idxs
from fastclf.data.sources.tables.columns import OFF, ON
from fastclf.data.sources.tables.reading import Cell, LabelTable
from fastclf.errors import LabelError

TRAIN, VALID, TEST = range(3)  # in the order of `SETS`

_FLAGS = {  # what 0 and 1 mean in a column that is named as a set
    "train": {"0": VALID, "1": TRAIN},
    "valid": {"0": TRAIN, "1": VALID},
    "test": {"0": TRAIN, "1": TEST},
}
_PARTITION = {"0": TRAIN, "1": VALID, "2": TEST}  # in a column of that name: CelebA's list_eval_partition


def parts_of(
    table: LabelTable, split: int | None, val_idxs: Sequence[int] | npt.NDArray[np.int64] | None
) -> tuple[npt.NDArray[np.int64], bool]:
    """Return for each row whether it is `TRAIN`, `VALID` or `TEST`.

    Returns:
        `[N] int64`, and whether validation rows are still to be chosen.

    Raises:
        ValueError: val_idxs do not fit, or more than one argument decides which rows are for validation.
        LabelError: the split column holds what is not understood; names the line.
    """
    given = {"val_idxs": val_idxs is not None, "split_col": split is not None, "val_csv or test_csv": bool(table.parts)}
    both = [name for name, is_given in given.items() if is_given]
    if len(both) > 1:
        raise ValueError(f"val_idxs, split_col, val_csv and test_csv exclude each other, got {' and '.join(both)}.")
    if val_idxs is not None:
        parts = np.zeros(len(table.rows), np.int64)
        parts[check_val_idxs(val_idxs, len(table.rows))] = VALID
        return parts, False
    if table.parts:
        parts = np.array([_place(part) for part in table.parts], np.int64)
    elif split is not None:
        parts = _by_column(table, split)
    else:
        return np.zeros(len(table.rows), np.int64), True
    return parts, VALID not in parts


def _by_column(table: LabelTable, split: int) -> npt.NDArray[np.int64]:
    cells = table.column(split)
    texts = [cell.strip().lower() if isinstance(cell, str) else "" for cell in cells]
    flags = {text: "1" if text in ON else "0" if text in OFF else text.removesuffix(".0") for text in set(texts)}
    if set(flags.values()) <= {"0", "1", "2"}:
        meant = _flags_of("" if table.header is None else table.header[split])
        values = [meant.get(flags[text], -1) for text in texts]
    else:
        values = [_place(text) for text in texts]
    if -1 in values:
        _refuse(table, split, cells[values.index(-1)], table.where[values.index(-1)])
    parts = np.array(values, np.int64)
    if TRAIN not in parts:
        raise LabelError(f"{table.name}: the split column {table.title(split)} has no row for training.")
    return parts


def _place(name: str) -> int:
    """Return `TRAIN`, `VALID` or `TEST`; -1 for what names no set."""
    part = set_named(name)
    return -1 if part is None else SETS.index(part)


def _flags_of(title: str) -> dict[str, int]:
    """Return what the numbers in a column mean; nothing where its title does not say."""
    part = set_asked(title)
    return _FLAGS[part] if part else _PARTITION if title.strip().lower() == "partition" else {}


def _refuse(table: LabelTable, split: int, cell: Cell, where: str) -> None:
    values = sorted({str(value) for value in table.column(split)})
    shown = ", ".join(map(repr, values[:5])) + (" ..." if len(values) > 5 else "")
    raise LabelError(
        f"{table.name}: {where} has {cell!r} in the split column {table.title(split)}, which holds {shown}. 'train', "
        "'valid' and 'test' are understood; 0, 1, True and False in a column named is_valid or is_train. For folds "
        f"pass the rows of one, e.g. val_idxs=np.flatnonzero(df[{table.title(split)}].astype(str) == {str(cell)!r})."
    )
