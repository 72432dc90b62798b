"""Which rows of a table are for training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.split import check_val_idxs
from fastclf.data.sources.tables.columns import OFF, ON
from fastclf.data.sources.tables.reading import Cell, LabelTable
from fastclf.errors import LabelError

TRAIN, VALID, TEST = range(3)

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val", "dev", "eval"), VALID),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
# What 0 and 1 (and 2) mean in a column of this name, without 'is_', 'in_' and what follows.
_FLAGS = {
    **{name: {"0": VALID, "1": TRAIN} for name in ("train", "training")},
    **{name: {"0": TRAIN, "1": VALID} for name in ("valid", "validation", "val")},
    "test": {"0": TRAIN, "1": TEST},
    "partition": {"0": TRAIN, "1": VALID, "2": TEST},  # CelebA's list_eval_partition
}


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
        parts = np.array([_WORDS[part] for part in table.parts], np.int64)
    elif split is not None:
        parts = _by_column(table, split)
    else:
        return np.zeros(len(table.rows), np.int64), True
    return parts, VALID not in parts


def _by_column(table: LabelTable, split: int) -> npt.NDArray[np.int64]:
    cells = table.column(split)
    texts = [cell.strip().lower() if isinstance(cell, str) else "" for cell in cells]
    flags = {text: "1" if text in ON else "0" if text in OFF else text.removesuffix(".0") for text in set(texts)}
    known = _FLAGS.get(_bare_name(table, split), {}) if set(flags.values()) <= {"0", "1", "2"} else _WORDS
    values = [known.get(flags[text] if known is not _WORDS else text, -1) for text in texts]
    if -1 in values:
        _refuse(table, split, cells[values.index(-1)], table.where[values.index(-1)])
    parts = np.array(values, np.int64)
    if TRAIN not in parts:
        raise LabelError(f"{table.name}: the split column {table.title(split)} has no row for training.")
    return parts


def _bare_name(table: LabelTable, split: int) -> str:
    name = "" if table.header is None else table.header[split].strip().lower().replace(" ", "_")
    for start in ("is_", "in_", "is"):
        name = name.removeprefix(start)
    for end in ("_img", "_image", "_set"):
        name = name.removesuffix(end)
    return name


def _refuse(table: LabelTable, split: int, cell: Cell, where: str) -> None:
    values = sorted({str(value) for value in table.column(split)})
    shown = ", ".join(map(repr, values[:5])) + (" ..." if len(values) > 5 else "")
    raise LabelError(
        f"{table.name}: {where} has {cell!r} in the split column {table.title(split)}, which holds {shown}. 'train', "
        "'valid' and 'test' are understood; 0, 1, True and False in a column named is_valid or is_train. For folds "
        f"pass the rows of one, e.g. val_idxs=np.flatnonzero(df[{table.title(split)}].astype(str) == {str(cell)!r})."
    )
