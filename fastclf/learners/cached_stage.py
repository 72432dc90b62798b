"""What trains under precompute: what is frozen is computed once, and the rest is fed with that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import numpy as np
from torch import nn

from fastclf.activations.crossover import rates
from fastclf.activations.fill import places_for
from fastclf.activations.precompute import activations
from fastclf.activations.segment import DTYPES
from fastclf.activations.side_by_side import side_by_side
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.data_loaders import CachedRows
from fastclf.data.image_loader import ImageLoader
from fastclf.data.loader import Loader
from fastclf.learners.stage import Stage
from fastclf.models.freezing import LayerGroups
from fastclf.models.halves import EarlyBody, early_bodies, late_body, uncut
from fastclf.models.joined_body import JoinedBody
from fastclf.models.net import Net
from fastclf.report import log, log_once, remedy, warn

_Part: TypeAlias = tuple[Net, str]  # and the hash of its body


@dataclass(frozen=True)
class CachedActivations:
    """How a learner keeps activations.

    Attributes:
        views: how many augmented views of every image; 1 for the plain images alone.
        dtype: float16 or float32.
        tmp_name: the folder below the data's path.
    """

    views: int
    dtype: str
    tmp_name: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"ConvLearner: act_dtype must be one of {DTYPES}, got {self.dtype!r}")

    def stage(self, model: Net, groups: LayerGroups, data: ImageClassifierData) -> Stage:
        """Compute what is frozen, where it is not in the cache, and return what trains on it."""
        if groups.frozen_to == 0:
            raise ValueError(
                "precompute: all layers train, so nothing can be cached. Call learn.freeze() to train the head on "
                "pooled features, or learn.freeze_to(1) to train group 1 and the head on feature maps."
            )
        if groups.frozen_to == 1:
            return self._on_maps(model, groups, data)
        # Each body's are kept by themselves, so that another combination computes only what is new.
        parts = [Net(part, nn.Identity()) for part in model.body.parts] if len(model.body.parts) > 1 else [model]
        return Stage(model.head, LayerGroups([model.head], heads=1), self._rows(parts, data))

    def _on_maps(self, model: Net, groups: LayerGroups, data: ImageClassifierData) -> Stage:
        body = model.body
        if uncut(body):
            raise ValueError(
                f"precompute: {', '.join(uncut(body))} cannot be cut between its layer groups. Call learn.freeze() to "
                "train the head on pooled features, or leave precompute off."
            )
        assert data.tfms is not None
        early = early_bodies(body, data.tfms[1].sz)
        self._log_size(early, data)
        rows = self._rows([Net(part, nn.Identity()) for part in early], data)
        _log_crossover(early, data, rows)
        return Stage(Net(late_body(body, early), model.head), groups, rows)

    def _log_size(self, early: Sequence[EarlyBody], data: ImageClassifierData) -> None:
        row = sum(part.n_features for part in early) * np.dtype(self.dtype).itemsize
        others = len(data.val_ds) + (0 if data.test_ds is None else len(data.test_ds))
        rows = self.views * len(data.trn_ds) + (others if self.views == 1 else (1 + self.views) * others)
        shapes = " and ".join("{2} x {0} x {1}".format(*part.shape) for part in early)
        log(f"precompute: feature maps of {shapes}, {row / 1e3:,.0f} KB each, {rows * row / 1e6:,.1f} MB in all")

    def _rows(self, nets: list[Net], data: ImageClassifierData) -> ImageClassifierData:
        """Return the data over what the bodies of ``nets`` give, side by side."""
        data.scan()
        parts = [(net, net.body.state_sha256()) for net in nets]  # once for all sets
        augments = data.tfms is not None and data.tfms[0].augments
        if self.views == 1:
            if augments:
                log_once(
                    "precompute: random crops and augmentation have no effect on cached activations; "
                    + remedy(
                        "pass views=4 to cache augmented views, or set learn.precompute = False",
                        "--no-precompute trains on such images",
                    )
                )
            train = self._of_set(parts, data, "train", data.fix_dl)
        else:
            if not augments:
                raise ValueError(
                    f"precompute: views={self.views} needs random transforms, or all views are the same. "
                    "Pass aug_tfms= to tfms_from_model, or views=1."
                )
            train = self._of_set(parts, data, "train", data.trn_dl, self.views)
        valid = self._of_set(parts, data, "valid", data.val_dl)
        test = self._of_set(parts, data, "test", data.test_dl)
        if self.views == 1:
            return data.with_rows(train, valid, test)
        augmented = self._of_set(parts, data, "valid", data.aug_dl, self.views)
        test_views = self._of_set(parts, data, "test", data.test_aug_dl, self.views)
        return data.with_rows(train, valid, test, augmented, test_views)

    @overload
    def _of_set(
        self, parts: list[_Part], data: ImageClassifierData, name: str, dl: Loader, views: int = 1
    ) -> CachedRows: ...
    @overload
    def _of_set(
        self, parts: list[_Part], data: ImageClassifierData, name: str, dl: Loader | None, views: int = 1
    ) -> CachedRows | None: ...
    def _of_set(
        self, parts: list[_Part], data: ImageClassifierData, name: str, dl: Loader | None, views: int = 1
    ) -> CachedRows | None:
        if dl is None:
            return None
        assert isinstance(dl, ImageLoader)
        folders = places_for(data.below(self.tmp_name))
        if len(parts) == 1:
            (net, weights), *_ = parts
            return activations(net, dl, folders, dtype=self.dtype, what=name, views=views, weights=weights)
        found = [
            activations(
                net,
                dl.normalised(net.body.mean, net.body.std),
                folders,
                dtype=self.dtype,
                what=f"{name}, {net.body.arch}",
                views=views,
                weights=weights,
            )
            for net, weights in parts
        ]
        return side_by_side(found, folders)


def _log_crossover(early: Sequence[EarlyBody], data: ImageClassifierData, rows: ImageClassifierData) -> None:
    loader, maps = data.trn_dl, rows.trn_ds.rows
    assert isinstance(loader, ImageLoader)
    assert maps is not None
    found = rates(JoinedBody(early) if len(early) > 1 else early[0], loader, maps)
    if found is None:
        return
    line = "precompute: feature maps are read at {:,.0f} images/s, and computed from images at {:,.0f}".format(*found)
    if found[0] > found[1]:
        log(line)
    else:
        warn(f"{line}: training on images is faster. Set learn.precompute = False.")
