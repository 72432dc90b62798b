"""``fastclf predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fastclf.commands.data import PACKED, add_model_arguments, add_table_arguments, table_argument
from fastclf.commands.sources import kind_given, options_for, rows_of
from fastclf.data.sources.names import printable
from fastclf.files import publish_table
from fastclf.paths import given_path
from fastclf.report import counted, encodable, encoding_of, json_text, log_to_stderr, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help=f"image files, folders (with all folders in them) or patterns; or {PACKED}",
    )
    add_table_arguments(parser, labelled=False)
    parser.add_argument("--out", type=table_argument, metavar="FILE", help="write a CSV file instead of lines")
    parser.add_argument("--topk", type=int, default=1, help="how many of the most probable classes are shown")
    parser.add_argument(
        "--all-probs", action="store_true", help="the probability of every class, too, as NAME or p(NAME)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per image, a line each")
    parser.add_argument(
        "--unknown",
        type=float,
        metavar="SHARE",
        help="answer 'none of these', at this rate of false refusals; needs a model of train --calibrate",
    )


def run(arguments: argparse.Namespace) -> int:
    """Predict; return 1 where an image cannot be decoded, whose cells are empty then."""
    log_to_stderr()  # stdout is for predictions
    from fastclf.predictor import load

    if arguments.json and arguments.out is not None:
        raise ValueError("--json and --out exclude each other: --out writes a CSV file. Leave one of them out.")
    if arguments.out is None and sys.stdout is None:
        raise ValueError("stdout is closed, so that nobody would see the predictions. Pass --out FILE.")
    images = _images(arguments)
    clf = load(arguments.model, device=arguments.device)
    bad: dict[str, str] = {}
    n, everything = 0, arguments.all_probs

    def parts() -> Iterator[Any]:
        nonlocal n
        for part in clf.stream(images, arguments.topk, arguments.bs, "nan", arguments.unknown):
            bad.update({str(part.files[row]): why for row, why in part.bad.items()})
            n += len(part)
            yield part

    if arguments.out is not None:
        found = parts()
        first = next(found)
        rows = chain.from_iterable(part.rows(everything) for part in chain([first], found))
        publish_table(arguments.out, first.columns(everything), rows)
        show(f"{counted(n, 'prediction')} written to {arguments.out}", sys.stderr)
    else:
        _print(parts(), _as_json if arguments.json else _as_text, sys.stdout, everything)
    for name, why in bad.items():
        show(f"fastclf predict: {printable(name)} cannot be decoded: {why}", sys.stderr)
    return int(bool(bad))


def _images(arguments: argparse.Namespace) -> Any:
    """Return what `Classifier.predict` takes for the images that were named."""
    first, *others = arguments.images
    kind = "folders" if others and arguments.csv is None else kind_given(arguments, given_path(first))
    options = options_for(kind, arguments)
    if kind == "csv":
        if others:
            raise ValueError("with --csv, IMAGES must be the one folder that the names are relative to")
        return _named(given_path(first), **options)
    if kind == "folders":
        return arguments.images if others else first
    return rows_of(kind, given_path(first), options, labelled=False).source


def _named(path: Path, csv: Path, folder: str = ".", suffix: str = "", fn_col: str | int | None = None) -> list[str]:
    """Return the files that a table names, below a folder; a column 'file' names them unless another one is chosen."""
    from fastclf.data.sources.listing import find_files
    from fastclf.data.sources.tables.reading import read_csv
    from fastclf.data.sources.tables.resolve import named_files
    from fastclf.data.sources.tables.rules import TableRules

    table = read_csv(csv, path, None, "utf-8-sig")
    if fn_col is None and (table.header or []).count("file") == 1:
        fn_col = "file"
    rules = TableRules("predict", suffix, fn_col=fn_col)
    found = find_files(path, folder, allow_outside=True)
    return [str(found.place(name)) for name in named_files(table, found, rules)]


def _print(parts: Iterator[Any], written: Callable[[Any, list[Any]], str], stream: TextIO, everything: bool) -> None:
    for part in parts:
        for row in part.rows(everything):
            stream.write(f"{encodable(written(part, row), stream)}\n")
        stream.flush()


def _as_json(part: Any, row: list[Any]) -> str:
    columns = part.columns()
    cells = dict(zip(columns, row, strict=False))
    if len(row) > len(columns):  # of every class, which may be called as a column is
        cells["probs"] = dict(zip(part.classes, row[len(columns) :], strict=True))
    return json_text(cells, encoding_of())


def _as_text(_: Any, row: list[Any]) -> str:
    texts = (f"{cell:.4f}" if isinstance(cell, float) else "" if cell is None else printable(str(cell)) for cell in row)
    return "\t".join(texts)
