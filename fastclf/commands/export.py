"""``fastclf export``."""

from __future__ import annotations

import argparse

from fastclf.commands.data import add_model_arguments, path_argument
from fastclf.report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_model_arguments(parser, predicts=False)
    parser.add_argument(
        "-o", "--out", type=path_argument, metavar="FILE", help="the file to write (default: beside the model)"
    )
    parser.add_argument(
        "--format", choices=("onnx", "pt2"), help="ONNX, or a program of torch.export (default: by the file's ending)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the file, and show its path."""
    from fastclf.predictor import load

    clf = load(arguments.model, device="cpu")
    show(str(clf.export(arguments.out, arguments.format)))
