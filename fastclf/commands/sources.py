"""What DATA is: a folder of images, tar archives, parquet files, or a data set of Hugging Face; and what it holds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fastclf.data.sources.ignored import OWN_FOLDERS
from fastclf.data.sources.listing import look
from fastclf.data.sources.set_names import set_of_file

if TYPE_CHECKING:
    from fastclf.data.classifier_data import ImageClassifierData
    from fastclf.data.sources.row_labels import LabelledRows

Kind: TypeAlias = Literal["images", "shards", "parquet", "hf"]

_PACKED: Mapping[str, Kind] = {".tar": "shards", ".parquet": "parquet"}


def kind_of(data: Path) -> Kind:
    """Return what DATA is: by its name, or for a folder by what lies in it; one with folders in it has images."""
    if not data.is_dir():
        return _PACKED.get(data.suffix.lower(), "images")
    if any((data / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "hf"
    if set(look(data)[0]) - set(OWN_FOLDERS):  # what images were unpacked from may lie beside their folders
        return "images"
    return next((kind for suffix, kind in _PACKED.items() if any(data.glob(f"*{suffix}"))), "images")


def files_by_set(data: Path) -> dict[str, list[Path]]:
    """Return the archives or parquet files that DATA names, by the set that their names begin with; else for training.

    Raises:
        FileNotFoundError: there are none.
        ValueError: some names begin with a set, and others do not; or none is for training.
    """
    from fastclf.data.sources.patterns import files_of

    suffix = next((f"*{suffix}" for suffix in _PACKED if any(data.glob(f"*{suffix}"))), "") if data.is_dir() else ""
    files = files_of(data / suffix if suffix else data, "DATA")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(set_of_file(file.name) or "", []).append(file)
    if len(found) > 1 and ("" in found or "train" not in found):
        raise ValueError(
            f"DATA: names of files must begin with train, val or test, or none of them, got {found.get('', files)[0]}. "
            "Pass a pattern for the training files, and --val and --test for the others."
        )
    return found if len(found) > 1 else {"train": files}


def packed_data(kind: Kind, arguments: argparse.Namespace, options: Mapping[str, Any]) -> ImageClassifierData:
    """Return the data of archives, parquet files or a Hugging Face data set, as their options say."""
    from fastclf.data.classifier_data import ImageClassifierData

    columns = column_options(kind, arguments)
    if kind == "hf":
        return ImageClassifierData.from_hf(arguments.data, val=arguments.val, test=arguments.test, **columns, **options)
    files = files_by_set(arguments.data)
    if arguments.val is not None or arguments.test is not None:
        files = {"train": files["train"]} | {"valid": arguments.val, "test": arguments.test}
    make = ImageClassifierData.from_shards if kind == "shards" else ImageClassifierData.from_parquet
    return make(files["train"], val=files.get("valid"), test=files.get("test"), **columns, **options)


def column_options(kind: Kind, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what --label-col and --image-col are called in Python."""
    shards = {"label_col": "label", "image_col": "image"}
    names = shards if kind == "shards" else {"label_col": "label_col", "image_col": "image_col"}
    given = {name: getattr(arguments, option) for option, name in names.items()}
    return {name: value for name, value in given.items() if value is not None}


def rows_of(arguments: argparse.Namespace, data: Path, *, labelled: bool) -> LabelledRows | None:
    """Return the images of one set, with their labels where they must have some; None for files of images.

    Raises:
        ValueError: DATA holds several sets.
    """
    kind = kind_of(data)
    if kind == "images":
        return None
    part, columns = "valid" if labelled else "test", column_options(kind, arguments)
    if kind == "hf":
        from fastclf.data.sources.hf import read_hf, splits_of

        if (data / "dataset_dict.json").is_file():
            names = sorted(one.parent.name for one in data.glob("*/state.json"))
            raise ValueError(f"DATA must be one split, got {data} with {', '.join(names)}. Pass {data / names[0]}.")
        _, splits = splits_of(data, None, None)
        image, label = columns.get("image_col", "image"), columns.get("label_col", "label")
        return read_hf(data.absolute(), {part: (data.name, splits["train"][1])}, image, label)[part]
    from fastclf.data.sources.parquet import read_parquet
    from fastclf.data.sources.patterns import common_folder
    from fastclf.data.sources.shards import ShardRules, read_shards

    sets = files_by_set(data)
    if len(sets) > 1:
        raise ValueError(f"DATA must be one set, got files of {', '.join(sets)}. Pass a pattern for one of them.")
    files = {part: next(iter(sets.values()))}
    root = common_folder(files[part])
    if kind == "shards":
        return read_shards(root, files, ShardRules(**columns))[part]
    return read_parquet(root, files, columns.get("image_col", "image"), columns.get("label_col", "label"))[part]
