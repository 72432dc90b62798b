"""What commands that read a labelled data set share: its options, and the data that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from fastclf.commands.sources import files_by_set, kind_given, options_for
from fastclf.data.sources.ignored import RESULTS_TAG
from fastclf.files import check_csv_name
from fastclf.paths import given_path

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
    parser.add_argument("--missing", choices=("raise", "skip"), help="with --csv: rows without a file (default: raise)")
    parser.add_argument("--allow-outside", action="store_true", help="follow links that lead out of DATA")
    parser.add_argument("--bs", type=int, default=64, help="images per batch")
    parser.add_argument("--seed", type=int, default=42, help="of the split, the order and the augmentations")


def add_table_arguments(parser: argparse.ArgumentParser, *, labelled: bool = True) -> None:
    """Add the options of a table of images, and of what holds images and their labels where these are packed."""
    what = "a table of file names and labels, instead of folders" if labelled else "a table of file names"
    parser.add_argument("--csv", type=path_argument, metavar="FILE", help=what)
    where = "with --csv or --name-re: where" if labelled else "with --csv: where"
    parser.add_argument("--folder", metavar="FOLDER", help=f"{where} the images are, below the folder of the data")
    parser.add_argument("--suffix", metavar="TEXT", help="with --csv: what the names in the table lack, such as .jpg")
    usual = "the one that names most" if labelled else "'file', or the one that names most"
    parser.add_argument("--fn-col", metavar="COLUMN", help=f"with --csv: the column of the files (default: {usual})")
    if labelled:
        parser.add_argument(
            "--label-col",
            metavar="COLUMN",
            help="the column of the labels; of archives the extension of their files, such as cls or json:species",
        )
        parser.add_argument(
            "--name-re", metavar="PATTERN", help="a regular expression whose group is the class in a file's name"
        )
        parser.add_argument("--split-col", metavar="COLUMN", help="with --csv: the column of train, valid and test")
    parser.add_argument(
        "--image-col",
        metavar="COLUMN",
        help="of parquet files and data sets the column of the images; of archives the extension of images",
    )


def add_model_arguments(parser: argparse.ArgumentParser, *, predicts: bool = True) -> None:
    """Add the saved model, and how it predicts where a command lets it."""
    parser.add_argument(
        "model", metavar="MODEL", help="a saved model: models/NAME, or a folder with one, such as a run"
    )
    if predicts:
        parser.add_argument("--bs", type=int, default=64, help="images at once")
        parser.add_argument("--device", help="cpu or cuda (default: the GPU when there is one)")


def read_data(arguments: argparse.Namespace, tfms: Any, **options: Any) -> ImageClassifierData:
    """Return the data that the options name; class folders without a folder ``train`` around them are taken as well."""
    from fastclf.data.classifier_data import ImageClassifierData
    from fastclf.data.sources.listing import look

    path, kind = arguments.data, kind_given(arguments, arguments.data)
    options = {"bs": arguments.bs, "tfms": tfms, "seed": arguments.seed, **options, **options_for(kind, arguments)}
    if kind == "csv":
        return ImageClassifierData.from_csv(path, options.pop("folder", "."), options.pop("csv"), **options)
    if kind == "name_re":
        return ImageClassifierData.from_name_re(path, **options)
    if kind == "hf":
        return ImageClassifierData.from_hf(path, **options)
    if kind != "folders":
        files = files_by_set(path)
        make = ImageClassifierData.from_shards if kind == "shards" else ImageClassifierData.from_parquet
        return make(files["train"], **{"val": files.get("valid"), "test": files.get("test"), **options})
    try:
        return ImageClassifierData.from_paths(path, **options)
    except FileNotFoundError:
        if len([name for name in look(path)[0] if look(path / name)[1]]) < 2:
            raise
    return ImageClassifierData.from_paths(path, trn_name=".", **options)


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
