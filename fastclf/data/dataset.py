"""What the loaders draw from: pictures or rows of activations, with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.sources.names import Names
from fastclf.data.transforms.spec import TransformSpec
from fastclf.data.validation.bad_images import BadPictures

_OF_ITS_OWN = BadPictures(Path(), (), 0)


@dataclass(frozen=True)
class Labels:
    """The labels of some rows, and what they mean.

    Attributes:
        y: `[N] int64` class indices; `[N, C] float32` of 0 and 1 where a row may have several labels; `[N, k] float32`
            for regression, of one number too: predictions are so, and no difference of the two broadcasts.
        classes: the names of the classes; empty for regression.
        is_multi: whether a row may have several labels.
        is_reg: whether the labels are numbers to be predicted.
        known: False for the zeros of rows that have no labels.
    """

    y: npt.NDArray[Any]
    classes: list[str]
    is_multi: bool = False
    is_reg: bool = False
    known: bool = True

    def __post_init__(self) -> None:
        if self.is_reg and self.y.ndim == 1:
            object.__setattr__(self, "y", self.y[:, None])

    def __len__(self) -> int:
        return len(self.y)

    @property
    def c(self) -> int:
        """Number of classes, or of numbers to predict."""
        return int(self.y.shape[1]) if self.is_reg else len(self.classes)

    def take(self, rows: npt.NDArray[np.int64]) -> Labels:
        """Returns the labels of some of the rows."""
        return replace(self, y=self.y[rows])

    def zeros(self, n: int) -> Labels:
        """Returns labels of the same kind for n rows that have none."""
        return replace(self, y=np.zeros((n, *self.y.shape[1:]), self.y.dtype), known=False)


@dataclass(frozen=True)
class Dataset:
    """Some pictures, or some rows of activations, with their labels.

    Attributes:
        path: the folder that `fnames` are relative to.
        labels: one entry per row.
        fnames: the files, relative and with forward slashes, kept as `Names`; empty for arrays.
        images: `[N, H, W, 3]` uint8 or float32 in 0..1, or None.
        rows: `[N, F]` float16 or float32 activations, or None.
        tfms: how a picture becomes the model's input; None for rows.
        bad: which pictures cannot be decoded; copies of the set and its activations share it.
        ignored: how many files of each kind were found and left out.
    """

    path: Path
    labels: Labels
    fnames: Sequence[str] = ()
    images: npt.NDArray[Any] | None = None
    rows: npt.NDArray[Any] | None = None
    tfms: TransformSpec | None = None
    bad: BadPictures = field(default=_OF_ITS_OWN, repr=False, compare=False)
    ignored: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.absolute())  # os.chdir comes later
        if not isinstance(self.fnames, Names):
            object.__setattr__(self, "fnames", Names(self.fnames))
        if self.bad is _OF_ITS_OWN:
            object.__setattr__(self, "bad", BadPictures(self.path, self.fnames, len(self)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def y(self) -> npt.NDArray[Any]:
        """The labels' values, see `Labels.y`."""
        return self.labels.y

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty for regression."""
        return self.labels.classes

    @property
    def c(self) -> int:
        """Number of classes, or of numbers to predict."""
        return self.labels.c

    @property
    def is_multi(self) -> bool:
        """Whether a row may have several labels."""
        return self.labels.is_multi

    @property
    def is_reg(self) -> bool:
        """Whether the labels are numbers to be predicted."""
        return self.labels.is_reg

    def take(self, rows: npt.NDArray[np.int64]) -> Dataset:
        """Returns the data set of some of the rows; arrays are copied."""
        fnames = [self.fnames[row] for row in rows] if len(self.fnames) else []
        bad = BadPictures(self.bad.path, fnames, len(rows))
        bad.reasons = {i: self.bad.reasons[row] for i, row in enumerate(rows.tolist()) if row in self.bad.reasons}
        images, values = (None if x is None else x[rows] for x in (self.images, self.rows))
        return replace(self, labels=self.labels.take(rows), fnames=fnames, images=images, rows=values, bad=bad)

    def denorm(self, x: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.float32]:
        """Undoes the normalisation: `[N, 3, h, w]` to `[N, h, w, 3] float32` in 0..1, or without N for one picture."""
        if self.tfms is None:
            raise ValueError("denorm: the data must hold pictures, got rows of activations. There is nothing to draw.")
        return self.tfms.denorm(x)
