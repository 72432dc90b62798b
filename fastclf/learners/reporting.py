"""How a learner shows where it looks, and what it reports in one page."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastclf.argument_checks import check_flag
from fastclf.arrays import Array
from fastclf.calls import NOTHING_CHANGED, long_call
from fastclf.data.dataset import Dataset
from fastclf.data.image import decoded, open_image
from fastclf.data.sources.labels import class_number
from fastclf.data.sources.names import printable
from fastclf.errors import BadImageError
from fastclf.files import publish_once
from fastclf.interpret import page
from fastclf.interpret.evaluation import Evaluation, probabilities
from fastclf.interpret.heatmap import Heatmap, coloured, grad_cam
from fastclf.interpret.near import look_alike, nearest_in
from fastclf.learners.evaluating import Evaluating
from fastclf.models.net import Net
from fastclf.paths import given_path
from fastclf.report import log
from fastclf.training.metrics import without_prediction
from fastclf.training.recorder import Recorder

Question = tuple[int, int]
"""A row, and the class or label whose probability is looked at."""

_IMAGES = 12  # of each gallery
_CANDIDATES = 40  # pairs whose pixels are compared


class Reporting(Evaluating):
    """The part of `Learner` that makes heatmaps and reports."""

    sched: Recorder

    @long_call(NOTHING_CHANGED)
    def heatmap(self, image: Any, cls: int | str | None = None) -> Heatmap:
        """Return where in an image the evidence for a class lies (Grad-CAM; Selvaraju et al., 2017).

        With precomputed activations too: the body runs once on this image. Of several bodies, the last is shown. The
        model is not changed.

        Args:
            image: the name of a file, a PIL image, or pixels ``[H, W, 3]``, uint8 or float in 0..1.
            cls: the name or number of a class; by default the one that is predicted.

        Raises:
            ValueError: there is no such class, or the learner has no body (`ConvLearner` has).
            BadImageError: the file cannot be decoded.
        """
        if not isinstance(self.model, Net) or self._data.tfms is None or self._data.is_reg:
            raise ValueError("heatmap: needs a ConvLearner of images and classes")
        pixels = open_image(image) if isinstance(image, str | os.PathLike) else image
        tfms, classes = self._data.tfms[1], self._data.classes
        x = torch.from_numpy(tfms(pixels))[None].to(self._data.device)
        number = int(self.predict_array(x).argmax()) if cls is None else class_number(cls, classes, "heatmap: cls")
        values = grad_cam(self.model, x, torch.tensor([number], device=x.device))[0]
        return Heatmap(tfms.denorm(x)[0], values, classes[number])

    @long_call("the page is as it was.")
    def report(self, path: str | os.PathLike[str] = "report.html", is_test: bool = False) -> Path:
        """Write one HTML page about the model, and return its path: data, training, figures, mistakes, duplicates.

        It needs no network and holds its images, so it can be sent to others: mostly below 1 MB.

        Args:
            path: of the page, relative to the working folder; written whole or not at all, over an older one.
            is_test: reports on the test set, which must have labels, instead of the validation set.

        Raises:
            ValueError: the targets are numbers, the set has no labels, or the model does not give probabilities.
        """
        check_flag("report", "is_test", is_test)
        labels = self._known_labels("report", is_test)
        if labels.is_reg:
            raise ValueError("report: is for classes, and the targets are numbers. print(learn.evaluate()) has figures")
        file = given_path(path).absolute()
        if file.is_dir():
            raise IsADirectoryError(f"report: {path} is a folder. Pass the name of a file, such as report.html.")
        preds, targs = self.predict_with_targs(is_test)
        found = self._evaluation(preds, targs, labels, is_test)
        ds = self._data.test_ds if is_test else self._data.val_ds
        assert ds is not None
        known = np.flatnonzero(~without_prediction(targs))
        text = page.render(
            **self._about(found, is_test), **self._answers(ds, preds, targs, known), **self._near(is_test)
        )
        publish_once(file, lambda temporary: temporary.write_text(text, encoding="utf-8"), waits=True)
        log(f"saved {path}")
        return file

    def _about(self, found: Evaluation, is_test: bool) -> dict[str, Any]:
        data, checked = self._data, self._data.check()
        whole = not data.is_multi
        name = "accuracy" if whole else "exact_match"
        ends = found.intervals.get(name)
        between = f" (95 % interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else ""
        what = "are named right" if whole else "have all their labels right"
        contents = ("data", "Data"), ("training", "Training"), ("figures", "Figures"), ("confusion", "Confusion")
        more = ("classes", "Classes"), ("calibration", "Calibration")
        seen = (("images", "Images"), ("duplicates", "Duplicates")) if data.tfms is not None else ()
        items = "images" if data.tfms is not None else "rows"
        return {
            "title": f"{printable(data.path.name)}: how good the classifier is",
            "items": items,
            "headline": f"Of 100 {items} like these, {100 * found[name]:.1f} {what}{between}.",
            "about": found.title,
            "contents": [*contents, *more, *seen],
            "problems": checked.problems,
            "data": str(checked),
            "learner": repr(self),
            "curves": page.curves(self.sched),
            "set": "test" if is_test else "valid",
            "made": f"Made with fastclf on {datetime.now():%Y-%m-%d %H:%M}.",
            **page.tables(found),
        }

    def _answers(self, ds: Dataset, preds: Array, targs: Array, known: Array) -> dict[str, Any]:
        """Return what the page shows of single answers."""
        y = targs[known]
        if ds.is_multi:
            probs = preds[known].astype(np.float64)
            chosen = self.decision.labels(probs)
            shown = page.label_counts(y > 0, chosen, ds.classes)
            sure, right = probs, y > 0
            wrong = np.where(chosen != (y > 0), np.abs(probs - (y > 0)), -1.0)
            doubt = np.abs(probs - np.array(self.decision.thresholds or 0.5))
            questions = _first(-wrong, wrong >= 0), _first(doubt, np.ones_like(chosen))
        else:
            probs = probabilities(preds[known])
            guess = probs.argmax(1)
            shown = page.confusion(y, guess, ds.classes)
            sure, right = probs.max(1), guess == y
            top = np.sort(probs, 1)[:, -2:]
            order = np.argsort(-sure, kind="stable"), np.argsort(top[:, -1] - top[:, 0], kind="stable")
            rows = order[0][~right[order[0]]][:_IMAGES], order[1][:_IMAGES]
            questions = tuple([(int(row), int(guess[row])) for row in part] for part in rows)  # type: ignore[assignment]
        names = (
            ("Worst mistakes", "The surest of the wrong answers. Is the label right? Is the image of another kind?"),
            ("Doubtful", "Where the model could hardly decide."),
        )
        galleries = []
        if not ds.source.holds_rows and self._data.tfms is not None:
            galleries = [
                (name, text, [self._card(ds, int(known[row]), k, probs[row], y[row]) for row, k in part])
                for (name, text), part in zip(names, questions, strict=True)
                if part
            ]
        calibration = page.calibration_plot(np.ravel(sure), np.ravel(right))
        return shown | {"calibration": calibration, "galleries": galleries, "heat": isinstance(self.model, Net)}

    def _card(self, ds: Dataset, row: int, k: int, probs: Array, y: Any) -> dict[str, Any]:
        classes = [printable(name) for name in ds.classes]
        if ds.is_multi:
            has = y[k] > 0
            lines = [(f"{classes[k]}: {100 * probs[k]:.1f} %", "false"), ("has it" if has else "lacks it", "true")]
        elif k == y:
            lines = [(f"{classes[k]}: {100 * probs[k]:.1f} %, right", "true")]
        else:
            lines = [(f"taken for {classes[k]}: {100 * probs[k]:.1f} %", "false")]
            lines.append((f"is {classes[int(y)]}: {100 * probs[int(y)]:.1f} %", "true"))
        card = {"lines": lines, "file": printable(ds.source.name(row)), "image": None, "heat": None}
        try:
            pixels = _pixels(ds, row)
        except BadImageError:  # it was decoded before, and has changed since
            card["lines"] = [*lines, ("the file cannot be read now", "false")]
            return card
        if isinstance(self.model, Net):
            found = self.heatmap(pixels, k)
            return card | {"image": page.as_jpeg(found.image), "heat": page.as_overlay(coloured(found.resized()))}
        tfms = self._data.tfms
        assert tfms is not None
        return card | {"image": page.as_jpeg(tfms[1].denorm(tfms[1](pixels)))}

    def _near(self, is_test: bool) -> dict[str, Any]:
        """Return pairs of train and the set that look the same: activations find them, pixels decide."""
        stage, data = self._stage, self._data
        rows = stage.data
        train, ds = rows.trn_ds, rows.test_ds if is_test else rows.val_ds
        assert ds is not None
        if data.tfms is None:
            return {"pairs": [], "near_note": ""}
        if not stage.has_features:
            return {
                "pairs": [],
                "near_note": "Looked for where pooled features are cached: learn.freeze() and learn.precompute = True.",
            }
        ours, theirs, cosines = nearest_in(train, ds)
        pairs = []
        for place in np.argsort(-cosines, kind="stable")[:_CANDIDATES]:
            mine, other = int(ours[place]), int(theirs[place])
            try:
                images = _pixels(ds, mine), _pixels(train, other)
            except BadImageError:
                continue
            if look_alike(*images):
                shown = [page.as_jpeg(image) for image in images]
                pairs.append(
                    {"images": shown, "names": [printable(ds.source.name(mine)), printable(train.source.name(other))]}
                )
        note = (
            "Do they show the same thing? Then the figures above are too good. groups= keeps images together."
            if pairs
            else "None found among the pairs whose activations are most alike."
        )
        if len(ours) < len(ds.bad.good_rows()):
            note += f" Only the first {len(ours):,} of {len(ds):,} images were compared, as there are so many."
        return {"pairs": pairs[:_IMAGES], "near_note": note}


def _first(order: Array, wanted: Array) -> list[Question]:
    """Return the places of a matrix with the lowest values, of those that are wanted."""
    places = np.argsort(order, axis=None, kind="stable")
    places = places[wanted.ravel()[places].astype(bool)][:_IMAGES]
    return [divmod(int(place), order.shape[1]) for place in places]


def _pixels(ds: Dataset, row: int) -> Array:
    """Return an image ``[H, W, 3] float32`` in 0..1."""
    image = decoded(ds.source, row)
    image = image / np.float32(255) if image.dtype == np.uint8 else image
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image
