"""What the loaders serve: images or rows of activations, with their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data.bad_images import BadImages
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.labels import Labels
from fastclf.data.sources.source import Source
from fastclf.data.transforms.spec import TransformSpec
from fastclf.ops.arguments import IndexedRows

_OF_ITS_OWN = BadImages(FileSource(Path(), ()))


@dataclass(frozen=True)
class Dataset:
    """Some images, or some rows of activations, with their labels.

    Attributes:
        source: the images, or the rows where there are no images.
        labels: one entry per row.
        tfms: how an image becomes the model's input; None for rows.
        activations: `[N, F]` float16 or float32 of the images, which the loaders serve in their place, or None.
        bad: which images cannot be decoded; copies of the set and its activations share it.
        ignored: how many files of each kind were found and left out.
        groups: `[N] int64`, equal for rows that belong together, such as all images of a person: folds do not divide
            them. Numbers are those of all sets of the data; None where rows belong to no others.
    """

    source: Source
    labels: Labels
    tfms: TransformSpec | None = None
    activations: npt.NDArray[Any] | IndexedRows | None = None
    bad: BadImages = field(default=_OF_ITS_OWN, repr=False, compare=False)
    ignored: Mapping[str, int] = field(default_factory=dict, repr=False)
    groups: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bad is _OF_ITS_OWN:
            object.__setattr__(self, "bad", BadImages(self.source))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def path(self) -> Path:
        """The folder or archive that `fnames` are relative to."""
        return self.source.root

    @property
    def fnames(self) -> Sequence[str]:
        """The names of the images, relative and with forward slashes; empty for arrays."""
        return self.source.names

    @property
    def images(self) -> npt.NDArray[Any] | None:
        """`[N, H, W, 3 or 1]` uint8 or float32 in 0..1 where the images are an array, or None."""
        return None if self.source.holds_rows else self.source.values

    @property
    def rows(self) -> npt.NDArray[Any] | IndexedRows | None:
        """`[N, F]` float16 or float32 activations, or None; `np.asarray` copies those that a store holds."""
        return self.source.values if self.activations is None and self.source.holds_rows else self.activations

    @property
    def is_encoded(self) -> bool:
        """Whether the loaders decode the rows: neither arrays nor activations."""
        return self.source.values is None and self.activations is None

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

    @property
    def is_grouped(self) -> bool:
        """Whether some rows belong together."""
        return self.groups is not None and len(np.unique(self.groups)) < len(self)

    def take(self, rows: npt.NDArray[np.int64]) -> Dataset:
        """Return the data set of some of the rows; arrays are copied."""
        source = self.source.take(rows)
        bad = BadImages(source if self.bad.source is self.source else self.bad.source.take(rows))
        bad.reasons = {i: self.bad.reasons[row] for i, row in enumerate(rows.tolist()) if row in self.bad.reasons}
        activations = None if self.activations is None else self.activations.take(rows, axis=0)
        groups = None if self.groups is None else self.groups[rows]
        labels = self.labels.take(rows)
        return replace(self, source=source, labels=labels, activations=activations, bad=bad, groups=groups)

    def denorm(self, x: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.float32]:
        """Undo the normalisation: `[N, 3, h, w]` to `[N, h, w, 3] float32` in 0..1, or without N for one image."""
        if self.tfms is None:
            raise ValueError("denorm: the data must hold images, got rows of activations. There is nothing to draw.")
        return self.tfms.denorm(x)
