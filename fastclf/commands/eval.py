"""``fastclf eval``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fastclf.commands.answers import show_found
from fastclf.commands.data import PACKED, add_model_arguments, add_table_arguments, path_argument, table_argument
from fastclf.commands.sources import kind_given, options_for, rows_of
from fastclf.files import publish_table
from fastclf.report import log_to_stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument(
        "data", metavar="DATA", type=path_argument, help=f"a folder with <class>/, such as photos/valid; or {PACKED}"
    )
    add_table_arguments(parser)
    parser.add_argument("--out", type=table_argument, metavar="FILE", help="write the row of every class as a CSV file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--on-bad", choices=("raise", "nan"), default="raise", help="images that cannot be decoded")


def _by_name(path: Path, classes: Sequence[str], pat: str, folder: str = ".") -> tuple[list[str], list[str]]:
    """Return the images below a folder, and the classes that their names have in them."""
    from fastclf.data.sources.listing import find_files
    from fastclf.data.sources.name_labels import label_by, labelled_by_name

    found = find_files(path, folder, allow_outside=True)
    names, labels, _ = labelled_by_name(found, label_by(pat), classes)
    return [str(found.place(name)) for name in names], [classes[i] for i in labels.y]


def run(arguments: argparse.Namespace) -> None:
    """Show how good the model is."""
    log_to_stderr()  # stdout is for the result
    from fastclf.predictor import load

    kind = kind_given(arguments, arguments.data)
    options = options_for(kind, arguments)
    clf = load(arguments.model, device=arguments.device)
    how = {"batch_size": arguments.bs, "on_bad": arguments.on_bad}
    if kind in ("csv", "folders"):
        found = clf.evaluate(arguments.data, **options, **how)
    elif kind == "name_re":
        found = clf.evaluate(*_by_name(arguments.data, clf.classes, **options), **how)
    else:
        found = clf.evaluate(rows_of(kind, [arguments.data], options, labelled=True), **how)
    each = found.to_dict()["each"]
    if arguments.out is not None:
        columns = list(each[0])
        publish_table(arguments.out, columns, [[row[name] for name in columns] for row in each])
    show_found(arguments, found)
