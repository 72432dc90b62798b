"""Train, valid and test, the six loaders over them, and what is made of them: smaller copies, activations, reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import torch

from fastclf import ranks
from fastclf.calls import long_call
from fastclf.data.bad_images import MAX_PIXELS, OnBad, bind_together
from fastclf.data.dataset import Dataset
from fastclf.data.decode.kept_images import memory_of
from fastclf.data.image_loader import ImageLoader
from fastclf.data.loader import Loader, LoaderOptions, RowLoader
from fastclf.data.options import SEED, Options, as_batch_size, as_device, as_threads
from fastclf.data.resize import resized
from fastclf.data.sets import Tfms
from fastclf.data.sources.ignored import tag_as_cache
from fastclf.data.sources.listing import inner_name
from fastclf.data.sources.names import some
from fastclf.data.summary import summary
from fastclf.data.transforms.sampling import Split
from fastclf.data.validation.check import CheckReport, check_sets
from fastclf.data.validation.duplicates import to_drop
from fastclf.data.validation.scan import ScanReport, scan_sets
from fastclf.errors import LabelError
from fastclf.ops.arguments import IndexedRows
from fastclf.paths import given_path, require_folder, writable
from fastclf.philox import checked_seed
from fastclf.report import log

CachedRows: TypeAlias = npt.NDArray[Any] | IndexedRows


class DataLoaders:
    """The three sets of images, or of rows of activations, and the six loaders over them.

    Attributes:
        path: the data's root; models and other files are kept below it.
        trn_ds: the training set.
        val_ds: the validation set.
        test_ds: the test set, or None.
        bs: rows per batch.
        tfms: (training, validation) transforms; None for rows.
        seed: of the order and of the augmentations.
        device: where batches are.
        trn_dl: train, training transforms, shuffled.
        fix_dl: train, validation transforms.
        val_dl: valid, validation transforms.
        aug_dl: valid, training transforms.
        test_dl: test, validation transforms, or None.
        test_aug_dl: test, training transforms, or None.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        trn_ds: Dataset,
        val_ds: Dataset,
        test_ds: Dataset | None,
        *,
        bs: int,
        tfms: Tfms | None,
        seed: int = SEED,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
        on_bad: OnBad = "raise",
        max_bad: int | None = None,
        max_pixels: int = MAX_PIXELS,
        keep_decoded: bool = True,
    ) -> None:
        ranks.wait()  # whoever trains together meets here first
        self.path = given_path(path).absolute()  # os.chdir may come later
        self._was_there = self.path.is_dir()
        self.trn_ds, self.val_ds, self.test_ds = trn_ds, val_ds, test_ds
        bind_together([ds.bad for ds in self.sets.values()], self.path, on_bad, max_bad, max_pixels)
        self.bs = as_batch_size(bs, len(trn_ds))
        self.tfms = tfms
        self.seed = checked_seed("ImageClassifierData", seed)
        self.device = as_device(device)
        memory = memory_of(self.device) if keep_decoded else None
        self.options = LoaderOptions(self.bs, seed, self.device, as_threads(num_workers), memory)
        self.trn_dl = self._loader(trn_ds, Split.TRAIN, train=True, shuffle=True, drop_single=True)
        self.fix_dl = self._loader(trn_ds, Split.TRAIN)
        self.val_dl = self._loader(val_ds, Split.VALID)
        self.aug_dl = self._loader(val_ds, Split.VALID, train=True)
        self.test_dl = None if test_ds is None else self._loader(test_ds, Split.TEST)
        self.test_aug_dl = None if test_ds is None else self._loader(test_ds, Split.TEST, train=True)

    def _loader(self, ds: Dataset, split: Split, *, train: bool = False, **how: bool) -> Loader:
        if ds.rows is not None:
            return RowLoader(ds, self.options, **how)
        assert self.tfms is not None
        return ImageLoader(ds, self.tfms[0 if train else 1], self.options, split, **how)

    def __repr__(self) -> str:
        """Describe sets, sizes and classes in a few lines."""
        return summary(type(self).__name__, self.path, self.sets, self.sz, self.bs)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted by code point, or by value where all are whole numbers; empty for regression.

        The index of a name is its label.
        """
        return self.trn_ds.classes

    @property
    def c(self) -> int:
        """Number of classes, or of numbers to predict."""
        return self.trn_ds.c

    @property
    def is_multi(self) -> bool:
        """Whether an image may have several labels."""
        return self.trn_ds.is_multi

    @property
    def is_reg(self) -> bool:
        """Whether the labels are numbers to be predicted."""
        return self.trn_ds.is_reg

    @property
    def sz(self) -> int | None:
        """Side of the squares that the model sees, in pixels; None for rows."""
        return None if self.tfms is None else self.tfms[0].sz

    @property
    def trn_y(self) -> npt.NDArray[Any]:
        """Labels of the training set."""
        return self.trn_ds.y

    @property
    def val_y(self) -> npt.NDArray[Any]:
        """Labels of the validation set."""
        return self.val_ds.y

    @property
    def has_rows(self) -> bool:
        """Whether these are rows of activations, not images."""
        return self.trn_ds.rows is not None

    @property
    def sets(self) -> dict[str, Dataset]:
        """The data sets that there are, by name: train, valid, test."""
        named = {"train": self.trn_ds, "valid": self.val_ds, "test": self.test_ds}
        return {name: ds for name, ds in named.items() if ds is not None}

    def below(self, name: str) -> Path:
        """Return a folder below the path for files to be kept in.

        Args:
            name: of the folder.

        Raises:
            FileNotFoundError: the path was there when the data were made, and is gone.
        """
        if self._was_there:
            require_folder(self.path)
        return self.path / name

    @long_call("what was decoded is kept; call it again to go on.")
    def scan(self) -> ScanReport:
        """Decode every image in files that no earlier scan has decoded, as `fit` does before it trains on images.

        Returns:
            What all scans of these images found.

        Raises:
            BadImageError: with on_bad="raise", or with more than max_bad; names all bad images of all sets.
        """
        return scan_sets([*self.sets.values()], self.options.num_threads)

    @long_call("what was decoded is kept; call it again to go on.")
    def check(self) -> CheckReport:
        """Scan the images, and report what is odd about the data: `print(data.check())`.

        Names which images are in two sets, which have two labels, which classes are nearly empty,
        of very different size or alike in name, which files are bad, of unusual shape or left out. Changes nothing,
        and raises nothing for images that cannot be decoded.

        Returns:
            The findings; printed, a table and a remedy for each problem.
        """
        report = scan_sets([*self.sets.values()], self.options.num_threads, raises=False)
        return check_sets(self.sets, self.sz, report)

    def without_duplicates(self) -> Self:
        """Return the same data with every image once, and none of train in valid or test, compared byte for byte.

        The last set that has an image keeps it: train gives way to valid, and both to test, whose rows all stay. Images
        that are there under different labels are dropped from train and valid.

        Raises:
            LabelError: a class would lose all its training images.
            ValueError: these are activations of images.
        """
        if self.trn_ds.activations is not None:
            raise ValueError("without_duplicates: data holds activations of images. Call it on the data of the images.")
        dropped = to_drop(self.sets)
        trn, val = (
            ds.take(np.setdiff1d(np.arange(len(ds)), dropped[name]))
            for name, ds in (("train", self.trn_ds), ("valid", self.val_ds))
        )
        before, after = self.trn_ds.labels.counts(), trn.labels.counts()
        lost = [name for name, had, has in zip(self.classes, before, after, strict=False) if had and not has]
        if lost:
            raise LabelError(
                f"without_duplicates: {some(lost)} would have no training image. Add others, or move some."
            )
        log(f"without_duplicates: {len(dropped['train']):,} rows of train, {len(dropped['valid']):,} of valid left out")
        return self._replaced((trn, val, self.test_ds), self.tfms)

    def judged_on(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return data of the training images alone: some are for validation, the others for training.

        Args:
            rows: ``[n]``, of the training set, which become the validation set.
        """
        others = np.setdiff1d(np.arange(len(self.trn_ds)), rows)
        judged = replace(self.trn_ds.take(rows), tfms=self.val_ds.tfms)
        return self._replaced((self.trn_ds.take(others), judged, None), self.tfms)

    @long_call("the copies that were made stay; call it again to go on.")
    def resize(self, targ: int, new_path: str = "tmp") -> Self:
        """Make smaller copies of all images once, in path/new_path/<targ>, and return the same data over them.

        Args:
            targ: the shorter side of the copies, in pixels; smaller images are not enlarged.
            new_path: a folder below the data's path.

        Raises:
            ValueError: targ is less than the transforms need, or new_path is not below the path.
            BadImageError: images cannot be decoded, as `scan` says.
        """
        if self.tfms is None or self.trn_ds.images is not None:
            raise ValueError("resize: data must hold images in files, got arrays. Resize the arrays themselves.")
        if not isinstance(targ, int | np.integer) or targ < self.tfms[0].sz:
            raise ValueError(
                f"resize: targ must be at least the transforms' size {self.tfms[0].sz}, got {targ!r}. "
                "Smaller copies would be enlarged again."
            )
        folder = self.below(inner_name(new_path)) / str(targ)
        self.scan()
        with ranks.first_goes_first(), writable("Copies lie below the data's folder: copy that to where you may write"):
            tag_as_cache(folder)
            copies = [
                None if ds is None else resized(ds, int(targ), folder, self.options.num_threads)
                for ds in (self.trn_ds, self.val_ds, self.test_ds)
            ]
        return self._replaced(copies, self.tfms)

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """Return the same images, normalised otherwise: for a body that was trained with other statistics.

        Args:
            mean: of red, green and blue, in 0..1.
            std: their standard deviations.
        """
        if self.tfms is None:
            raise ValueError("normalised: data must hold images, got rows of activations")
        tfms = (self.tfms[0].normalised(mean, std), self.tfms[1].normalised(mean, std))
        sets = (self.trn_ds, self.val_ds, self.test_ds)
        made = [None if ds is None else replace(ds, tfms=ds.tfms and ds.tfms.normalised(mean, std)) for ds in sets]
        return self._replaced(made, tfms)

    def with_rows(
        self,
        trn: CachedRows,
        val: CachedRows,
        test: CachedRows | None = None,
        val_views: CachedRows | None = None,
        test_views: CachedRows | None = None,
    ) -> Self:
        """Return the same labels over activations, float16 or float32, rows in each set's order.

        Args:
            trn: `[N, F]`, or K augmented views `[K * N, F]`, view k of row i in row k * N + i, of which trn_dl
                takes one of each row in an epoch, see `RowLoader`. Then fix_dl goes on serving images.
            val: `[N, F]` of the validation set.
            test: `[N, F]` of the test set.
            val_views: `[K * N, F]`, which aug_dl serves, view k in epoch k; without them it serves val.
            test_views: the same for test_aug_dl.
        """
        made = self._replaced([_over(self.trn_ds, trn), _over(self.val_ds, val), _over(self.test_ds, test)], None)
        if len(trn) > len(self.trn_ds):
            made.fix_dl = self.fix_dl
        if val_views is not None:
            made.aug_dl = RowLoader(_over(self.val_ds, val_views), self.options)
        if self.test_ds is not None and test_views is not None:
            made.test_aug_dl = RowLoader(_over(self.test_ds, test_views), self.options)
        return made

    def _replaced(self, made: Sequence[Dataset | None], tfms: Tfms | None) -> Self:
        trn_ds, val_ds, test_ds = made
        assert trn_ds is not None
        assert val_ds is not None
        bad = self.trn_ds.bad
        options = Options(
            seed=self.seed,
            device=self.device,
            num_workers=self.options.num_threads,
            on_bad=bad.policy,
            max_bad=bad.max_bad,
            max_pixels=bad.max_pixels,
            keep_decoded=self.options.memory is not None,
        )
        replaced = type(self)(self.path, trn_ds, val_ds, test_ds, bs=self.bs, tfms=tfms, **options)
        if replaced.options.memory is not None and self.options.memory is not None:
            replaced.options.memory.shares(self.options.memory)
        return replaced


@overload
def _over(ds: Dataset, rows: CachedRows) -> Dataset: ...
@overload
def _over(ds: Dataset | None, rows: CachedRows | None) -> Dataset | None: ...
def _over(ds: Dataset | None, rows: CachedRows | None) -> Dataset | None:
    """The same data set over activations, of one or of several views."""
    if ds is None or rows is None:
        return None
    assert len(rows) == len(ds) * (len(rows) // max(1, len(ds)))
    return replace(ds, activations=rows, tfms=None)
