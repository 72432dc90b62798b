"""``fastclf eval``."""

from __future__ import annotations

import argparse
import json

from fastclf.commands.data import PACKED, add_table_arguments, columns_of, path_argument, table_argument
from fastclf.commands.sources import rows_of
from fastclf.files import publish_table
from fastclf.report import log_to_stderr, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", metavar="MODEL", help="a saved model: models/NAME, or a folder with one, such as a run"
    )
    parser.add_argument(
        "data", metavar="DATA", type=path_argument, help=f"a folder with <class>/, such as photos/valid; or {PACKED}"
    )
    add_table_arguments(parser)
    parser.add_argument("--out", type=table_argument, metavar="FILE", help="write the row of every class as a CSV file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--on-bad", choices=("raise", "nan"), default="raise", help="images that cannot be decoded")
    parser.add_argument("--bs", type=int, default=64, help="images at once")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU when there is one)")


def run(arguments: argparse.Namespace) -> None:
    """Show how good the model is."""
    log_to_stderr()  # stdout is for the result
    from fastclf.predictor import load

    clf = load(arguments.model, device=arguments.device)
    how = {"batch_size": arguments.bs, "on_bad": arguments.on_bad}
    rows = None if arguments.csv is not None else rows_of(arguments, arguments.data, labelled=True)
    if rows is not None:
        found = clf.evaluate(rows, **how)
    else:
        table = {"csv": arguments.csv, "folder": arguments.folder, "suffix": arguments.suffix}
        table |= columns_of(arguments, "fn_col", "label_col")
        found = clf.evaluate(arguments.data, **table, **how)
    each = found.to_dict()["each"]
    if arguments.out is not None:
        columns = list(each[0])
        publish_table(arguments.out, columns, [[row[name] for name in columns] for row in each])
    show(json.dumps(found.to_dict(), ensure_ascii=False) if arguments.json else str(found))
