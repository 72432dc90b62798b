"""``fastclf predict``."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fastclf.commands.data import PACKED, add_column_arguments, path_argument, table_argument
from fastclf.commands.sources import rows_of
from fastclf.files import given_path, publish_table
from fastclf.report import counted, encodable, log_to_stderr, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="a saved model: models/NAME, or a folder with one, such as a run"
    )
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help=f"image files, folders (with all folders in them) or patterns; or {PACKED}",
    )
    add_column_arguments(parser)
    parser.add_argument("--out", type=table_argument, metavar="FILE", help="write a CSV file instead of lines")
    parser.add_argument("--topk", type=int, default=1, help="how many of the most probable classes are shown")
    parser.add_argument("--all-probs", action="store_true", help="with --out: a column for every class")
    parser.add_argument("--json", action="store_true", help="one JSON object per image, a line each")
    parser.add_argument(
        "--unknown",
        type=float,
        metavar="SHARE",
        help="answer 'none of these', at this rate of false refusals; needs a model of train --calibrate",
    )
    parser.add_argument(
        "--csv",
        type=path_argument,
        metavar="FILE",
        help="a table with a column 'file' of names, below the folder IMAGES",
    )
    parser.add_argument("--bs", type=int, default=64, help="images at once")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU when there is one)")


def run(arguments: argparse.Namespace) -> int:
    """Predict; return 1 where an image cannot be decoded, whose cells are empty then."""
    log_to_stderr()  # stdout is for predictions
    from fastclf.predictor import load

    clf = load(arguments.model, device=arguments.device)
    images = arguments.images[0] if len(arguments.images) == 1 else arguments.images
    if arguments.csv is not None:
        images = _named(arguments.csv, arguments.images)
    elif len(arguments.images) == 1:
        packed = rows_of(arguments, given_path(arguments.images[0]), labelled=False)
        images = images if packed is None else packed.source
    bad: dict[str, str] = {}
    n = 0

    def parts() -> Iterator[Any]:
        nonlocal n
        for part in clf.stream(images, arguments.topk, arguments.bs, "nan", arguments.unknown):
            bad.update({str(part.files[row]): why for row, why in part.bad.items()})
            n += len(part)
            yield part

    if arguments.out is not None:
        found, everything = parts(), arguments.all_probs
        first = next(found)
        rows = chain.from_iterable(part.rows(everything) for part in chain([first], found))
        publish_table(arguments.out, first.columns(everything), rows)
        show(f"{counted(n, 'prediction')} written to {arguments.out}", sys.stderr)
    else:
        _print(parts(), _as_json if arguments.json else _as_text, sys.stdout)
    for name, why in bad.items():
        show(f"fastclf predict: {name} cannot be decoded: {why}", sys.stderr)
    return int(bool(bad))


def _named(table: Path, folders: list[str]) -> list[str]:
    """Return the files that a table names, below a folder."""
    if len(folders) != 1:
        raise ValueError("with --csv, IMAGES must be the one folder that the names are relative to")
    with table.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if "file" not in (rows.fieldnames or ()):
            raise ValueError(f"{table} must have a column 'file', got {rows.fieldnames}")
        names = [str(given_path(folders[0]) / row["file"]) for row in rows]
    if not names:
        raise ValueError(f"{table} has no row")
    return names


def _print(parts: Iterator[Any], written: Callable[[dict[str, Any]], str], stream: TextIO) -> None:
    for part in parts:
        columns = part.columns()
        for row in part.rows():
            stream.write(f"{encodable(written(dict(zip(columns, row, strict=True))), stream)}\n")
        stream.flush()


def _as_json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _as_text(row: dict[str, Any]) -> str:
    cells = [f"{cell:.4f}" if isinstance(cell, float) else "" if cell is None else str(cell) for cell in row.values()]
    return "\t".join(cells)
