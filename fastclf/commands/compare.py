"""``fastclf compare``."""

from __future__ import annotations

import argparse

from fastclf.commands.answers import add_answer_arguments, answer, start
from fastclf.commands.data import add_data_arguments, add_image_arguments, arch_named, read_data
from fastclf.report import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument(
        "archs",
        metavar="ARCH",
        nargs="+",
        help="such as efficientnet_lite0, resnet34, or a timm name; A+B is two side by side",
    )
    add_image_arguments(parser)
    add_answer_arguments(parser, folds=True, writes="compare.csv and the plot")


def run(arguments: argparse.Namespace) -> None:
    """Show what `fastclf.compare` finds."""
    from fastclf import compare, tfms_from_model

    start(arguments)
    archs = [[arch_named(name) for name in given.split("+")] for given in arguments.archs]
    data = read_data(arguments, tfms_from_model(archs[0][0], arguments.sz), on_bad=arguments.on_bad)
    log(repr(data))
    found = compare(data, [arch[0] if len(arch) == 1 else arch for arch in archs], arguments.k)
    answer(arguments, found, {"compare": found.plot})
