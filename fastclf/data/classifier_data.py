"""`ImageClassifierData`: train, valid and test, and the six loaders over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch

from fastclf.data import arrays, sets, tables
from fastclf.data.bad_pictures import MAX_PIXELS, OnBad, bind_together
from fastclf.data.draws import Split
from fastclf.data.folders import inner_name
from fastclf.data.loader import Loader, LoaderOptions, PictureLoader, RowLoader, available_threads
from fastclf.data.resize import resized
from fastclf.data.samples import Dataset
from fastclf.data.sets import Tfms, check_tfms
from fastclf.philox import check_seed

if TYPE_CHECKING:
    import pandas as pd

PathLike: TypeAlias = str | os.PathLike[str]
ValIdxs: TypeAlias = Sequence[int] | npt.NDArray[np.int64] | None


class Options(TypedDict, total=False):
    """Further arguments of every way to make `ImageClassifierData`.

    Attributes:
        seed: of the split, the order and the augmentations; 42 by default.
        device: where batches are; the GPU when there is one.
        num_workers: threads that decode; as many as processors, at most 8.
        on_bad: what happens when pictures cannot be decoded: "raise" names them all, "skip" goes on without them.
            Then their predictions are NaN, and they are listed in tmp/bad_images.csv.
        max_bad: most pictures that "skip" may leave out, over all sets; any number by default.
        max_pixels: a picture with more counts as one that cannot be decoded; 178,956,970 by default.
    """

    seed: int
    device: str | torch.device | None
    num_workers: int | None
    on_bad: OnBad
    max_bad: int | None
    max_pixels: int


_SEED = 42


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
        seed: int = _SEED,
        device: str | torch.device | None = None,
        num_workers: int | None = None,
        on_bad: OnBad = "raise",
        max_bad: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_seed("ImageClassifierData", seed)
        self.path = Path(path)
        self.trn_ds, self.val_ds, self.test_ds = trn_ds, val_ds, test_ds
        bind_together([ds.bad for ds in (trn_ds, val_ds, test_ds) if ds is not None], on_bad, max_bad, max_pixels)
        self.bs = arrays.check_bs(bs, len(trn_ds))
        self.tfms = tfms
        self.seed = seed
        self.device = _as_device(device)
        self._options = LoaderOptions(self.bs, seed, self.device, _as_threads(num_workers))
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
        **options: Unpack[Options],
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
            **options: see `Options`.

        Raises:
            FileNotFoundError: when a folder, or every picture in it, is missing.
            LabelError: when a class has no picture, is unknown to train, or is the only one.
        """
        tfms = check_tfms(tfms)
        seed = options.get("seed", _SEED)
        trn, val, test = sets.from_folders(Path(path), tfms, trn_name, val_name, test_name, val_pct, seed)
        return cls(path, trn, val, test, bs=bs, tfms=tfms, **options)

    @classmethod
    def from_csv(
        cls,
        path: PathLike,
        folder: str,
        csv_fname: PathLike,
        bs: int = 64,
        tfms: Tfms | None = None,
        val_idxs: ValIdxs = None,
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
        **options: Unpack[Options],
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
            **options: see `Options`.

        Raises:
            FileNotFoundError: when a folder, the table or the file of a row is missing.
            LabelError: when a row cannot be used; names it.
            ValueError: when val_idxs do not fit.
        """
        table = tables.read_csv(csv_fname, sep, encoding, skip_header)
        form = tables.LabelForm(continuous, multi, cat_separator)
        return cls._from_table(path, folder, table, bs, tfms, val_idxs, suffix, test_name, form, val_pct, options)

    @classmethod
    def from_df(
        cls,
        path: PathLike,
        folder: str,
        df: pd.DataFrame,
        bs: int = 64,
        tfms: Tfms | None = None,
        val_idxs: ValIdxs = None,
        suffix: str = "",
        test_name: str | None = None,
        continuous: bool = False,
        cat_separator: str = " ",
        *,
        multi: bool | None = None,
        val_pct: float = 0.2,
        **options: Unpack[Options],
    ) -> Self:
        """The same as `from_csv`, with a data frame: first column file names, second labels. The index is not used."""
        form = tables.LabelForm(continuous, multi, cat_separator)
        table = tables.read_df(df)
        return cls._from_table(path, folder, table, bs, tfms, val_idxs, suffix, test_name, form, val_pct, options)

    @classmethod
    def _from_table(
        cls,
        path: PathLike,
        folder: str,
        table: tables.Table,
        bs: int,
        tfms: Tfms | None,
        val_idxs: ValIdxs,
        suffix: str,
        test_name: str | None,
        form: tables.LabelForm,
        val_pct: float,
        options: Options,
    ) -> Self:
        tfms, seed = check_tfms(tfms), options.get("seed", _SEED)
        rows = tables.labelled_by_table(table, Path(path), folder, suffix, form, val_idxs, val_pct, seed)
        trn, val, test = sets.from_rows(Path(path), tfms, *rows, test_name)
        tables.check_trained(trn.labels, val.labels, table.name)
        return cls(path, trn, val, test, bs=bs, tfms=tfms, **options)

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
        **options: Unpack[Options],
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
            **options: see `Options`.

        Raises:
            ValueError: when a shape, a type or a value does not fit; says where.
            LabelError: when a label does.
        """
        xs, labels = arrays.check_sets(trn, val, test, classes, continuous=continuous)
        tfms = check_tfms(tfms) if xs[0].ndim == 4 else None
        trn_ds, val_ds, test_ds = sets.from_checked_arrays(Path(path), tfms, xs, labels)
        return cls(path, trn_ds, val_ds, test_ds, bs=bs, tfms=tfms, **options)

    def resize(self, targ: int, new_path: str = "tmp") -> ImageClassifierData:
        """Makes smaller copies of all pictures once, in path/new_path/<targ>, and returns the same data over them.

        Args:
            targ: the shorter side of the copies, in pixels; smaller pictures are not enlarged.
            new_path: a folder below the data's path.

        Raises:
            ValueError: when targ is less than the transforms need, or new_path is not below the path.
            BadImageError: when a picture cannot be decoded; names it.
        """
        if self.tfms is None or self.trn_ds.images is not None:
            raise ValueError("resize: data must hold pictures in files, got arrays. Resize the arrays themselves.")
        if not isinstance(targ, int | np.integer) or targ < self.tfms[0].sz:
            raise ValueError(
                f"resize: targ must be at least the transforms' size {self.tfms[0].sz}, got {targ!r}. "
                "Smaller copies would be enlarged again."
            )
        folder = self.path / inner_name(new_path) / str(targ)
        copies = [
            None if ds is None else resized(ds, int(targ), folder, self._options.num_threads)
            for ds in (self.trn_ds, self.val_ds, self.test_ds)
        ]
        return self._replaced(copies, self.tfms)

    def with_rows(
        self, trn: npt.NDArray[Any], val: npt.NDArray[Any], test: npt.NDArray[Any] | None = None
    ) -> ImageClassifierData:
        """Returns the same labels over activations, `[N, F]` float16 or float32 for each set, rows in its order."""
        made: list[Dataset | None] = []
        for ds, x in ((self.trn_ds, trn), (self.val_ds, val), (self.test_ds, test)):
            if ds is None or x is None:
                made.append(None)
                continue
            assert len(ds) == len(x)
            made.append(Dataset(ds.path, ds.labels, ds.fnames, rows=x, bad=ds.bad))
        return self._replaced(made, None)

    def _replaced(self, made: Sequence[Dataset | None], tfms: Tfms | None) -> ImageClassifierData:
        trn_ds, val_ds, test_ds = made
        assert trn_ds is not None
        assert val_ds is not None
        bad = self.trn_ds.bad
        options = Options(
            seed=self.seed,
            device=self.device,
            num_workers=self._options.num_threads,
            on_bad=bad.policy,
            max_bad=bad.max_bad,
            max_pixels=bad.max_pixels,
        )
        return ImageClassifierData(self.path, trn_ds, val_ds, test_ds, bs=self.bs, tfms=tfms, **options)


def _as_threads(num_workers: int | None) -> int:
    if num_workers is None:
        return available_threads()
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ValueError(f"ImageClassifierData: num_workers must be 0 or more, got {num_workers!r}. Or pass None.")
    return max(1, num_workers)


def _as_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"ImageClassifierData: device must be there, got {device}: torch sees no GPU. Pass 'cpu'.")
    return device
