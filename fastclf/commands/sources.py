"""What DATA is: a folder of images, tar archives, parquet files, or a data set of Hugging Face; and what it holds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from fastclf.data.sources.ignored import OWN_FOLDERS
from fastclf.data.sources.listing import look
from fastclf.data.sources.set_names import set_of_file

if TYPE_CHECKING:
    from fastclf.data.sources.row_labels import LabelledRows

Kind: TypeAlias = Literal["csv", "name_re", "folders", "shards", "parquet", "hf"]

_CALLED: Mapping[Kind, str] = {
    "csv": "a table (--csv)",
    "name_re": "classes in file names (--name-re)",
    "folders": "folders of images",
    "shards": "tar archives",
    "parquet": "parquet files",
    "hf": "a Hugging Face data set",
}
_SETS = {"val": "val", "test": "test"}
_COLUMNS = {"label_col": "label_col", "image_col": "image_col", "group_col": "groups"}
_NAMES = {"group_re": "groups", "allow_outside": "allow_outside"}
_TABLE = ("csv", "folder", "suffix", "fn_col", "label_col", "split_col", "missing", "allow_outside")
OPTIONS: Mapping[Kind, Mapping[str, str]] = {
    "csv": {name: name for name in _TABLE} | {"group_col": "groups"},
    "name_re": {"name_re": "pat", "folder": "folder"} | _NAMES,
    "folders": _NAMES,
    "shards": _SETS | {"label_col": "label", "image_col": "image", "group_re": "groups"},
    "parquet": _SETS | _COLUMNS,
    "hf": _SETS | _COLUMNS,
}
"""The options that each kind of data takes, with the argument of the Python call that each one is."""

_BY_OPTION: tuple[Kind, ...] = ("csv", "name_re")
_PACKED: Mapping[str, Kind] = {".tar": "shards", ".parquet": "parquet"}


def called(kind: Kind) -> str:
    """Return what users call data of a kind."""
    return _CALLED[kind]


def kind_given(arguments: argparse.Namespace, data: Path) -> Kind:
    """Return what the data are by the options of a command, else by DATA."""
    named = [kind for kind in _BY_OPTION if getattr(arguments, kind, None) is not None]
    return named[0] if named else kind_of(data)


def options_for(kind: Kind, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the Python call for a kind of data that the options of a command stand for.

    Raises:
        ValueError: an option was given that such data do not take; says what takes it, and what to pass instead.
    """
    given = {name: getattr(arguments, name, None) for name in dict.fromkeys(chain.from_iterable(OPTIONS.values()))}
    given = {name: value for name, value in given.items() if value not in (None, False)}
    taken = OPTIONS[kind]
    for name in given:
        if name not in taken:
            raise ValueError(_refusal(name, kind, arguments))
    return {taken[name]: _value(kind, name, value) for name, value in given.items()}


def _refusal(name: str, kind: Kind, arguments: argparse.Namespace) -> str:
    there = [other for other in OPTIONS if other != name and (other not in _BY_OPTION or hasattr(arguments, other))]
    takers = {other: OPTIONS[other][name] for other in there if name in OPTIONS[other]}
    what = f": it is for {', '.join(_CALLED[other] for other in takers)}" if takers else ""
    same = (other for other, argument in OPTIONS[kind].items() if argument in takers.values())
    instead = next((f" Pass {_typed(other)}." for other in same if hasattr(arguments, other)), "")
    return f"{_typed(name)} cannot be used with {_CALLED[kind]}{what}.{instead}"


def _typed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _value(kind: Kind, name: str, value: Any) -> Any:
    """Return the value of an option as the Python call takes it; columns of a table may be counted from 0."""
    if name == "group_re":
        from fastclf.data.sources.name_labels import group_by

        return group_by(value)
    return int(value) if kind == "csv" and name.endswith("_col") and value.isdecimal() else value


def kind_of(data: Path) -> Kind:
    """Return what DATA is: by its name, or for a folder by what lies in it; one with folders in it has images."""
    if not data.is_dir():
        return _PACKED.get(data.suffix.lower(), "folders")
    if any((data / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return "hf"
    if set(look(data)[0]) - set(OWN_FOLDERS):  # what images were unpacked from may lie beside their folders
        return "folders"
    return next((kind for suffix, kind in _PACKED.items() if any(data.glob(f"*{suffix}"))), "folders")


def files_by_set(*data: Path) -> dict[str, list[Path]]:
    """Return the archives or parquet files that DATA names, by the set that their names begin with; else for training.

    Raises:
        FileNotFoundError: there are none.
        ValueError: some names begin with a set, and others do not; or none is for training.
    """
    from fastclf.data.sources.patterns import files_of

    files = files_of([file for one in data for file in _packed_in(one)], "DATA")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(set_of_file(file.name) or "", []).append(file)
    if len(found) > 1 and ("" in found or "train" not in found):
        raise ValueError(
            f"DATA: names of files must begin with train, val or test, or none of them, got {found.get('', files)[0]}. "
            "Pass a pattern for the training files, and --val and --test for the others."
        )
    return found if len(found) > 1 else {"train": files}


def _packed_in(data: Path) -> list[Path]:
    """Return the archives, or else the parquet files, of a folder; or DATA itself, which names some."""
    found = (sorted(data.glob(f"*{suffix}")) for suffix in _PACKED if data.is_dir())
    return next(filter(None, found), [data])


def rows_of(kind: Kind, data: Sequence[Path], columns: Mapping[str, Any], *, labelled: bool) -> LabelledRows:
    """Return the images of one set that are packed, with their labels where they must have some.

    Raises:
        ValueError: DATA holds several sets, or is several data sets.
    """
    first, *others = data
    part = "valid" if labelled else "test"
    if not labelled:
        columns = {**columns, "label" if kind == "shards" else "label_col": ""}  # whatever lies beside them
    if kind == "hf":
        from fastclf.data.sources.hf import read_hf, splits_of

        if others:
            raise ValueError(f"DATA must be one data set, got {first} and {others[0]}. Pass one after the other.")
        if (first / "dataset_dict.json").is_file():
            names = sorted(one.parent.name for one in first.glob("*/state.json"))
            raise ValueError(f"DATA must be one split, got {first} with {', '.join(names)}. Pass {first / names[0]}.")
        _, splits = splits_of(first, None, None)
        image, label = columns.get("image_col", "image"), columns.get("label_col", "label")
        return read_hf(first.absolute(), {part: (first.name, splits["train"][1])}, image, label)[part]
    from fastclf.data.sources.parquet import read_parquet
    from fastclf.data.sources.patterns import common_folder
    from fastclf.data.sources.shards import ShardRules, read_shards

    sets = files_by_set(*data)
    if len(sets) > 1:
        raise ValueError(f"DATA must be one set, got files of {', '.join(sets)}. Pass a pattern for one of them.")
    files = {part: next(iter(sets.values()))}
    root = common_folder(files[part])
    if kind == "shards":
        return read_shards(root, files, ShardRules(**columns))[part]
    return read_parquet(root, files, columns.get("image_col", "image"), columns.get("label_col", "label"))[part]
