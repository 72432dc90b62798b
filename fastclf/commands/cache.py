"""``fastclf cache list`` and ``fastclf cache prune``."""

from __future__ import annotations

import argparse
import re
import time
from itertools import groupby
from pathlib import Path

from fastclf.commands.data import path_argument
from fastclf.commands.sources import files_by_set, kind_of
from fastclf.report import show

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("action", choices=("list", "prune"), help="show what is there, or remove what is not needed")
    parser.add_argument(
        "data",
        nargs="?",
        type=path_argument,
        metavar="DATA",
        help="a data folder, or archives or parquet files, beside this user's cache",
    )
    parser.add_argument("--keep", type=_size, metavar="SIZE", help="prune: bytes that may stay, such as 500MB or 2GB")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="prune: what nobody has used for so long")


def run(arguments: argparse.Namespace) -> None:
    """Show what is kept; or remove some, and show how much that freed."""
    from fastclf.activations import prune
    from fastclf.data.sources.patterns import common_folder

    if arguments.data is not None and kind_of(arguments.data) in ("shards", "parquet"):
        arguments.data = common_folder([file for files in files_by_set(arguments.data).values() for file in files])
    limits = {"keep": arguments.keep, "older_than": arguments.older_than}
    if arguments.action == "prune":
        show(f"freed {prune(arguments.data, **limits) / 1e6:,.1f} MB")
    elif any(limit is not None for limit in limits.values()):
        raise ValueError("list takes no limits; did you mean prune?")
    show(_listed(arguments.data))


def _listed(data: Path | None) -> str:
    from fastclf.activations import cached, cached_copies
    from fastclf.interpret.tables import aligned

    cells = [["activations of", "rows or files", "MB", "days unused", "folder"]]
    for store in cached(data):
        about = store.about or {"arch": "of another version of fastclf"}
        images = about.get("transforms", {})
        what = about["arch"]
        if images:
            what += f", {images['sz']} px{', augmented' * images['train']}, {about['dtype']}"
        cells.append([what, *_amounts(store.rows, store.size, store.last_used), str(store.folder)])
    for folder, each in groupby(cached_copies(data), lambda copy: copy.path.parent):
        copies = [*each]
        size, last_used = sum(copy.size for copy in copies), max(copy.last_used for copy in copies)
        what = "indexes of archives" if folder.name == "shards" else "decoded copies"
        cells.append([what, *_amounts(len(copies), size, last_used), str(folder)])
    return "\n".join(aligned(cells)) if len(cells) > 1 else "nothing is kept"


def _amounts(n: int, size: int, last_used: float) -> list[str]:
    return [f"{n:,}", f"{size / 1e6:,.1f}", f"{(time.time() - last_used) / (24 * 3600):.0f}"]


def _size(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+) ?([kmgt]?)b?", text.lower(), re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} must be a size such as 500MB or 2GB")
    return float(match[1]) * _UNITS[match[2]]
