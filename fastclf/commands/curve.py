"""``fastclf curve``."""

from __future__ import annotations

import argparse

from fastclf.commands.answers import add_answer_arguments, add_learner_arguments, answer, learner, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_learner_arguments(parser)
    add_answer_arguments(parser, folds=True, writes="curve.csv and the plot")
    parser.set_defaults(k=None)  # the Python call knows what is usual


def run(arguments: argparse.Namespace) -> None:
    """Show what `learn.learning_curve` finds."""
    start(arguments)
    found = learner(arguments).learning_curve(arguments.k)
    answer(arguments, found, {"curve": found.plot})
