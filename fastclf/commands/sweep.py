"""``fastclf sweep``."""

from __future__ import annotations

import argparse
import inspect

from fastclf.commands.answers import add_answer_arguments, add_learner_arguments, answer, learner, start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_learner_arguments(parser)
    several = {"nargs": "+", "default": argparse.SUPPRESS}  # the Python call knows what is usual
    parser.add_argument("--lr", type=float, **several, help="highest rates to try (default: .03 .1)")  # type: ignore[arg-type]
    parser.add_argument("--wd", type=float, **several, help="weight decays to try (default: by the number of images)")  # type: ignore[arg-type]
    parser.add_argument("--ps", type=float, **several, help="dropout to try (default: the usual of a head)")  # type: ignore[arg-type]
    parser.add_argument(
        "--xtra-fc",
        type=_widths,
        metavar="WIDTHS",
        **several,  # type: ignore[arg-type]
        help="hidden widths to try, such as: 0 256 512,128; 0 for no hidden layer (default: 512)",
    )
    parser.add_argument("--epochs", type=int, **several, help="epochs to try (default: by the number of images)")  # type: ignore[arg-type]
    add_answer_arguments(parser, writes="sweep.csv and the plot")


def run(arguments: argparse.Namespace) -> None:
    """Show what `learn.sweep` finds."""
    from fastclf.learners.fine_tuning import FineTuning

    start(arguments)
    names = inspect.signature(FineTuning.sweep).parameters
    grid = {name: value for name, value in vars(arguments).items() if name in names}
    found = learner(arguments).sweep(**grid)
    answer(arguments, found, {"sweep": found.plot})


def _widths(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts) or ("0" in parts and len(parts) > 1):
        raise argparse.ArgumentTypeError(f"{text!r} must be widths such as 512 or 512,128, or 0 for no hidden layer")
    return [int(part) for part in parts if part != "0"]
