"""``fastclf audit``: ``audit.csv`` has every finding, ``plots/`` the images of the first ones."""

from __future__ import annotations

import argparse
from functools import partial

from fastclf.commands.answers import add_answer_arguments, add_learner_arguments, answer, learner, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_learner_arguments(parser)
    add_answer_arguments(parser, folds=True, writes="audit.csv, with every finding, and plots of the first ones")


def run(arguments: argparse.Namespace) -> int:
    """Show what `learn.audit` finds; return 1 where there is something to look into."""
    start(arguments)
    found = learner(arguments).audit(arguments.k)
    kinds = dict.fromkeys(one.finding for one in found.findings)
    answer(arguments, found, {kind.replace(" ", "_"): partial(found.plot, kind) for kind in kinds})
    return int(len(found) > 0)
