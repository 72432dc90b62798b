"""Five sets of images for `fine_tune`; the seed chooses which images of each are held out."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import photographs
from fastclf import (
    ImageClassifierData,
    efficientnet_lite0,
    tfms_from_model,
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)
from fastclf.demo import write_digits

Labelled = Iterator[tuple[Path, str]]
FREQUENT = 100  # images of each frequent class of `rare`


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, side ``sz``: ``train`` of them to learn from and ``valid`` held out, by seed."""

    name: str
    rows: Callable[[Path], Labelled]
    train: int
    valid: int
    sz: int
    aug: Any
    max_zoom: float = 1.1

    def table(self, folder: Path, seed: int) -> Path:
        """Where `data` writes which images there are, those to train on first."""
        return folder / f"{self.name}_{self.train}_{seed}.csv"

    def data(self, folder: Path, seed: int, device: str = "cpu") -> ImageClassifierData:
        """Link the images into ``folder``, and split them by ``seed``."""
        labels = {}
        for file, label in self.rows(folder / "source"):
            name = f"{file.parent.name}_{file.name}"
            labels[name] = label
            if not (folder / "images" / name).exists():
                photographs.link(file, folder / "images" / name)
        order = np.random.default_rng(seed).permutation(sorted(labels))[: self.train + self.valid]
        table = self.table(folder, seed)
        with table.open("w", newline="") as out:
            csv.writer(out).writerows([("file", "label"), *((name, labels[name]) for name in order)])
        tfms = tfms_from_model(efficientnet_lite0, self.sz, aug_tfms=self.aug, max_zoom=self.max_zoom)
        held_out = np.arange(self.train, len(order))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*no image of the class")  # of a rare one, held out
            return ImageClassifierData.from_csv(
                folder, "images", table, tfms=tfms, val_idxs=held_out, seed=seed, device=device
            )


@dataclass(frozen=True)
class FineTuneSetting:
    """What a peer gets: a set that `ImageSet.data` has written."""

    folder: Path
    images: ImageSet
    seed: int
    threads: int


def digits(source: Path) -> Labelled:
    """The demo's handwritten digits."""
    for file in sorted(write_digits(source).glob("[tv]*/*/*.png")):
        yield file, f"d{file.parent.name}"


def catsdogs(_: Path) -> Labelled:
    """Photographs of cats and of dogs."""
    for file in sorted(photographs.source("catsdogs").glob("[tv]*/*/*.jpg")):
        if file.parents[1].name in ("train", "valid"):
            yield file, file.parent.name


def dogbreeds(_: Path) -> Labelled:
    """Photographs of dogs of 12 breeds, 13 to 17 of each."""
    root = photographs.source("dogbreeds")
    for row in csv.DictReader((root / "labels.csv").read_text().splitlines()):
        yield root / "train" / f"{row['id']}.jpg", row["breed"]


def scenes(_: Path) -> Labelled:
    """Landscapes with one or several labels."""
    root = photographs.source("scenes")
    for name, tags in list(csv.reader((root / "train_tags.csv").read_text().splitlines()))[1:]:
        yield root / "train" / f"{name}.jpg", tags


def rare(source: Path) -> Labelled:
    """Cats and five kinds of landscape, many of each, and the breeds of dogs, few of each."""
    seen: dict[str, int] = {}
    for file, label in [*catsdogs(source), *scenes(source)]:
        seen[label] = seen.get(label, 0) + 1
        if label != "dogs" and " " not in label and seen[label] <= FREQUENT:
            yield file, label
    yield from dogbreeds(source)


SETS = [
    ImageSet("digits", digits, 300, 300, 64, transforms_basic),
    ImageSet("catsdogs", catsdogs, 200, 300, 96, transforms_side_on),
    ImageSet("dogbreeds", dogbreeds, 108, 64, 96, transforms_side_on),
    ImageSet("scenes", scenes, 300, 300, 64, transforms_top_down, 1.05),
    ImageSet("rare classes", rare, 300, 222, 96, transforms_side_on),
]
