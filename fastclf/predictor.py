"""Trained models without their training data: `load` one, and let it predict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fastclf import rebuild
from fastclf.argument_checks import check_count
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.checkpoint import models_in, read_info
from fastclf.data import truth
from fastclf.data.dataset import Dataset
from fastclf.data.loader import LoaderOptions, RowLoader
from fastclf.data.options import as_device, as_threads
from fastclf.data.served import BlockServer, block_server
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.labels import Labels
from fastclf.data.sources.names import printable
from fastclf.data.sources.row_labels import LabelledRows
from fastclf.data.sources.tables.rules import Column
from fastclf.data.stream import ImageBlock, blocks, items, row_blocks
from fastclf.errors import BadImageError, CheckpointError, GpuMemoryError
from fastclf.models.head import FINALS
from fastclf.models.net import Net, head_of
from fastclf.paths import given_path
from fastclf.predictions import Predictions, joined
from fastclf.report import Progress, counted, remedy
from fastclf.settings import own_settings
from fastclf.training.forward import Objective, scores_of
from fastclf.training.losses import default_loss
from fastclf.training.metrics import mark_without_prediction
from fastclf.training.resume import load_model

if TYPE_CHECKING:
    from fastclf.interpret.evaluation import Evaluation

OnBadImage = Literal["raise", "nan"]
_SHOWN = 5


@own_settings()
def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    num_workers: int | None = None,
    custom_head: nn.Module | None = None,
    model: nn.Module | None = None,
) -> Classifier:
    """Load a saved model for predictions; neither the training data nor their folder is needed.

    Args:
        path: what ``learn.save(name)`` wrote: ``models/NAME``, with or without ``.json``, or a folder with one model.
        device: where it predicts; the GPU when there is one.
        num_workers: threads that decode; as many as processors, at most 8.
        custom_head: the head, untrained, of a model with a head of your own.
        model: the network, untrained, of a model that is wholly your own.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such model; names those that there are.
        CheckpointError: a file is damaged, no model of fastclf's, or lacks something; says what.
        BackendError: a package that the architecture comes from is not installed.
    """
    place = _find(given_path(path)).absolute()  # os.chdir may come later
    tensors, info = load_model(place)
    where = f"{place}.json"
    _check(info, where, custom_head, model)

    def rebuilt() -> Classifier:
        network = rebuild.network(info, tensors, where, custom_head, model)
        return Classifier(place, network, info, as_device(device), as_threads(num_workers))

    with ThreadPoolExecutor(1) as own:  # torch's threads end with it, so that a server may fork what it has loaded
        return own.submit(rebuilt).result()


class Classifier:
    """A trained model that predicts, made by `load`.

    Attributes:
        classes: names of the classes; empty in a regression.
        kind: ``"one"`` label per image, ``"several"``, or ``"numbers"``.
        arch: the network, as ``'source:name'``.
        decision: the temperature and thresholds that were tuned, see `Decision`.
        tfms: how an image becomes the network's input; None for a model of activations.
        device: where it predicts.
        place: the path of the saved model, without suffix.
        info: all that the file says of the model, ``info["versions"]`` among it.
    """

    def __init__(
        self, place: Path, model: nn.Module, info: dict[str, Any], device: torch.device, num_threads: int
    ) -> None:
        self.place = place
        self.model = rebuild.to_device(model, device)
        self.classes: list[str] = info["classes"]
        self.kind: str = info["labels"]
        self.arch: str = info["arch"]
        self.tfms = rebuild.transforms(info)
        self.decision = rebuild.saved_decision(info, f"{place}.json")
        self.device, self.info = device, info
        self._threads = num_threads
        self._servers: dict[tuple[str, int], list[BlockServer]] = {}  # idle ones, by kind of block and batch size
        crit = default_loss(is_multi=self.kind == "several", is_reg=self.kind == "numbers")
        self._objective = Objective(self.model, crit)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles, such as those of a pool of processes, start what decodes by themselves."""
        return self.__dict__ | {"_servers": {}}

    def __repr__(self) -> str:
        """Describe the model in one line."""
        takes = "rows of activations" if self.tfms is None else f"images of {self.tfms.sz} x {self.tfms.sz}"
        gives = f"{self.info['c']} number(s)" if self.kind == "numbers" else f"{len(self.classes)} classes"
        return f"Classifier: {printable(self.arch)}, {takes}, {gives}, on {self.device}"

    @long_call(NOTHING_CHANGED)
    def predict(
        self, x: Any, topk: int = 1, batch_size: int = 64, on_bad: OnBadImage = "raise", unknown: float | None = None
    ) -> Predictions:
        """Predict images of any number and kind; memory grows with the predictions alone.

        With the batch size of ``learn``'s data and the same images in the same order, the outputs are those of
        ``learn.predict`` (without precompute, which rounds activations) to the last bit.

        Files are decoded in a process of its own first, so that none of them can end this one.

        Args:
            x: a pattern such as ``"new/*.jpg"``; a folder, which is searched with all folders in it; a file; a PIL
                image; pixels, ``[H, W, 3]`` or ``[N, H, W, 3]`` as array, ``[3, H, W]`` or ``[N, 3, H, W]`` as tensor,
                uint8 or floats in 0..1, of any size; or anything that yields these but patterns, such as a list, a
                column of a data frame, or a generator; or a `Source` of encoded images. For a model of activations,
                rows ``[N, F]``.
            topk: how many of the most probable classes tables show.
            batch_size: images at once.
            on_bad: what happens when an image cannot be decoded: ``"raise"`` names it, ``"nan"`` goes on: its outputs
                are NaN, its label is None, and `Predictions.bad` says why.
            unknown: answers "none of these" where the model is so unsure that this share of images of its own classes
                would be refused, such as .05; needs a model that was saved after ``learn.calibrate()``.

        Raises:
            BadImageError: images cannot be decoded; names those of the batches that were being made.
            FileNotFoundError: there is no such file or folder, or no image in it.
            TypeError: x stands for no images.
            ValueError: pixels of a wrong shape, type or range.
        """
        parts = list(self.stream(x, topk, batch_size, on_bad, unknown))
        nothing = np.empty((0, self.info["c"]), np.float32)
        return joined(parts) if parts else Predictions(nothing, self.classes, [], self.kind, topk)

    def stream(
        self, x: Any, topk: int = 1, batch_size: int = 64, on_bad: OnBadImage = "raise", unknown: float | None = None
    ) -> Iterator[Predictions]:
        """Yield what `predict` returns in parts, as they are made; no memory grows. Arguments as there."""
        check_count("predict", "topk", topk)
        check_count("predict", "batch_size", batch_size)
        if on_bad not in ("raise", "nan"):
            raise ValueError(f"predict: on_bad must be 'raise' or 'nan', got {on_bad!r}.")
        if topk > 1 and self.kind != "one":
            raise ValueError(
                f"predict: topk={topk} needs a model that gives one label, and this one gives {self.kind}."
            )
        if unknown is not None:
            if self.kind != "one":
                raise ValueError(
                    f"predict: unknown needs a model that gives one label, and this one gives {self.kind}."
                )
            self.decision.least_confidence(unknown)  # an error now, not after predicting
        parts = self._parts(x, min(topk, max(1, len(self.classes))), batch_size, on_bad)
        return (replace(part, unknown=unknown) for part in parts)

    @long_call(NOTHING_CHANGED)
    def evaluate(
        self,
        x: Any,
        y: Any = None,
        *,
        csv: str | os.PathLike[str] | None = None,
        folder: str = ".",
        suffix: str = "",
        fn_col: Column | None = None,
        label_col: Column | Sequence[Column] | None = None,
        split_col: Column | None = None,
        topk: int = 5,
        unknown: float | None = None,
        batch_size: int = 64,
        on_bad: OnBadImage = "raise",
    ) -> Evaluation:
        """Return how good the predictions are for labelled images, as `Learner.evaluate` does.

        Args:
            x: a folder with a folder per class; with ``csv``, the images' folder; with ``y``, what `predict` takes;
                or images that came with their labels (`fastclf.data.sources.row_labels.LabelledRows`).
            y: what the images are: names or numbers of classes; of several labels lists of names, or 0 and 1
                ``[N, C]``; in a regression numbers.
            csv: a table of file names and labels, read as by `from_csv`; every row must have a file.
            folder: with ``csv``, where the images are, below x.
            suffix: with ``csv``, what the names in the table lack, such as ``".jpg"``.
            fn_col: with ``csv``, the column of the files, by name or counted from 0, as in `from_csv`.
            label_col: with ``csv``, the column of the labels; or a list of columns of 0 and 1.
            split_col: with ``csv``, the column of train, valid and test: the rows for test alone count, or those for
                validation where none is for test.
            topk: see `Learner.evaluate`, as ``unknown``.
            unknown: see there.
            batch_size: see `predict`, as ``on_bad``; images that cannot be decoded are left out of all figures.
            on_bad: see there.

        Raises:
            LabelError: a class is none of the model's; names them.
            FileNotFoundError: a folder, the table or the file of a row is missing.
            ValueError: arguments do not fit. Errors of `predict` as there.
        """
        from fastclf.interpret.evaluation import evaluate

        packed = isinstance(x, LabelledRows)
        if (y is None and not isinstance(x, str | os.PathLike) and not packed) or (y is not None and csv is not None):
            raise ValueError("evaluate: pass a folder of class folders, a folder and csv=, or images and y=.")
        like = Labels(np.zeros((0, self.info["c"])), self.classes, self.kind == "several", self.kind == "numbers")
        if packed:
            x, labels = x.source, truth.of_rows(x, like)
        elif y is None and csv is None:
            x, labels = truth.of_folder(given_path(x), self.classes)
        elif csv is not None:
            x, labels = truth.of_table(
                given_path(x), given_path(csv), like, folder, suffix, fn_col, label_col, split_col
            )
        made = self.predict(x, batch_size=batch_size, on_bad=on_bad)
        if y is not None:
            labels = truth.of_list(y, like, len(made))
        targets = mark_without_prediction(torch.from_numpy(labels.y), torch.from_numpy(np.isnan(made.outputs).any(1)))
        kind = f"{like.c} number(s)" if like.is_reg else f"{like.c:,} {'labels' if like.is_multi else 'classes'}"
        return evaluate(made.outputs, targets.numpy(), labels, self.decision, topk=topk, unknown=unknown, title=kind)

    @long_call("nothing was written; call it again.")
    def export(self, path: str | os.PathLike[str] | None = None, format: str | None = None) -> Path:
        """Write the classifier as one file, see `fastclf.models.export.write_model`; return its path.

        Args:
            path: the file; by default ``NAME.onnx`` or ``NAME.pt2`` beside the saved model.
            format: ``"onnx"``, or ``"pt2"`` for a program of torch.export; by default what the path's ending says, and
                ONNX where it says nothing.

        Raises:
            ExportError: the network does something that cannot be written, or the file computes something else.
            ValueError: there is no such format, the path's ending is another's, or the model takes activations, or
                is wholly your own.
        """
        from fastclf.models.export import format_for, write_model

        if self.tfms is None or not isinstance(self.model, Net):
            raise ValueError("export: the model must be a network of fastclf's that takes images")
        default = self.place.with_name(f"{self.place.name}.{format or 'onnx'}")
        file = default if path is None else given_path(path)
        format = format_for(file, format)
        write_model(file, self.model, self.tfms, self.classes, self.kind, self.decision.to_dict(), format)
        return file

    def _parts(self, x: Any, topk: int, batch_size: int, on_bad: OnBadImage) -> Iterator[Predictions]:
        if self.tfms is None:
            for rows in row_blocks(x, self._n_in):
                ds = Dataset(ArraySource(Path("/"), rows), Labels(np.zeros(len(rows), np.int64), [], known=False))
                scores, _ = scores_of(self._objective, RowLoader(ds, self._options(batch_size)))
                yield self._predictions(scores, [None] * len(rows), topk, {})
            return
        found = items(x)
        total = len(found) if isinstance(found, list) else None
        with nullcontext() if total is None else Progress(total, "predict", "images") as progress:
            advance = progress.advance if progress is not None else lambda _: None
            for block in blocks(found, batch_size):
                yield self._of_block(block, topk, batch_size, on_bad, advance)

    @own_settings()
    def _of_block(
        self, block: ImageBlock, topk: int, batch_size: int, on_bad: OnBadImage, advance: Callable[[int], object]
    ) -> Predictions:
        files = [item.name for item in block.items]
        bad = {row: item.why for row, item in enumerate(block.items) if item.why}
        fatal = bad if on_bad == "raise" else {}  # grows while the batches are made
        _raise_bad(files, fatal)
        idle = self._servers.setdefault((block.items[0].kind, batch_size), [])
        assert self.tfms is not None
        try:
            server = idle.pop()
        except IndexError:  # not asked for before: another thread could take the last one in between
            server = block_server(self.tfms, self._options(batch_size))
        scores = torch.full((len(files), self.info["c"]), torch.nan, dtype=torch.float32)
        with torch.inference_mode(), closing(server.batches(block, bad)) as batches:
            for rows, images in batches:
                _raise_bad(files, fatal)
                scores[torch.from_numpy(rows)] = self._scores(images).reshape(-1, self.info["c"])
                advance(len(rows))
        _raise_bad(files, fatal)
        idle.append(server)
        return self._predictions(scores, files, topk, bad)

    def _scores(self, images: Tensor) -> Tensor:
        try:
            return self._objective.scores(images.to(self.device)).cpu()
        except torch.OutOfMemoryError as error:
            raise GpuMemoryError(
                f"predict: a batch of {len(images)} images is too large for the GPU's memory: {error}. Pass a smaller "
                "batch_size."
            ) from error

    def _predictions(self, scores: Tensor, files: list[str | None], topk: int, bad: dict[int, str]) -> Predictions:
        outputs = self.decision.outputs(self._objective, scores, several=self.kind == "several")
        return Predictions(outputs, self.classes, files, self.kind, topk, bad, self.decision)

    def _options(self, batch_size: int) -> LoaderOptions:
        return LoaderOptions(batch_size, 0, self.device, self._threads)

    @property
    def _n_in(self) -> int | None:
        """Columns of the rows that a head of ours takes."""
        head = head_of(self.model)
        return None if head is None else head.n_in


