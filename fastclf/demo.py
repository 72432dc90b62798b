"""The whole lesson, with a line of explanation before each step: ``fastclf demo [FOLDER]``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import fastclf as fc
from fastclf.data.sources.ignored import tag_as_results
from fastclf.interpret.figure import save_figure
from fastclf.report import log


def run(data_folder: Path | None, out: Path) -> None:
    """Train ``efficientnet_lite0`` on ``data_folder`` (handwritten digits when None) and save plots below ``out``."""
    mpl.use("Agg")
    start = time.monotonic()
    if data_folder is None:  # digits are unlike the images the body was trained on: it must learn fast
        lesson = Lesson(write_digits(out / "digits"), 64, [3e-3, 1e-2, 1e-2], out / "plots")
    else:
        lesson = Lesson(data_folder, 224, [1e-4, 1e-3, 1e-2], out / "plots")
    for step in (lesson.look, lesson.frozen, lesson.find, lesson.augmented, lesson.unfrozen, lesson.results):
        step()
    log(f"\nThe whole lesson took {time.monotonic() - start:.0f} s.")


def write_digits(folder: Path) -> Path:
    """Write scikit-learn's 1,797 handwritten digits (8 x 8) as PNG: 1,297 train, 400 valid, 100 test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for position, index in enumerate(order):
        digit = str(digits.target[index])
        part = f"train/{digit}" if position < 1297 else f"valid/{digit}" if position < 1697 else "test"
        target = folder / part / f"{index:04d}.png"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[index] * 255 / 16).round().astype(np.uint8)).save(target)
    return folder


class Lesson:
    """One call per step of the lesson.

    Args:
        folder: with train/<class>/ and, if there are any, valid/<class>/ and test/.
        sz: side of the images, in pixels.
        rates: one per layer group, for when all layers train.
        plots: folder for the plots.
    """

    def __init__(self, folder: Path, sz: int, rates: Sequence[float], plots: Path) -> None:
        self.rates, self.plots = rates, plots
        tag_as_results(plots)
        self.tfms = fc.tfms_from_model(fc.efficientnet_lite0, sz, aug_tfms=fc.transforms_basic, max_zoom=1.1)
        self.data = fc.ImageClassifierData.from_paths(folder, tfms=self.tfms)
        self.learn: Any = None

    def look(self) -> None:
        """Show a few training images as the network gets them."""
        data = self.data
        headline(f"Images: {len(data.trn_ds):,} to train on, {len(data.val_ds):,} to validate; {data.c} classes.")
        x, y = next(iter(data.trn_dl))
        figure = fc.plots(data.trn_ds.denorm(x[:8]), rows=2, titles=[data.classes[k] for k in y[:8].tolist()])
        self.keep(figure, "images")

    def frozen(self) -> None:
        """Cache activations and train the head on them."""
        headline("precompute=True runs the pretrained body once over all images; the head then trains in seconds.")
        self.learn = fc.ConvLearner.pretrained(fc.efficientnet_lite0, self.data, precompute=True)
        timed(lambda: self.learn.fit(1e-2, 3))

    def find(self) -> None:
        """Search for a learning rate with a new head; the activations are there already."""
        headline("lr_find raises the rate batch by batch: choose one where the loss still falls clearly.")
        fresh = fc.ConvLearner.pretrained(fc.efficientnet_lite0, self.data, precompute=True)
        fresh.lr_find()
        self.keep(fresh.sched.plot(), "lr_find")

    def augmented(self) -> None:
        """Train the head on augmented images."""
        headline("precompute=False: each epoch rotates and zooms every image anew, and varies brightness and contrast.")
        self.learn.precompute = False
        timed(lambda: self.learn.fit(1e-2, 1, cycle_len=1))

    def unfrozen(self) -> None:
        """Train all layers, with one rate per layer group and restarts."""
        headline("unfreeze, three rates for three layer groups, and SGDR: cycles of 1, 2 and 4 epochs (cycle_mult=2).")
        self.learn.unfreeze()
        timed(lambda: self.learn.fit(self.rates, 3, cycle_len=1, cycle_mult=2))
        self.keep(self.learn.sched.plot_lr(), "rates")

    def results(self) -> None:
        """Average predictions over augmented views and show where they are wrong."""
        headline("TTA: predictions averaged over each image and four augmented views of it.")
        log_preds, y = self.learn.TTA()
        probs = np.mean(np.exp(log_preds), 0)
        log(f"accuracy without TTA {fc.accuracy_np(log_preds[0], y):.4f}, with TTA {fc.accuracy_np(probs, y):.4f}")
        cm = fc.confusion_matrix(y, probs.argmax(1), classes=self.data.classes)
        log(str(cm))
        self.keep(fc.plot_confusion_matrix(cm, self.data.classes), "confusion")
        self.learn.save("demo")
        log(f"The model is saved as 'demo' in {self.data.path / 'models'}: learn.load('demo') brings it back.")

    def keep(self, plot: Any, name: str) -> None:
        """Save a figure, or the figure of axes, as PNG and print its path."""
        path = self.plots / f"{name}.png"
        save_figure(plot, path)
        log(f"saved {path}")


def headline(text: str) -> None:
    """Print the line before a step."""
    log(f"\n# {text}")


def timed(step: Callable[[], Any]) -> None:
    """Run a step and print how long it took."""
    start = time.monotonic()
    step()
    log(f"({time.monotonic() - start:.1f} s)")
