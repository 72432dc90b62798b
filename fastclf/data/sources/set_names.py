"""Which set a name means, be it that of a folder, a split, a file, or a cell or a column of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

SetName: TypeAlias = Literal["train", "valid", "test"]

SETS: tuple[SetName, ...] = get_args(SetName)

_NAMES: dict[SetName, tuple[str, ...]] = {  # the most usual first
    "train": ("train", "training", "trn", "tr"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "test": ("test", "testing", "tst"),
}
_KNOWN = {name: part for part, names in _NAMES.items() for name in names}
_ALONE = ("train", "training", "valid", "validation", "val", "test")
_BEHIND = re.compile(r"[ _-]?(set|split|data|part|image|img|shard|file)s?$")  # 'train_set', 'testimages'
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def set_named(name: str) -> SetName | None:
    """Return the set that a name means, such as 'Val', 'dev' or 'test_images'; None where it means none."""
    plain = name.strip().lower()
    return _KNOWN.get(plain) or _KNOWN.get(_BEHIND.sub("", plain))


def set_of_file(name: str) -> SetName | None:
    """Return the set that the first word of a file's name means: 'train-003.tar', 'val_1.parquet', 'testA.tar'."""
    word = _WORD.match(name)
    return None if word is None else set_named(word[0])


def set_asked(title: str) -> SetName | None:
    """Return the set that a column of yes and no is about, by its title: 'is_valid', 'in train', 'test'.

    Alone, the less usual names mean other things as often: 'tr' is Turkish.
    """
    plain = title.strip().lower()
    asked = re.sub("^(is|in)[ _]?", "", plain)
    return set_named(asked) if asked != plain or _BEHIND.sub("", plain) in _ALONE else None


def named_as(part: SetName, names: Iterable[str]) -> list[str]:
    """Return those of some names that mean a set, the most usual first."""
    usual = {name: i for i, name in enumerate(_NAMES[part])}
    return sorted((name for name in names if set_named(name) == part), key=lambda name: usual.get(name, len(usual)))