def _raise_bad(files: list[str | None], reasons: dict[int, str]) -> None:
    if not reasons:
        return
    named = {files[row] or f"image {row}": why for row, why in sorted(reasons.items())}
    shown = "; ".join(f"{printable(name)}: {why}" for name, why in list(named.items())[:_SHOWN])
    go_on = remedy('on_bad="nan"', "--on-bad nan")
    raise BadImageError(
        f"predict: {counted(len(named), 'image')} cannot be decoded. First: {shown}. Pass {go_on} to go on: their "
        "predictions are NaN.",
        named,
    )


def _find(path: Path) -> Path:
    """Return the place of a saved model, without suffix."""
    if path.suffix == ".json" and path.is_file():
        return path.with_suffix("")
    if path.suffix == ".safetensors" and path.is_file():
        return _pointing_to(path)
    if path.is_dir() and not path.with_name(f"{path.name}.json").is_file():
        models = models_in(path) or models_in(path / "models")
        if len(models) != 1:
            there = ", ".join(model.name for model in models) or "none"
            raise FileNotFoundError(f"load: {path} must hold one saved model, or name one of them; there: {there}")
        return models[0]
    below = Path("models") / path
    return below if not _is_model(path) and _is_model(below) else path


def _is_model(place: Path) -> bool:
    return place.with_name(f"{place.name}.json").is_file()


