"""``fastclf train``: the best model that `fine_tune` finds, or the lesson's recipe, into a run folder.

arguments.json    the arguments, versions of libraries, classes and results
epochs.csv        training loss, validation loss and metrics of every epoch
valid.csv         the prediction for every validation image, and what it is
report.html       the data, the training, figures and mistakes on one page; not where numbers are predicted
plots/            the loss over the batches of the last fit, the confusion matrix
model.json, model.*.safetensors    what `fastclf predict RUN` and ``fastclf.load(RUN)`` take
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from fastclf import ranks
from fastclf.argument_checks import check_count
from fastclf.commands.data import (
    add_data_arguments,
    add_network_arguments,
    arch_named,
    new_folder,
    path_argument,
    read_data,
)
from fastclf.data.sources.ignored import tag_as_results
from fastclf.files import publish_once, publish_table
from fastclf.report import json_text, log
from fastclf.training.callbacks import Callback
from fastclf.versions import library_versions

_AUGMENTATIONS, _AUG = ("none", "basic", "side_on", "top_down"), "side_on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_data_arguments(parser)
    parser.add_argument(
        "-o", "--out", type=path_argument, metavar="RUN", default=Path("run"), help="a new folder for the run"
    )
    add_network_arguments(parser)
    parser.add_argument("--epochs", type=int, help="the lesson's recipe: so many of the head, on the frozen body (3)")
    parser.add_argument("--lr", type=float, help="the lesson's recipe: rate of the head (0.01)")
    parser.add_argument(
        "--precompute",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the head on cached activations, which takes seconds; without, on augmented images",
    )
    parser.add_argument(
        "--unfreeze",
        type=int,
        metavar="EPOCHS",
        help="the lesson's recipe: then train all layers for so many epochs, with the rates lr/100, lr/10 and lr; "
        "0: the best head that is found, on the frozen body",
    )
    parser.add_argument("--aug", choices=_AUGMENTATIONS, help=f"augmentations where images are read (default: {_AUG})")
    parser.add_argument("--tta", action="store_true", help="average validation over augmented views as well")
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="find a temperature for the probabilities on the validation images; predict --unknown needs it",
    )
    parser.add_argument(
        "--nproc",
        type=int,
        default=1,
        metavar="N",
        help="train in so many processes, which torchrun starts: one for each GPU. The result is the same",
    )


def run(arguments: argparse.Namespace) -> int:
    """Train, and fill the run folder."""
    import matplotlib as mpl

    from fastclf.interpret.figure import save_figure

    mpl.use("Agg")
    out = new_folder(arguments.out)
    _check(arguments)
    ranks.wait()  # before one of them writes there
    learn = _learner(arguments, out)
    if ranks.is_first():
        tag_as_results(out)  # it may lie beside the images
    table = _EpochTable(out / "epochs.csv", learn)
    if _asks_for_lesson(arguments) or learn.data.is_reg:
        scores = _lesson(arguments, learn, table)
    else:
        scores = _best(arguments, learn, table)
    save_figure(learn.sched.plot_loss(), out / "plots" / "loss.png")
    if arguments.calibrate:
        learn.calibrate()
    learn.save("model")
    if not learn.data.is_reg:
        learn.report(out / "report.html")
    _finish(arguments, out, learn, dict(zip(table.columns[2:], scores, strict=True)))
    log(f"the run is in {arguments.out}: fastclf predict {arguments.out} IMAGES...")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that make no sense, before anything is computed."""
    for name, least in {"epochs": 1, "unfreeze": 0}.items():
        given = getattr(arguments, name)
        if given is not None:
            check_count("train", f"--{name}", given, least)
    if arguments.lr is not None and not 0 < arguments.lr < float("inf"):
        raise ValueError(f"--lr must be above 0, got {arguments.lr}")
    if arguments.aug is None:
        arguments.aug = _AUG
    elif arguments.aug != "none" and not _augments(arguments):
        raise ValueError(
            "--aug has no effect, as cached activations are all that is trained on. Leave it out, or pass "
            "--no-precompute, --unfreeze EPOCHS or --tta."
        )


def _augments(arguments: argparse.Namespace) -> bool:
    """Return whether augmented images are read, in training or by --tta."""
    all_layers = bool(arguments.unfreeze) or (arguments.unfreeze is None and not _asks_for_lesson(arguments))
    return all_layers or arguments.tta or not arguments.precompute


def _asks_for_lesson(arguments: argparse.Namespace) -> bool:
    rates = (arguments.lr, arguments.epochs)
    return any(value is not None for value in rates) or bool(arguments.unfreeze) or not arguments.precompute


