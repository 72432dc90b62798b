"""Files that a list, a brace pattern such as 'train-{000..099}.tar', or a glob names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from fastclf.data.sources.names import printable
from fastclf.errors import DataError
from fastclf.paths import given_path

Pattern: TypeAlias = str | os.PathLike[str]
Patterns: TypeAlias = Pattern | Sequence[Pattern]

_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")  # an innermost pair
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ELSEWHERE = re.compile(r"(pipe:|[a-z][a-z0-9+.-]*://)", re.IGNORECASE)


def files_of(patterns: Patterns, argument: str) -> list[Path]:
    """Return the files that patterns name, absolute: those of each in its order, those of a glob sorted.

    Args:
        patterns: one or several; braces have ranges, '{000..099}', or alternatives, '{a,b}'.
        argument: what is given them, for messages, such as "from_shards: val".

    Raises:
        FileNotFoundError: files are missing, or a glob matches none; names them.
        ValueError: a file is named twice, or it is no file of this machine.
    """
    given = [patterns] if isinstance(patterns, str | os.PathLike) else list(patterns)
    files = [file.absolute() for one in given for file in _files(os.fsdecode(one), argument)]
    if not files:
        raise ValueError(f"{argument} must name a file, got none. Pass e.g. 'train-{{000..099}}.tar'.")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{argument}: {len(missing)} of {len(files)} files are not there, first "
            f"{', '.join(printable(str(file)) for file in missing[:3])}.{_hint(missing[0])}"
        )
    check_once(files, argument)
    return files


def check_once(files: Iterable[Path], argument: str) -> None:
    """Raise ValueError where a file is named twice: its images would be in two sets, or count double."""
    known: set[Path] = set()
    for file in files:
        real = file.resolve()
        if real in known:
            raise ValueError(f"{argument} must name each file once, got {printable(str(file))} twice. Leave one out.")
        known.add(real)


def common_folder(files: Sequence[Path]) -> Path:
    """Return the folder that all files are below."""
    return Path(os.path.commonpath([file.parent for file in files]))


def _hint(missing: Path) -> str:
    if missing.is_dir():
        return f" That is a folder: pass '{missing}/*{missing.suffix or '.tar'}'."
    return f" {missing.parent} is no folder." if not missing.parent.is_dir() else " Check the pattern."


def _files(pattern: str, argument: str) -> Iterator[Path]:
    if _ELSEWHERE.match(pattern):
        raise ValueError(
            f"{argument} must be files of this machine, got {pattern!r}. Download them first: any image must be "
            "readable at any time."
        )
    if given_path(pattern).exists():  # whatever marks are in its name
        yield given_path(pattern)
        return
    folder, rest = _split(str(given_path(pattern)))
    for name in _expanded(rest, argument):
        yield from map(Path, matched(f"{folder}{name}", argument))


def matched(pattern: str, argument: str) -> list[str]:
    """Return the files that a glob matches, sorted as text; of a name without marks, or of what is there, the name.

    Raises:
        FileNotFoundError: there is no such file.
    """
    folder, rest = _split(pattern)
    if not glob.has_magic(rest) or os.path.lexists(pattern):
        return [pattern]
    names = sorted(glob.glob(rest, root_dir=folder or None, recursive=True))  # noqa: PTH207  # as written, and as text
    files = [path for name in names if os.path.isfile(path := f"{folder}{name}")]  # noqa: PTH113
    if not files:
        advice = f"It matches folders: pass {f'{pattern}/*'!r} for what is in them" if names else "Check the pattern"
        raise FileNotFoundError(f"{argument}: no file matches {pattern!r}. {advice}.")
    return files


def _split(pattern: str) -> tuple[str, str]:
    """Return the folders that a pattern begins with, whatever marks are in their names, and what follows them."""
    parts = pattern.split("/")
    known = [f"{'/'.join(parts[:n])}/" for n in range(1, len(parts))]
    folder = next((one for one in reversed(known) if os.path.isdir(one)), "")  # noqa: PTH112
    return folder, pattern[len(folder) :]


def _expanded(pattern: str, argument: str) -> Iterator[str]:
    """Yield the names that a pattern with braces stands for, as a shell does: '{08..10}' counts with its zeros.

    Raises:
        DataError: braces are no range and no alternatives.
    """
    match = _BRACES.search(pattern)
    if match is None:
        if ".." in pattern and "{" in pattern:
            raise DataError(f"{argument}: braces must be such as {{000..099}} or {{a,b}}, got {pattern!r}.")
        yield pattern
        return
    numbers = _RANGE.fullmatch(match[1])
    for one in _counted(numbers[1], numbers[2]) if numbers else _listed(match[1], argument):
        yield from _expanded(pattern[: match.start()] + one + pattern[match.end() :], argument)


def _counted(first: str, last: str) -> Iterator[str]:
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}}" for number in range(int(first), int(last) + step, step))


def _listed(inner: str, argument: str) -> list[str]:
    parts = inner.split(",")
    if any(".." in part for part in parts):  # '{a..z}', '{0..10..2}', '{0..3,7}'
        raise DataError(f"{argument}: braces must be such as {{000..099}} or {{a,b}}, got {{{inner}}}.")
    return parts