def _pointing_to(weights: Path) -> Path:
    for place in models_in(weights.parent):
        if read_info(place)["weights"] == weights.name:
            return place
    raise CheckpointError(f"load: {weights} are weights alone: the model's .json, saved with them, is not beside them")


def _check(info: dict[str, Any], where: str, custom_head: nn.Module | None, model: nn.Module | None) -> None:
    """Check that a file says all that is needed, in the types that are expected."""
    lacking = [key for key in ("labels", "c", "classes", "arch", "transforms") if key not in info]
    if lacking:
        raise CheckpointError(
            f"load: {where} was saved by an earlier version and lacks {', '.join(lacking)}. Load it into a learner "
            "with learn.load(name), and save it again."
        )
    c, classes = info["c"], info["classes"]
    sound = type(c) is int and c > 0 and info["labels"] in [*FINALS] and isinstance(info["arch"], str)
    if not sound or len(classes) != (0 if info["labels"] == "numbers" else c):
        raise CheckpointError(f"load: {where} is not a description of a model: labels, c, classes or arch do not fit")
    given = {"custom_head": model if custom_head is None else custom_head, "model": model}
    missing = {argument: part for argument, part in rebuild.not_rebuilt(info).items() if given.get(argument) is None}
    if missing:
        what, passed = ", ".join(missing.values()), ", ".join(f"{argument}=..." for argument in missing)
        raise CheckpointError(f"load: {where}: {what} cannot be rebuilt from the file. Pass {passed} to load.")
