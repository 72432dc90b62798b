"""``fastclf verify``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("file", metavar="FILE", help="an exported model, .onnx or .pt2")


def run(arguments: argparse.Namespace) -> int:
    """Show how the file's answers compare with those in it; return 1 where they differ."""
    from fastclf.models.verify import main

    return main(arguments.file)
