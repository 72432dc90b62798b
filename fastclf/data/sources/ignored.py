"""Files and folders that are no data, by their names: hidden ones, and what systems, programs and this library keep."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

OWN_FOLDERS = ("tmp", "models")
"""Where the library keeps its files, directly below the data's path: never classes."""
CACHE_TAG = "CACHEDIR.TAG"
"""A folder with this file holds what was made from other files; see https://bford.info/cachedir."""
RESULTS_TAG = ".fastclf"
"""A folder with this file holds what commands have written, such as plots."""
# What operating systems, NAS and archivers leave in any folder, in any case; names with a leading dot aside.
_SYSTEM = re.compile(
    r"__macosx|__pycache__|@eadir|@tmp|#recycle|#snapshot|@recycle|@recently-snapshot|\$recycle\.bin|lost\+found|lost\.dir"
    r"|system volume information|found\.000|(eh)?thumbs\.db|desktop\.ini|icon\r",
    re.IGNORECASE,
)
# Hidden folders of programs that copy images into them. Any other hidden folder with images may be a class.
_PROGRAMS = re.compile(
    r"\.(_.*|ipynb_checkpoints|thumb.*|xvpics|picasa.*|cache|trash.*|appledouble|temporaryitems|nfs.*|sync.*|stversions"
    r"|dropbox.*|git|dvc|idea|vscode)",
    re.IGNORECASE,
)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or an operating system keeps it for itself."""
    return name.startswith(".") or _SYSTEM.fullmatch(name) is not None


def is_a_programs(name: str) -> bool:
    """Return whether an operating system or a program keeps a hidden folder of this name, so that it is no class."""
    return (_SYSTEM.fullmatch(name) or _PROGRAMS.fullmatch(name)) is not None


def is_tagged(folder: Path) -> bool:
    """Return whether a folder holds copies of images, or results such as plots, and so no data."""
    tags = (CACHE_TAG, RESULTS_TAG)
    return any(os.path.exists(folder / tag) for tag in tags)  # noqa: PTH110  # no error where the folder may not be read


def tag_as_results(folder: Path) -> None:
    """Mark a new folder of results; backups keep it, other than one that is tagged as a cache.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS_TAG).write_text("Results of fastclf: no images to train on or to classify.\n")


def tag_as_cache(folder: Path) -> None:
    """Mark a folder of files that were made from others, where it can be written: no listing takes them for data."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CACHE_TAG).write_text("Signature: 8a477f597d28d172789f06886806bc55\n# Copies made by fastclf.\n")
