"""`ImageClassifierData`: the ways to make train, valid and test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

from fastclf.data import sets
from fastclf.data.data_loaders import DataLoaders
from fastclf.data.options import SEED, Options, explains_options
from fastclf.data.sets import Tfms, ValIdxs, check_tfms
from fastclf.data.sources.array_checks import checked_sets
from fastclf.data.sources.folders import FolderRules
from fastclf.data.sources.hf import read_hf, splits_of
from fastclf.data.sources.layout import find_sets
from fastclf.data.sources.name_labels import label_by
from fastclf.data.sources.parquet import read_parquet
from fastclf.data.sources.patterns import Patterns, check_once, common_folder, files_of
from fastclf.data.sources.row_labels import LabelledRows, LabelRules
from fastclf.data.sources.shards import ShardRules, read_shards
from fastclf.data.sources.tables.reading import LabelTable, read_csv, read_df
from fastclf.data.sources.tables.rules import Column, Missing, TableRules
from fastclf.data.validation.check import warn_divided, warn_imbalance
from fastclf.paths import given_path

if TYPE_CHECKING:
    import pandas as pd

PathLike: TypeAlias = str | os.PathLike[str]


class ImageClassifierData(DataLoaders):
    """Images, or rows of activations, with labels: what `DataLoaders` holds, made by one of the methods below."""

    @classmethod
    @explains_options
    def from_paths(
        cls,
        path: PathLike,
        bs: int = 64,
        tfms: Tfms | None = None,
        trn_name: str = "train",
        val_name: str = "valid",
        test_name: str | None = "test",
        test_with_labels: bool = False,
        *,
        val_pct: float = 0.2,
        groups: Callable[[str], Hashable] | None = None,
        allow_empty: bool = False,
        drop_unknown: bool = False,
        allow_outside: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read path/train/<class>/..., path/valid/<class>/... and, when it is there, path/test/...

        Args:
            path: the data's root.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            trn_name: the training folder. Its folders name the classes; '.' when they lie in path itself, where the
                folders of the other sets, and 'tmp' and 'models', are no classes.
            val_name: the validation folder. When there is neither 'valid' nor another usual name, such as 'val' or
                'Dev' (see `fastclf.data.sources.set_names`), `val_pct` of every class of train is held out instead.
            test_name: the test folder, when it is there; None for none.
            test_with_labels: whether test is path/test/<class>/...; else its images have no labels, and zeros stand
                in their place.
            val_pct: see val_name.
            groups: what belongs together, such as all images of a person: a function of a name in trn_name (or
                val_name), e.g. ``lambda name: name.split("_")[0]``. One group is in one set when `val_pct` is held
                out, and in one fold whenever rows are held out, as by `fine_tune` and `audit`.
            allow_empty: whether a folder of train may hold no image: then its class is there, and nothing is learnt
                of it.
            drop_unknown: whether images of valid whose class is not in train are left out, instead of an error.
            allow_outside: whether links may lead out of path, and links to folders are followed.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: a folder, or every image in it, is missing; says what is there instead.
            LabelError: a class has no image, is unknown to train, or is the only one.
        """
        path, tfms = given_path(path), check_tfms(tfms)
        hold_out = sets.HoldOut(val_pct, options.get("seed", SEED))
        rules = FolderRules(allow_empty, drop_unknown, allow_outside)
        folders = find_sets(path, trn_name, val_name, test_name)
        made = sets.from_folders(path, tfms, folders, hold_out, groups, rules, test_with_labels=test_with_labels)
        return cls._of(path, made, bs, tfms, options)

    @classmethod
    @explains_options
    def from_name_re(
        cls,
        path: PathLike,
        pat: str | re.Pattern[str],
        bs: int = 64,
        tfms: Tfms | None = None,
        folder: str = ".",
        val_idxs: ValIdxs = None,
        test_name: str | None = None,
        test_with_labels: bool = False,
        *,
        val_pct: float = 0.2,
        groups: Callable[[str], Hashable] | None = None,
        allow_outside: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read images whose file names contain their class, such as 'cloudy12.jpg' with ``r"^([a-z]+)"``.

        Args:
            path: the data's root.
            pat: a regular expression that is searched in each name, relative to folder; its one group is the class.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            folder: the folder of the images, below path; by default path itself.
            val_idxs: rows for validation, of the names sorted by code point; by default `val_pct` of every class.
            test_name: the folder of test images.
            test_with_labels: whether their names contain their class, too.
            val_pct: see val_idxs.
            groups: see `from_paths`; names are relative to folder.
            allow_outside: see `from_paths`.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: the folder, or every image in it, is missing.
            LabelError: names do not match, or give a single class.
            ValueError: pat has no group, or several, or val_idxs do not fit.
        """
        return cls.from_name_func(
            path,
            label_by(pat),
            bs,
            tfms,
            folder,
            val_idxs,
            test_name,
            test_with_labels,
            val_pct=val_pct,
            groups=groups,
            allow_outside=allow_outside,
            **options,
        )

    @classmethod
    @explains_options
    def from_name_func(
        cls,
        path: PathLike,
        label_func: Callable[[str], str | None],
        bs: int = 64,
        tfms: Tfms | None = None,
        folder: str = ".",
        val_idxs: ValIdxs = None,
        test_name: str | None = None,
        test_with_labels: bool = False,
        *,
        val_pct: float = 0.2,
        groups: Callable[[str], Hashable] | None = None,
        allow_outside: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read images whose class is a function of their name.

        Args:
            path: the data's root.
            label_func: gets a name relative to folder, such as 'a/cloudy12.jpg'; returns the class, or None to leave
                the image out.
            bs: see `from_name_re`, as all that follows.
            tfms: see there.
            folder: see there.
            val_idxs: see there; rows without a class do not count.
            test_name: see there.
            test_with_labels: see there.
            val_pct: see there.
            groups: see there.
            allow_outside: see there.
            **options: see `Options`.

        Raises:
            FileNotFoundError: the folder, or every image in it, is missing.
            LabelError: a label is no text or empty, or there is a single class.
            ValueError: val_idxs do not fit.
        """
        path, tfms = given_path(path), check_tfms(tfms)
        hold_out = sets.HoldOut(val_pct, options.get("seed", SEED))
        made = sets.from_names(
            path,
            tfms,
            label_func,
            folder,
            val_idxs,
            hold_out,
            groups,
            test_name,
            test_with_labels=test_with_labels,
            allow_outside=allow_outside,
        )
        return cls._of(path, made, bs, tfms, options)

    @classmethod
    @explains_options
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
        fn_col: Column | None = None,
        label_col: Column | Sequence[Column] | None = None,
        split_col: Column | None = None,
        label_delim: str | None = None,
        multi: bool | None = None,
        missing: Missing = "raise",
        val_csv: PathLike | None = None,
        test_csv: PathLike | None = None,
        sep: str | None = None,
        encoding: str = "utf-8-sig",
        val_pct: float = 0.2,
        groups: Column | None = None,
        allow_outside: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read images in path/folder, labelled by a table with a file name and a label or labels in each row.

        One line reports how the table was read. Where it has more columns than a file and a label, those to use must
        be named, unless all others hold 0 and 1. A table without labels takes the folder of each file for its class.

        Args:
            path: the data's root.
            folder: the folder of the images.
            csv_fname: the table, below the working folder or below path.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            val_idxs: rows for validation, counted from 0 without the header; by default `val_pct` of every class.
            suffix: what a name in the table lacks, e.g. '.jpg'.
            test_name: the folder of test images, which have no labels.
            continuous: whether the labels are numbers to be predicted; then every further column is one.
            skip_header: whether the first line names the columns, unless it names a file.
            cat_separator: what stands between several labels where there are several; the original's name.
            fn_col: the column of the files, by name or counted from 0; by default the one that names most files.
            label_col: the column of the labels; or a list of columns, one for each class, of 0 and 1, or -1 and 1; or
                of numbers when continuous.
            split_col: a column of 'train', 'valid' and 'test', or of other usual names, see
                `fastclf.data.sources.set_names`; or of 0, 1, True and False, named is_valid or is_train.
                Without rows for validation, `val_pct` is held out. Test rows may have labels.
            label_delim: what stands between several labels; a blank means any white space.
            multi: whether an image may have several labels. By default, whether cells hold lists, '|' or ';', or words
                that vary independently of each other: in more combinations than there are words that never stand alone.
            missing: what happens when rows have no file: "raise" names them, "skip" goes on without them and lists them
                in tmp/missing_images.csv.
            val_csv: a table of the rows for validation, of the same columns.
            test_csv: a table of the rows for test, of the same columns; its labels may be empty.
            sep: what stands between columns; by default found out. A blank means any white space.
            encoding: of the table; UTF-16 is known by its first bytes.
            val_pct: see val_idxs.
            groups: the column of what images belong to, such as a person or a place, see `from_paths`.
            allow_outside: see `from_paths`.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: a folder, the table or the file of a row is missing.
            DataError: the table or a column of it cannot be used.
            LabelError: a row cannot be used, or the column of the labels must be named; shows how.
            ValueError: val_idxs or other arguments do not fit.
        """
        rules = TableRules(
            "from_csv",
            suffix=suffix,
            continuous=continuous,
            multi=multi,
            cat_separator=cat_separator,
            label_delim=label_delim,
            fn_col=fn_col,
            label_col=label_col,
            split_col=split_col,
            missing=missing,
            groups=groups,
        )
        files = {"train": csv_fname, "valid": val_csv, "test": test_csv}
        read = {
            part: read_csv(file, given_path(path), sep, encoding, skip_header=skip_header)
            for part, file in files.items()
            if file is not None
        }
        chosen = val_idxs, val_pct
        return cls._of_tables(path, folder, read, rules, chosen, test_name, allow_outside, bs, tfms, options)

    @classmethod
    @explains_options
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
        fn_col: Column | None = None,
        label_col: Column | Sequence[Column] | None = None,
        split_col: Column | None = None,
        label_delim: str | None = None,
        multi: bool | None = None,
        missing: Missing = "raise",
        val_pct: float = 0.2,
        groups: Column | None = None,
        allow_outside: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Return data as `from_csv` does, from a data frame ``df``.

        A cell may hold a list of labels; the index is not used. Arguments as there.
        """
        rules = TableRules(
            "from_df",
            suffix=suffix,
            continuous=continuous,
            multi=multi,
            cat_separator=cat_separator,
            label_delim=label_delim,
            fn_col=fn_col,
            label_col=label_col,
            split_col=split_col,
            missing=missing,
            groups=groups,
        )
        chosen = val_idxs, val_pct
        return cls._of_tables(
            path, folder, {"train": read_df(df)}, rules, chosen, test_name, allow_outside, bs, tfms, options
        )

    @classmethod
    @explains_options
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
        groups: Sequence[Hashable] | None = None,
        **options: Unpack[Options],
    ) -> Self:
        """Take images, or rows of activations, from arrays; or images from a source of your own.

        Args:
            path: where models and other files are kept.
            trn: (x, y). x is `[N, H, W, 3]` uint8, or float in 0..1; or `[N, F]` activations; or the path of a
                `.npy` file of one of these, which is mapped; or a `Source` of encoded images. y is `[N]` whole numbers
                0..C-1 or names; `[N, C]` of 0 and 1 for several labels; any numbers when `continuous`.
            val: the same for validation.
            bs: rows per batch.
            tfms: (training, validation) transforms, for images.
            classes: names of the classes 0, 1, ...; by default the numbers, or the sorted names in y.
            test: x, or (x, y) with y as in val; without y, zeros stand in its place.
            continuous: whether y are numbers to be predicted.
            groups: what each training row belongs to, one entry per row, see `from_paths`.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            ValueError: a shape, a type or a value does not fit; says where.
            LabelError: a label does.
        """
        sources, labels = checked_sets(given_path(path), trn, val, test, classes, continuous=continuous)
        tfms = None if sources[0].holds_rows else check_tfms(tfms)
        return cls._of(path, sets.from_sources(tfms, sources, labels, groups), bs, tfms, options)

    @classmethod
    @explains_options
    def from_shards(
        cls,
        shards: Patterns,
        bs: int = 64,
        tfms: Tfms | None = None,
        val: Patterns | None = None,
        test: Patterns | None = None,
        *,
        image: str | None = None,
        label: str | None = None,
        path: PathLike | None = None,
        classes: Sequence[str] | None = None,
        continuous: bool = False,
        val_pct: float = 0.2,
        val_idxs: ValIdxs = None,
        groups: Callable[[str], Hashable] | None = None,
        allow_empty: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read images in tar archives by webdataset's convention: the files of a sample share the name up to its dot.

        Any image is read by itself, as an index of each archive is made once and kept in the user's cache folder.

        Args:
            shards: archives to train on: a name, a glob, a pattern such as 'train-{000..099}.tar', or a list of these.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            val: archives for validation.
            test: archives for test; without labels, zeros stand in their place.
            image: the extension of the images, several with ';' between them; by default any image.
            label: the extension of the labels, with a field of JSON after a colon: 'cls', 'txt', 'json:species'; by
                default the first of cls, txt and json that is there.
            path: where models and other files are kept; by default the folder that all archives are below.
            classes: the names of the classes, of which labels are the names or the numbers from 0.
            continuous: whether the labels are numbers to be predicted.
            val_pct: share of every class that is held out without val.
            val_idxs: rows for validation, counted from 0 in the order of the data, instead.
            groups: see `from_paths`; names are those of ``data.trn_ds.fnames``, such as 'train-003.tar/cat/12.jpg'.
            allow_empty: whether a class may have no training image.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: files are missing; names them.
            DataError: a file or a column of it cannot be used; says what helps.
            LabelError: an image has no label, or one that training does not have; names it.
            ValueError: val_idxs do not fit, or a row has no group.
        """
        root, files = _by_set(shards, val, test, "from_shards")
        rows: Mapping[str, LabelledRows] = read_shards(root, files, ShardRules(image, label))
        if groups is not None:
            rows = sets.with_groups(rows, groups)
        rules = LabelRules("from_shards", classes, continuous, allow_empty)
        return cls._of_rows(root if path is None else path, rows, rules, (val_idxs, val_pct), bs, tfms, options)

    @classmethod
    @explains_options
    def from_parquet(
        cls,
        files: Patterns,
        bs: int = 64,
        tfms: Tfms | None = None,
        val: Patterns | None = None,
        test: Patterns | None = None,
        *,
        image_col: str = "image",
        label_col: str = "label",
        path: PathLike | None = None,
        classes: Sequence[str] | None = None,
        continuous: bool = False,
        val_pct: float = 0.2,
        val_idxs: ValIdxs = None,
        groups: str | None = None,
        allow_empty: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read images in parquet files: encoded bytes, {bytes, path} as Hugging Face writes them, or paths of files.

        A row group is decoded whole. Where shuffled epochs want more of them than 256 MB hold, decoded copies are made
        in tmp/row_groups, in the folder that all files are below, as large as the images; `fastclf cache prune` removes
        old ones.

        Args:
            files: to train on, named as in `from_shards`.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            val: files for validation.
            test: files for test; without labels, zeros stand in their place.
            image_col: the column of the images.
            label_col: the column of the labels; lists are several labels per image.
            path: where models and other files are kept; by default the folder that all files are below.
            classes: the names of the classes, of which labels are the names or the numbers from 0.
            continuous: whether the labels are numbers to be predicted.
            val_pct: share of every class that is held out without val.
            val_idxs: rows for validation, counted from 0 in the order of the data, instead.
            groups: the column of what images belong to, such as a person or a place, see `from_paths`.
            allow_empty: whether a class may have no training image.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: files are missing; names them.
            DataError: a file or a column of it cannot be used; says what helps.
            LabelError: an image has no label, or one that training does not have; names it.
            ValueError: val_idxs do not fit, or a row has no group.
        """
        root, named = _by_set(files, val, test, "from_parquet")
        rows = read_parquet(root, named, image_col, label_col, groups)
        rules = LabelRules("from_parquet", classes, continuous, allow_empty)
        return cls._of_rows(root if path is None else path, rows, rules, (val_idxs, val_pct), bs, tfms, options)

    @classmethod
    @explains_options
    def from_hf(
        cls,
        dataset: Any,
        bs: int = 64,
        tfms: Tfms | None = None,
        val: str | None = None,
        test: str | None = None,
        *,
        image_col: str = "image",
        label_col: str = "label",
        path: PathLike | None = None,
        classes: Sequence[str] | None = None,
        continuous: bool = False,
        val_pct: float = 0.2,
        val_idxs: ValIdxs = None,
        groups: str | None = None,
        allow_empty: bool = False,
        **options: Unpack[Options],
    ) -> Self:
        """Read a Hugging Face data set: a folder that ``save_to_disk`` has written, a Dataset or a DatasetDict.

        Args:
            dataset: the folder or the object; its split 'train', or one of another usual name, is trained on.
            bs: rows per batch.
            tfms: (training, validation) transforms, from `tfms_from_model`.
            val: the split for validation; by default one with a usual name, see `fastclf.data.sources.set_names`.
            test: the split for test, chosen likewise; without labels, zeros stand in their place.
            image_col: the column of the images.
            label_col: the column of the labels; the names of a ClassLabel are the classes.
            path: where models and other files are kept; by default the data set's folder; an object has none.
            classes: the names of the classes, of which labels are the names or the numbers from 0.
            continuous: whether the labels are numbers to be predicted.
            val_pct: share of every class that is held out without val.
            val_idxs: rows for validation, counted from 0 in the order of the data, instead.
            groups: the column of what images belong to, such as a person or a place, see `from_paths`.
            allow_empty: whether a class may have no training image.
            **options: see `Options`.

        Returns:
            The data.

        Raises:
            FileNotFoundError: files are missing; names them.
            DataError: a file or a column of it cannot be used; says what helps.
            LabelError: an image has no label, or one that training does not have; names it.
            ValueError: val_idxs do not fit, or a row has no group.
        """
        folder, splits = splits_of(dataset, val, test)
        root = folder if path is None else given_path(path).absolute()
        if root is None:
            raise ValueError("from_hf: path must be given for data in memory: models and other files are kept there.")
        rows = read_hf(folder or root, splits, image_col, label_col, groups)
        rules = LabelRules("from_hf", classes, continuous, allow_empty)
        return cls._of_rows(root if path is None else path, rows, rules, (val_idxs, val_pct), bs, tfms, options)

    @classmethod
    def _of_tables(
        cls,
        path: PathLike,
        folder: str,
        tables: dict[str, LabelTable],
        rules: TableRules,
        chosen: tuple[ValIdxs, float],
        test_name: str | None,
        allow_outside: bool,
        bs: int,
        tfms: Tfms | None,
        options: Options,
    ) -> Self:
        val_idxs, val_pct = chosen
        path, tfms, hold_out = given_path(path), check_tfms(tfms), sets.HoldOut(val_pct, options.get("seed", SEED))
        made = sets.from_tables(
            path, tfms, tables, folder, rules, val_idxs, hold_out, test_name, allow_outside=allow_outside
        )
        return cls._of(path, made, bs, tfms, options)

    @classmethod
    def _of_rows(
        cls,
        path: PathLike,
        rows: Mapping[str, LabelledRows],
        rules: LabelRules,
        chosen: tuple[ValIdxs, float],
        bs: int,
        tfms: Tfms | None,
        options: Options,
    ) -> Self:
        val_idxs, val_pct = chosen
        hold_out = sets.HoldOut(val_pct, options.get("seed", SEED))
        made = sets.from_rows(check_tfms(tfms), rows, rules, val_idxs, hold_out)
        return cls._of(path, made, bs, tfms, options)

    @classmethod
    def _of(cls, path: PathLike, made: sets.Sets, bs: int, tfms: Tfms | None, options: Options) -> Self:
        trn, val, test = made
        warn_imbalance(trn)
        warn_divided(trn, val)
        return cls(path, trn, val, test, bs=bs, tfms=tfms, **options)


def _by_set(
    train: Patterns, val: Patterns | None, test: Patterns | None, call: str
) -> tuple[Path, dict[str, list[Path]]]:
    """Return the folder that all files are below, and the files of each set."""
    named = {"train": train, "valid": val, "test": test}
    files = {part: files_of(one, f"{call}: {part}") for part, one in named.items() if one is not None}
    every = [file for those in files.values() for file in those]
    check_once(every, call)
    return common_folder(every), files
