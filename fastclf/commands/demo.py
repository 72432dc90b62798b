"""``fastclf demo``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "data",
        metavar="DATA",
        nargs="?",
        type=Path,
        help="a folder with train/<class>/ and, if you like, valid/, test/",
    )
    parser.add_argument("--out", type=Path, default=Path("demo_data"), help="where digits and plots are written")


def run(arguments: argparse.Namespace) -> None:
    """Run the lesson."""
    from fastclf import demo

    demo.run(arguments.data, arguments.out)
