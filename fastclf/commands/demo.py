"""``fastclf demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastclf.commands.data import path_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=path_argument,
        help="a folder with train/<class>/ and, if you like, valid/, test/",
    )
    parser.add_argument(
        "--out", type=path_argument, default=Path("demo_data"), help="where digits and plots are written"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the lesson."""
    from fastclf import demo

    demo.run(arguments.data, arguments.out)
