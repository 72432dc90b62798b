"""The photographs of FASTCLF_TEST_DATA, in folders that may be written: links, so that thousands take no room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest


def source(name: str) -> Path:
    """The folder `name` of the photographs; skips the benchmark where there are none."""
    root = os.environ.get("FASTCLF_TEST_DATA")
    if not root:
        pytest.skip("needs photographs: set FASTCLF_TEST_DATA")
    return Path(root) / name


def link(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(file.resolve())
    except OSError:  # another disk
        shutil.copy(file, target)


def catsdogs(target: Path, n: int | None = None) -> Path:
    """train/ and valid/ of cats and dogs; of each class at most `n` in train and `n // 3` in valid."""
    root = source("catsdogs")
    for split, most in (("train", n), ("valid", n and max(1, n // 3))):
        for kind in ("cats", "dogs"):
            for file in sorted((root / split / kind).iterdir())[:most]:
                link(file, target / split / kind / file.name)
    return target


def many(target: Path, n: int) -> Path:
    """`n` training images, the photographs again and again, each with a comment of its own, and two for validation."""
    files = sorted((source("catsdogs") / "train").glob("*/*.jpg"))
    for i in range(n):
        file = files[i * 7 % len(files)]
        jpeg, copy = file.read_bytes(), target / "train" / file.parent.name / f"{i:06d}.jpg"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(jpeg[:2] + b"\xff\xfe\x00\x08%06d" % i + jpeg[2:])  # else one row would do for all copies
    for kind in ("cats", "dogs"):
        link(next(file for file in files if file.parent.name == kind), target / "valid" / kind / "0.jpg")
    return target


def scenes(target: Path, n: int | None = None) -> Path:
    """Landscapes with several labels and their table; every k-th, so that about `n` remain."""
    root = source("scenes")
    head, *rows = (root / "train_tags.csv").read_text().splitlines()
    rows = rows[:: max(1, len(rows) // n) if n else 1]
    for row in rows:
        link(root / "train" / f"{row.split(',')[0]}.jpg", target / "train" / f"{row.split(',')[0]}.jpg")
    (target / "train_tags.csv").write_text("\n".join([head, *rows]) + "\n")
    return target
