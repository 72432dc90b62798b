"""What commands that read a labelled data set share: its options, and the data that they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastclf.commands.sources import column_options, kind_of, packed_data
from fastclf.files import given_path

if TYPE_CHECKING:
    from fastclf.data.classifier_data import ImageClassifierData

PACKED = "tar archives ('{000..099}.tar'), parquet files, a folder of these, or a Hugging Face data set on disk"
"""What commands take beside images in files."""


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the data are."""
    parser.add_argument(
        "data",
        metavar="DATA",
        type=given_path,
        help="a folder with train/<class>/ and, if you like, valid/<class>/; or with <class>/ alone; or "
        f"{PACKED}, whose names may begin with train, val and test",
    )
    parser.add_argument(
        "--val", metavar="FILES", help="archives or parquet files for validation; of a data set, a split"
    )
    parser.add_argument("--test", metavar="FILES", help="the same for test")
    add_table_arguments(parser)
    parser.add_argument("--bs", type=int, default=64, help="images per batch")
    parser.add_argument("--seed", type=int, default=42, help="of the split, the order and the augmentations")


def add_table_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a table that labels the images."""
    parser.add_argument(
        "--csv", type=given_path, metavar="FILE", help="a table of file names and labels, instead of folders"
    )
    add_column_arguments(parser)
    parser.add_argument("--folder", default=".", help="with --csv: where the images are, below DATA")
    parser.add_argument("--suffix", default="", help="with --csv: what the names in the table lack, such as .jpg")


def add_column_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of what holds the labels and the images."""
    parser.add_argument(
        "--label-col",
        metavar="NAME",
        help="the column of the labels; of archives, the extension of the labels' files, such as cls or json:species",
    )
    parser.add_argument(
        "--image-col",
        metavar="NAME",
        help="the column of the images, or of their files; of archives, the extension of images",
    )


def read_data(arguments: argparse.Namespace, tfms: Any, **options: Any) -> ImageClassifierData:
    """Return the data that the options name; class folders without a folder ``train`` around them are taken as well."""
    from fastclf.data.classifier_data import ImageClassifierData
    from fastclf.data.sources.listing import look

    path, options = arguments.data, {"bs": arguments.bs, "tfms": tfms, "seed": arguments.seed, **options}
    kind = kind_of(path)
    if arguments.csv is not None:
        table, suffix, columns = arguments.csv, arguments.suffix, column_options("images", arguments)
        return ImageClassifierData.from_csv(path, arguments.folder, table, suffix=suffix, **columns, **options)
    if kind != "images":
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


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which body sees the images, and how."""
    parser.add_argument("--arch", default="efficientnet_lite0", help="such as resnet34, or a timm name")
    parser.add_argument("--weights", type=given_path, help="a file of weights for the body")
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
    """
    out = path.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{path} is there already, and no run is overwritten. Pass -o with a new folder.")
    return out
