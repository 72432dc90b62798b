"""`ImageClassifierData`: train, valid and test, and the six loaders over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data import arrays, tables
from fastclf.data.draws import Split
from fastclf.data.folders import labelled_by_folder, pictures_in
from fastclf.data.loader import Loader, LoaderOptions, PictureLoader, RowLoader, available_threads
from fastclf.data.samples import Dataset, Labels
from fastclf.data.split import stratified_idxs, warn_single
from fastclf.data.transforms import Transforms
from fastclf.errors import LabelError
from fastclf.philox import check_seed

if TYPE_CHECKING:
    import pandas as pd

Tfms = tuple[Transforms, Transforms]
PathLike = str | os.PathLike[str]


class ImageClassifierData:
    """Pictures, or rows of activations, with labels.

    Made by `from_paths`, `from_csv`, `from_df` or `from_arrays`.

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
        path: PathLike,
        trn_ds: Dataset,
        val_ds: Dataset,
        test_ds: Dataset | None,
        *,
        bs: int,
        tfms: Tfms | None,
        seed: int = 42,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
    ) -> None:
        check_seed("ImageClassifierData", seed)
        self.path = Path(path)
        self.trn_ds, self.val_ds, self.test_ds = trn_ds, val_ds, test_ds
        self.bs = arrays.check_bs(bs, len(trn_ds))
        self.tfms = tfms
        self.seed = seed
        self.device = _as_device(device)
        self._num_threads = available_threads() if num_workers is None else max(1, num_workers)
        self._options = LoaderOptions(self.bs, seed, self.device, self._num_threads)
        self.trn_dl = self._loader(trn_ds, Split.TRAIN, train=True, shuffle=True, drop_single=True)
        self.fix_dl = self._loader(trn_ds, Split.TRAIN)
        self.val_dl = self._loader(val_ds, Split.VALID)
        self.aug_dl = self._loader(val_ds, Split.VALID, train=True)
        self.test_dl = None if test_ds is None else self._loader(test_ds, Split.TEST)
        self.test_aug_dl = None if test_ds is None else self._loader(test_ds, Split.TEST, train=True)

    def _loader(self, ds: Dataset, split: Split, *, train: bool = False, **how: bool) -> Loader:
        if ds.rows is not None:
            return RowLoader(ds, self._options, **how)
        assert self.tfms is not None
        return PictureLoader(ds, self.tfms[0 if train else 1], self._options, split, **how)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted by code point; the index of a name is its label. Empty for regression."""
        return self.trn_ds.classes

    @property
    def c(self) -> int:
        """Number of classes, or of numbers to predict."""
        return self.trn_ds.c

    @property
    def is_multi(self) -> bool:
        """Whether a picture may have several labels."""
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
        """Whether these are rows of activations, not pictures."""
        return self.trn_ds.rows is not None

    @classmethod
    def from_paths(
        cls,
        path: PathLike,
        bs: int = 64,
        tfms: Tfms | None = None,
        trn_name: str = "train",
        val_name: str = "valid",
        test_name: str | None = "test",
        *,
        val_pct: float = 0.2,
        seed: int = 42,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
    ) -> Self:
        """Reads path/train/<class>/..., path/valid/<class>/... and, when it is there, path/test/...

        Args:
            path: the data's root.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            trn_name: the training folder. Its folders name the classes.
            val_name: the validation folder. When there is no folder 'valid', `val_pct` of train is drawn from every
                class instead.
            test_name: the test folder, whose pictures have no labels; None for none.
            val_pct: see val_name.
            seed: of the split, the order and the augmentations.
            device: where batches are; the GPU when there is one.
            num_workers: threads that decode; as many as processors, at most 8.

        Raises:
            FileNotFoundError: when a folder, or every picture in it, is missing.
            LabelError: when a class has no picture, is unknown to train, or is the only one.
        """
        path, tfms = Path(path), _check_tfms("from_paths", tfms)
        names, labels = labelled_by_folder(path, trn_name)
        trn = Dataset(path, labels, names, tfms=tfms[0])
        if (path / val_name).is_dir() or val_name != "valid":
            names, labels = labelled_by_folder(path, val_name, labels.classes)
            val = Dataset(path, labels, names, tfms=tfms[1])
        else:
            warn_single([labels.classes[i] for i in labels.y])
            val_idxs = stratified_idxs(labels.y.tolist(), val_pct, seed)
            print(f"no folder {val_name}: {len(val_idxs)} of {len(names)} pictures of {trn_name} are for validation")
            trn, val = _split(path, names, labels, val_idxs, tfms)
        test = None
        if test_name is not None and ((path / test_name).is_dir() or test_name != "test"):
            test = _test_set(path, test_name, labels, tfms)
        return cls(path, trn, val, test, bs=bs, tfms=tfms, seed=seed, device=device, num_workers=num_workers)

    @classmethod
    def from_csv(
        cls,
        path: PathLike,
        folder: str,
        csv_fname: PathLike,
        bs: int = 64,
        tfms: Tfms | None = None,
        val_idxs: Sequence[int] | npt.NDArray[np.int64] | None = None,
        suffix: str = "",
        test_name: str | None = None,
        continuous: bool = False,
        skip_header: bool = True,
        cat_separator: str = " ",
        *,
        multi: bool | None = None,
        sep: str = ",",
        encoding: str = "utf-8-sig",
        val_pct: float = 0.2,
        seed: int = 42,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
    ) -> Self:
        """Reads pictures in path/folder, labelled by a table with a file name and a label in each row.

        Args:
            path: the data's root.
            folder: the folder of the pictures.
            csv_fname: the table.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            val_idxs: rows for validation, counted from 0 without the header; by default `val_pct` of every class.
            suffix: what a name in the table lacks, e.g. '.jpg'.
            test_name: the folder of test pictures.
            continuous: whether the labels are numbers to be predicted; then every further column is one.
            skip_header: whether the first line names the columns.
            cat_separator: what stands between several labels; a space also means any white space.
            multi: whether a picture may have several labels; by default, whether any row has several. Said in a line.
            sep: what stands between columns.
            encoding: of the table.
            val_pct: see val_idxs.
            seed: of the split, the order and the augmentations.
            device: where batches are; the GPU when there is one.
            num_workers: threads that decode; as many as processors, at most 8.

        Raises:
            FileNotFoundError: when a folder, the table or the file of a row is missing.
            LabelError: when a row cannot be used; names it.
            ValueError: when val_idxs do not fit.
        """
        table = tables.read_csv(csv_fname, sep, encoding, skip_header)
        return cls._from_table(
            path, folder, table, bs=bs, tfms=tfms, val_idxs=val_idxs, suffix=suffix, test_name=test_name,
            continuous=continuous, cat_separator=cat_separator, multi=multi, val_pct=val_pct, seed=seed,
            device=device, num_workers=num_workers,
        )  # fmt: skip

    @classmethod
    def from_df(
        cls,
        path: PathLike,
        folder: str,
        df: pd.DataFrame,
        bs: int = 64,
        tfms: Tfms | None = None,
        val_idxs: Sequence[int] | npt.NDArray[np.int64] | None = None,
        suffix: str = "",
        test_name: str | None = None,
        continuous: bool = False,
        cat_separator: str = " ",
        *,
        multi: bool | None = None,
        val_pct: float = 0.2,
        seed: int = 42,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
    ) -> Self:
        """The same as `from_csv`, with a data frame: first column file names, second labels. The index is not used."""
        return cls._from_table(
            path, folder, tables.read_df(df), bs=bs, tfms=tfms, val_idxs=val_idxs, suffix=suffix,
            test_name=test_name, continuous=continuous, cat_separator=cat_separator, multi=multi, val_pct=val_pct,
            seed=seed, device=device, num_workers=num_workers,
        )  # fmt: skip

    @classmethod
    def _from_table(
        cls,
        path: PathLike,
        folder: str,
        table: tables.Table,
        *,
        tfms: Tfms | None,
        val_idxs: Sequence[int] | npt.NDArray[np.int64] | None,
        suffix: str,
        test_name: str | None,
        continuous: bool,
        cat_separator: str,
        multi: bool | None,
        val_pct: float,
        seed: int,
        **how: Any,
    ) -> Self:
        path, tfms = Path(path), _check_tfms("from_csv", tfms)
        form = tables.LabelForm(continuous, multi, cat_separator)
        names, labels, val_rows = tables.labelled_by_table(table, path, folder, suffix, form, val_idxs, val_pct, seed)
        trn, val = _split(path, names, labels, val_rows, tfms)
        tables.check_trained(trn.labels, val.labels, table.name)
        test = None if test_name is None else _test_set(path, test_name, labels, tfms)
        return cls(path, trn, val, test, tfms=tfms, seed=seed, **how)

    @classmethod
    def from_arrays(
        cls,
        path: PathLike,
        trn: tuple[Any, Any],
        val: tuple[Any, Any],
        bs: int = 64,
        tfms: Tfms | None = None,
        classes: Sequence[str] | None = None,
        test: Any = None,
        continuous: bool = False,
        *,
        seed: int = 42,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
    ) -> Self:
        """Takes pictures, or rows of activations, from arrays.

        Args:
            path: where models and other files are kept.
            trn: (x, y). x is `[N, H, W, 3]` uint8, or float in 0..1; or `[N, F]` activations; or the path of a
                `.npy` file of one of these, which is mapped. y is `[N]` whole numbers 0..C-1 or names; `[N, C]` of 0
                and 1 for several labels; any numbers when `continuous`.
            val: the same for validation.
            bs: rows per batch.
            tfms: (training, validation) transforms, for pictures.
            classes: names of the classes 0, 1, ...; by default the numbers, or the sorted names in y.
            test: x, or (x, y) whose y is not used.
            continuous: whether y are numbers to be predicted.
            seed: of the order and of the augmentations.
            device: where batches are; the GPU when there is one.
            num_workers: threads that resize; as many as processors, at most 8.

        Raises:
            ValueError: when a shape, a type or a value does not fit; says where.
            LabelError: when a label does.
        """
        sets = [trn, val] + ([] if test is None else [test if isinstance(test, tuple) else (test, None)])
        xs = [arrays.as_x(x, name) for (x, _), name in zip(sets, ("trn", "val", "test"), strict=False)]
        arrays.check_alike(xs)
        ys = arrays.as_labels(trn[1], val[1], classes, continuous=continuous)
        arrays.check_lengths(xs, ys)
        labels = [*ys, ys[0].zeros(len(xs[-1]))][: len(xs)]
        pictures = xs[0].ndim == 4
        tfms = _check_tfms("from_arrays", tfms) if pictures else None
        made = [
            Dataset(Path(path), y, images=x, tfms=tfms[0]) if tfms else Dataset(Path(path), y, rows=x)
            for x, y in zip(xs, labels, strict=True)
        ]
        test_ds = made[2] if len(made) == 3 else None
        how = {"seed": seed, "device": device, "num_workers": num_workers}
        return cls(path, made[0], made[1], test_ds, bs=bs, tfms=tfms, **how)

    def with_rows(
        self, trn: npt.NDArray[Any], val: npt.NDArray[Any], test: npt.NDArray[Any] | None = None
    ) -> ImageClassifierData:
        """The same labels over rows of activations: `[N, F]` float16 or float32 for each of the sets, in their order."""
        sets = [(self.trn_ds, trn), (self.val_ds, val), (self.test_ds, test)]
        made = [None if ds is None or x is None else Dataset(ds.path, ds.labels, rows=x) for ds, x in sets]
        for ds, (_, x) in zip(made, sets, strict=True):
            assert ds is None or len(ds) == len(x)
        trn_ds, val_ds, test_ds = made
        assert trn_ds is not None
        assert val_ds is not None
        return self._replaced(trn_ds, val_ds, test_ds, tfms=None)

    def _replaced(
        self, trn_ds: Dataset, val_ds: Dataset, test_ds: Dataset | None, tfms: Tfms | None
    ) -> ImageClassifierData:
        return ImageClassifierData(
            self.path, trn_ds, val_ds, test_ds, bs=self.bs, tfms=tfms, seed=self.seed, device=self.device,
            num_workers=self._num_threads,
        )  # fmt: skip


def _check_tfms(function: str, tfms: Tfms | None) -> Tfms:
    if not isinstance(tfms, tuple) or len(tfms) != 2 or not all(isinstance(t, Transforms) for t in tfms):
        raise ValueError(
            f"{function}: tfms must be the pair (training, validation) of transforms, got {tfms!r}. "
            "Pass tfms=tfms_from_model(arch, sz)."
        )
    if tfms[0].sz != tfms[1].sz:
        raise ValueError(f"{function}: tfms must both have one size, got {tfms[0].sz} and {tfms[1].sz}.")
    return tfms


def _as_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"ImageClassifierData: device must be there, got {device}: torch sees no GPU. Pass 'cpu'.")
    return device


def _split(
    path: Path, names: Sequence[str], labels: Labels, val_idxs: npt.NDArray[np.int64], tfms: Tfms
) -> tuple[Dataset, Dataset]:
    trn_idxs = np.setdiff1d(np.arange(len(names)), val_idxs)
    trn, val = (
        Dataset(path, labels.take(idxs), [names[i] for i in idxs], tfms=t)
        for idxs, t in zip((trn_idxs, np.sort(val_idxs)), tfms, strict=True)
    )
    return trn, val


def _test_set(path: Path, folder: str, labels: Labels, tfms: Tfms) -> Dataset:
    names = pictures_in(path, folder)
    return Dataset(path, labels.zeros(len(names)), names, tfms=tfms[1])
