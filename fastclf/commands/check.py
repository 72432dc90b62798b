"""``fastclf check``."""

from __future__ import annotations

import argparse

from fastclf.commands.data import add_data_arguments, read_data
from fastclf.report import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument("--sz", type=int, default=224, help="side of the squares that a model will see, in pixels")


def run(arguments: argparse.Namespace) -> int:
    """Show what `ImageClassifierData.check` finds; return 1 where there is something to look into."""
    from fastclf.data.image_transforms import tfms_from_stats
    from fastclf.models.body import IMAGENET_STATS

    report = read_data(arguments, tfms_from_stats(IMAGENET_STATS, arguments.sz)).check()
    show(str(report))
    return int(bool(report.problems))