def _best(arguments: argparse.Namespace, learn: Any, table: _EpochTable) -> list[float]:
    try:
        scores: list[float] = learn.fine_tune(callbacks=[table], unfreeze=arguments.unfreeze is None)
    except KeyboardInterrupt:
        if not table.lines or not learn.precompute:  # no head yet, or amid what would be the model
            raise
        log("stopped: the model is the best head on the frozen body")
        scores = table.lines[-1][2:]
    return scores


def _lesson(arguments: argparse.Namespace, learn: Any, table: _EpochTable) -> list[float]:
    lr = 1e-2 if arguments.lr is None else arguments.lr
    epochs = 3 if arguments.epochs is None else arguments.epochs
    scores: list[float] = learn.fit(lr, epochs, cycle_len=1, callbacks=[table])
    if arguments.unfreeze:
        learn.unfreeze()
        scores = learn.fit([lr / 100, lr / 10, lr], 1, cycle_len=arguments.unfreeze, callbacks=[table])
    return scores


def _learner(arguments: argparse.Namespace, out: Path) -> Any:
    import fastclf

    arch = arch_named(arguments.arch)
    aug = None if arguments.aug == "none" else getattr(fastclf, f"transforms_{arguments.aug}")
    tfms = fastclf.tfms_from_model(arch, arguments.sz, aug_tfms=aug, max_zoom=None if aug is None else 1.1)
    data = read_data(arguments, tfms, on_bad=arguments.on_bad)
    log(repr(data))
    return fastclf.ConvLearner.pretrained(
        arch, data, precompute=arguments.precompute, weights=arguments.weights, models_name=str(out)
    )


class _EpochTable(Callback):
    """Writes a line for every epoch of all fits."""

    def __init__(self, file: Path, learn: Any) -> None:
        from fastclf.training.metrics import name_of

        self.file, self.learn = file, learn
        self.columns = ["epoch", "trn_loss", "val_loss", *map(name_of, learn.metrics)]
        self.lines: list[list[float]] = []

    def on_epoch_end(self, metrics: list[float]) -> bool | None:
        """See `Callback`."""
        self.lines.append([len(self.lines), self.learn.sched.losses[-1], *metrics])
        publish_table(self.file, self.columns, self.lines)
        return None


def _finish(arguments: argparse.Namespace, out: Path, learn: Any, results: dict[str, float]) -> None:
    """Write validation predictions, their plot, and what the run was."""
    from fastclf.predictions import probability_columns

    data = learn.data
    values, y = learn.TTA() if arguments.tta else learn.predict_with_targs()
    values = np.exp(values) if data.trn_ds.labels.kind == "one" else values
    predictions = values.mean(0) if arguments.tta else values
    if arguments.tta:
        averaged = {f"tta_{name}": value for name, value in _scores(learn, predictions, y).items()}
        results |= averaged
        log("with TTA: " + ", ".join(f"{name} {value:.4f}" for name, value in averaged.items()))
    names = data.classes or [f"value_{i}" for i in range(data.c)]
    targets = [[data.classes[int(i)] if i >= 0 else ""] if y.ndim == 1 else i.tolist() for i in y]
    truth = ["label"] if y.ndim == 1 else [f"true_{name}" for name in names]
    rows = [
        [name, *target, *values.tolist()]
        for name, target, values in zip(data.val_ds.fnames, targets, predictions, strict=True)
    ]
    publish_table(out / "valid.csv", ["file", *truth, *probability_columns(names)], rows)
    if y.ndim == 1:
        from fastclf.interpret.confusion import confusion_matrix, plot_confusion_matrix
        from fastclf.interpret.figure import save_figure

        matrix = confusion_matrix(y, np.where(y < 0, -1, predictions.argmax(1)), classes=data.classes)
        save_figure(plot_confusion_matrix(matrix, data.classes), out / "plots" / "confusion.png")
    given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    summary = {
        "arguments": given,
        "versions": library_versions(),
        "classes": data.classes,
        "rows": {"train": len(data.trn_ds), "valid": len(data.val_ds)},
        "results": {name: value if np.isfinite(value) else None for name, value in results.items()},  # NaN is no JSON
    }
    text = json_text(summary, indent=1, allow_nan=False)
    publish_once(out / "arguments.json", lambda file: file.write_text(f"{text}\n", encoding="utf-8"))


def _scores(learn: Any, predictions: Any, y: Any) -> dict[str, float]:
    from fastclf.training.metrics import name_of

    return {name_of(metric): float(metric(predictions, y)) for metric in learn.metrics}
