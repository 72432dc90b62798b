"""Images and what they are, in the classes of a model that was trained elsewhere: from folders, tables or lists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastclf.data.sources.array_checks import check_indicators, check_values
from fastclf.data.sources.folders import labelled_by_folder
from fastclf.data.sources.labels import Labels, class_number, indicators
from fastclf.data.sources.listing import find_files, look
from fastclf.data.sources.names import printable, some
from fastclf.data.sources.row_labels import LabelledRows, LabelRules, known_labels
from fastclf.data.sources.set_names import named_as
from fastclf.data.sources.tables.reading import read_csv
from fastclf.data.sources.tables.resolve import find_rows, read_labels
from fastclf.data.sources.tables.rules import Column, TableRules
from fastclf.errors import LabelError
from fastclf.interop import as_text
from fastclf.paths import utf8_name
from fastclf.report import log


def of_folder(path: Path, classes: Sequence[str]) -> tuple[list[str], Labels]:
    """Return the images of class folders, and their labels.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        LabelError: a folder is no class of the model; names them.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"evaluate: there is no folder {path}. Check the path.")
    folders = look(path)[0]
    sets = [name for part in ("valid", "test", "train") for name in named_as(part, folders)]
    if sets and not {*map(utf8_name, folders)} & {*classes}:
        raise LabelError(f"evaluate: {path} holds the sets {some(sets)}. Pass one of them: {path / sets[0]}.")
    unknown = [name for name in folders if utf8_name(name) not in classes and look(path / name)[1]]
    if unknown:
        raise LabelError(_unknown(unknown, classes, f"the folders of {path}"))
    found = find_files(path, ".", allow_outside=True)
    names, labels, _ = labelled_by_folder(found, classes)
    return [str(found.place(name)) for name in names], labels


def of_table(
    path: Path,
    table: str | Path,
    like: Labels,
    folder: str = ".",
    suffix: str = "",
    fn_col: Column | None = None,
    label_col: Column | Sequence[Column] | None = None,
) -> tuple[list[str], Labels]:
    """Return the images that a CSV file names, and their labels.

    Args:
        path: the images' folder.
        table: the file, relative to ``path`` or to the working directory.
        like: labels of the model's kind and classes.
        folder: where the images are, below ``path``.
        suffix: what the names in the table lack.
        fn_col: the column of the files, see `ImageClassifierData.from_csv`.
        label_col: the column of the labels.

    Raises:
        FileNotFoundError: the folder, the table or a row's file is missing.
        DataError: the table or a column of it cannot be used.
        LabelError: a row cannot be used, or has a class that the model does not know.
    """
    rules = TableRules("evaluate", suffix, like.is_reg, like.is_multi, fn_col=fn_col, label_col=label_col)
    read = {"train": read_csv(table, path, None, "utf-8-sig")}
    found = find_files(path, folder, allow_outside=True)
    rows = find_rows(read, found, rules)
    wanted, values = read_labels(rows, rows.there, rules)
    log("; ".join([*rows.described(values), *rows.remarks]))
    y = values.texts if like.is_multi or like.is_reg else [text for (text,) in values.texts]
    return [str(found.place(rows.names[i])) for i in wanted], of_list(y, like, len(wanted), rows.table.name)


def of_rows(rows: LabelledRows, like: Labels) -> Labels:
    """Return the labels of images that came with them.

    Args:
        rows: of an archive, a parquet file or a data set of Hugging Face.
        like: labels of the model's kind and classes.

    Raises:
        LabelError: an image has no label, or one that the model does not know; names it.
    """
    rules = LabelRules("evaluate", None if like.is_reg else like.classes, like.is_reg)
    labels = known_labels(rows, rules)
    if labels.kind != like.kind:
        raise LabelError(
            f"evaluate: the model's images have {like.kind} label(s), and those of the data {labels.kind}."
        )
    return labels


def of_list(y: Any, like: Labels, n: int, where: str = "y") -> Labels:
    """Return labels for n images.

    Args:
        y: one label: the name or the number of each class. Several: a list of names each, or 0 and 1 ``[N, C]``.
            Numbers: ``[N]`` or ``[N, k]``.
        like: labels of the model's kind and classes.
        n: images.
        where: what holds y, for messages.

    Raises:
        LabelError: a name is no class of the model; names them.
        ValueError: they are not as many, or something else.
    """
    given = y.tolist() if hasattr(y, "tolist") else y
    values = [[*map(as_text, row)] if isinstance(row, list | tuple) else as_text(row) for row in given]
    if len(values) != n:
        raise ValueError(f"evaluate: y must have one entry per image, got {len(values):,} for {n:,} images.")
    if like.is_reg:
        numbers = _floats(values, like.c)
        check_values(numbers, -3e38, 3e38, "evaluate: y must be finite numbers", "Leave this image out, or fix it.")
        return Labels(numbers, [], is_reg=True)
    several = like.is_multi
    named = [[*row] if several and isinstance(row, Iterable) and not isinstance(row, str) else [row] for row in values]
    if several and any(named) and not any(isinstance(name, str) for row in named for name in row):
        flags = _floats(values, like.c)
        check_indicators(flags, "evaluate: y")
        return Labels(flags, like.classes, is_multi=True)
    _check_names(named, like.classes, where)
    places = {name: class_number(name, like.classes, "evaluate: y") for name in {name for row in named for name in row}}
    found = [[places[name] for name in row] for row in named]
    if not like.is_multi:
        return Labels(np.array([row[0] for row in found], np.int64), like.classes)
    return Labels(indicators(found, like.c), like.classes, is_multi=True)


def _check_names(rows: list[list[Any]], classes: Sequence[str], where: str) -> None:
    known = {*classes}
    unknown = {name for row in rows for name in row if isinstance(name, str) and name not in known}
    if unknown:
        raise LabelError(_unknown(sorted(unknown), classes, where))
    for i, row in enumerate(rows):
        if odd := [name for name in row if not isinstance(name, str | int | np.integer)]:
            must = f"names of classes or their numbers 0..{len(classes) - 1}"
            raise ValueError(f"evaluate: y must be {must}, got {odd[0]!r} in row {i}.")


def _floats(values: list[Any], c: int) -> npt.NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            found = np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluate: y must have {c} number(s) per image: {error}.") from error
    if found.shape != (len(values), c) and (found.ndim, c) != (1, 1):
        raise ValueError(f"evaluate: y must have {c} number(s) per image, got {list(found.shape)}.")
    return found.reshape(-1, c)


def _unknown(names: Sequence[str], classes: Sequence[str], where: str) -> str:
    return (
        f"evaluate: {some([printable(name) for name in names])} in {where} are not classes of the model, which knows "
        f"{some(classes)}. Rename them, or leave these images out."
    )
