"""What the commands that answer from cached activations share: options, the learner, and how an answer is shown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastclf.commands.data import (
    add_data_arguments,
    add_network_arguments,
    arch_named,
    new_folder,
    path_argument,
    read_data,
)
from fastclf.data.sources.ignored import tag_as_results
from fastclf.report import encoding_of, json_text, log, log_to_stderr, show

if TYPE_CHECKING:
    from fastclf.interpret.tables import Table
    from fastclf.learners.conv_learner import ConvLearner


def add_answer_arguments(parser: argparse.ArgumentParser, *, writes: str, folds: bool = False) -> None:
    """Add the options of an answer: its folds where they can be chosen, its form, and the folder for ``writes``."""
    if folds:
        parser.add_argument("--k", type=int, default=5, help="folds of the training images")
    parser.add_argument("-o", "--out", type=path_argument, metavar="FOLDER", help=f"a new folder for {writes}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def add_learner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images, and which body."""
    add_data_arguments(parser)
    add_network_arguments(parser)


def start(arguments: argparse.Namespace) -> None:
    """Keep stdout for the answer, and refuse a folder that is not new before anything is computed."""
    log_to_stderr()
    if arguments.out is not None:
        new_folder(arguments.out)


def learner(arguments: argparse.Namespace) -> ConvLearner:
    """Return a learner with cached activations of the images that the options name."""
    from fastclf import ConvLearner, tfms_from_model

    arch = arch_named(arguments.arch)
    data = read_data(arguments, tfms_from_model(arch, arguments.sz), on_bad=arguments.on_bad)
    log(repr(data))
    return ConvLearner.pretrained(arch, data, precompute=True, weights=arguments.weights)


def answer(arguments: argparse.Namespace, found: Table, plots: Mapping[str, Any]) -> None:
    """Show an answer; write its table as CSV and its plots, functions by name, where there is a folder for them."""
    if arguments.out is not None:
        import matplotlib as mpl

        from fastclf.interpret.figure import save_figure

        mpl.use("Agg")
        out = new_folder(arguments.out)
        tag_as_results(out)
        for name, plot in plots.items():
            save_figure(plot(), out / "plots" / f"{name}.png")
        found.to_csv(out / f"{arguments.command}.csv")
        log(f"saved {arguments.out}")
    show_found(arguments, found)


def show_found(arguments: argparse.Namespace, found: Any) -> None:
    """Print what a call has found, as JSON where that is asked for."""
    show(json_text(found.to_dict(), encoding_of()) if arguments.json else str(found))
