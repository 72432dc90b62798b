"""What commands that read a labelled data set share: its options, and the data that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastclf.commands.sources import kind_of, packed_data
from fastclf.data.sources.ignored import RESULTS_TAG
from fastclf.files import check_csv_name, given_path

if TYPE_CHECKING:
    from fastclf.data.classifier_data import ImageClassifierData

PACKED = "tar archives ('{000..099}.tar'), parquet files, a folder of these, or a Hugging Face data set on disk"
"""What commands take beside images in files."""


def path_argument(text: str) -> Path:
    """Return the path that an option names.

    Raises:
        argparse.ArgumentTypeError: it is empty, as a shell variable that is not set.
    """
    try:
        return given_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def table_argument(text: str) -> Path:
    """Return the path of a table that an option asks for; wrong names are known now and not after the work.

    Raises:
        argparse.ArgumentTypeError: it is empty, or named as a table of another format than CSV.
    """
    path = path_argument(text)
    try:
        check_csv_name(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the data are."""
    parser.add_argument(
        "data",
        metavar="DATA",
        type=path_argument,
        help="a folder with train/<class>/ and, if you like, valid/<class>/; or with <class>/ alone; or "
        f"{PACKED}, whose names may begin with train, val and test",
    )
    parser.add_argument(
        "--val", metavar="FILES", help="archives or parquet files for validation; of a data set, a split"
    )
    parser.add_argument("--test", metavar="FILES", help="the same for test")
    add_table_arguments(parser)
    parser.add_argument(
        "--name-re", metavar="PATTERN", help="a regular expression whose group is the class in a file's name"
    )
    parser.add_argument("--split-col", metavar="COLUMN", help="with --csv: the column of train, valid and test")
    parser.add_argument(
        "--group-col",
        metavar="COLUMN",
        help="of tables, parquet files and data sets the column of what images belong to, such as a person or a place: "
        "one group is in one set, and in one fold",
    )
    parser.add_argument(
        "--group-re",
        metavar="PATTERN",
        help="the same by names of files: a regular expression whose group is what an image belongs to",
    )
    parser.add_argument("--missing", choices=("raise", "skip"), default="raise", help="with --csv: rows without a file")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of DATA")
    parser.add_argument("--bs", type=int, default=64, help="images per batch")
    parser.add_argument("--seed", type=int, default=42, help="of the split, the order and the augmentations")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a table that labels the images."""
    parser.add_argument(
        "--csv", type=path_argument, metavar="FILE", help="a table of file names and labels, instead of folders"
    )
    parser.add_argument(
        "--folder", default=".", help="below DATA: where the images are that a table or their names label"
    )
    parser.add_argument("--suffix", default="", help="with --csv: what the names in the table lack, such as .jpg")
    parser.add_argument("--fn-col", metavar="COLUMN", help="with --csv: the column of the files")
    add_column_arguments(parser)


def columns_of(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the columns of a table that were named; those that are numbers count from 0, as in the Python calls."""
    named = {name: getattr(arguments, name) for name in names}
    return {name: int(column) if column and column.isdecimal() else column for name, column in named.items()}


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of what holds the labels and the images."""
    parser.add_argument(
        "--label-col",
        metavar="COLUMN",
        help="the column of the labels; of archives, the extension of the labels' files, such as cls or json:species",
    )
    parser.add_argument(
        "--image-col",
        metavar="COLUMN",
        help="of parquet files and data sets the column of the images; of archives the extension of images",
    )


def read_data(arguments: argparse.Namespace, tfms: Any, **options: Any) -> ImageClassifierData:
    """Return the data that the options name; class folders without a folder ``train`` around them are taken as well."""
    from fastclf.data.classifier_data import ImageClassifierData
    from fastclf.data.sources.listing import look

    path, options = arguments.data, {"bs": arguments.bs, "tfms": tfms, "seed": arguments.seed, **options}
    options["allow_outside"] = arguments.allow_outside
    kind = kind_of(path)
    options |= _groups(arguments, in_names=arguments.csv is None and kind not in ("parquet", "hf"))
    if arguments.csv is not None:
        columns = columns_of(arguments, "fn_col", "label_col", "split_col")
        how = {"suffix": arguments.suffix, "missing": arguments.missing} | columns
        return ImageClassifierData.from_csv(path, arguments.folder, arguments.csv, **how, **options)
    if arguments.name_re is not None:
        return ImageClassifierData.from_name_re(path, arguments.name_re, folder=arguments.folder, **options)
    if kind != "images":
        del options["allow_outside"]
        return packed_data(kind, arguments, options)
    if any(getattr(arguments, name) is not None for name in ("val", "test", "label_col", "image_col")):
        raise ValueError(
            "--val, --test, --label-col and --image-col are for tables, archives, parquet files and data sets"
        )
    try:
        return ImageClassifierData.from_paths(path, **options)
    except FileNotFoundError:
        if len([name for name in look(path)[0] if look(path / name)[1]]) < 2:
            raise
    return ImageClassifierData.from_paths(path, trn_name=".", **options)


def _groups(arguments: argparse.Namespace, *, in_names: bool) -> dict[str, Any]:
    """Return groups= as the call that makes the data takes it, where an option names groups."""
    from fastclf.data.sources.name_labels import group_by

    wrong, right = ("group_col", "group_re") if in_names else ("group_re", "group_col")
    if getattr(arguments, wrong) is not None:
        what = "names of files" if in_names else "columns"
        raise ValueError(f"--{wrong.replace('_', '-')}: such data have {what}. Pass --{right.replace('_', '-')}.")
    if getattr(arguments, right) is None:
        return {}
    if in_names:
        return {"groups": group_by(arguments.group_re)}
    columns = columns_of(arguments, "group_col")
    return {"groups": columns["group_col"] if arguments.csv is not None else arguments.group_col}


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which body sees the images, and how."""
    parser.add_argument("--arch", default="efficientnet_lite0", help="such as resnet34, or a timm name")
    parser.add_argument("--weights", type=path_argument, help="a file of weights for the body")
    add_image_arguments(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images are seen."""
    parser.add_argument("--sz", type=int, default=224, help="side of the squares that the model sees, in pixels")
    parser.add_argument("--on-bad", choices=("raise", "skip"), default="raise", help="images that cannot be decoded")


def arch_named(name: str) -> Any:
    """Return the architecture of a name: one of fastclf's, or what `ConvLearner.pretrained` makes of the text."""
    import fastclf
    from fastclf.models.archs import Arch

    known = getattr(fastclf, name, name)
    return known if isinstance(known, Arch) else name


def new_folder(path: Path) -> Path:
    """Return the absolute path of a folder that a command may fill.

    Raises:
        FileExistsError: something is there.
        OSError: nothing can be written there, which is known now and not after training.
    """
    out = path.absolute()
    if out.exists() and (not out.is_dir() or {one.name for one in out.iterdir()} - {RESULTS_TAG}):
        raise FileExistsError(f"{path} is there already, and no run is overwritten. Pass -o with a new folder.")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    try:
        with TemporaryDirectory(prefix=".fastclf-", dir=above):
            pass
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot be made ({error.strerror}). Pass -o with another folder", str(path)
        ) from error
    return out
