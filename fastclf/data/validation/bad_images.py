"""Which pictures of a data set cannot be decoded, and what happens then: an error that names them all, or go on."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.errors import BadImageError
from fastclf.files import publish, require_folder, user_cache
from fastclf.report import log

OnBad: TypeAlias = Literal["raise", "skip"]

MAX_PIXELS = 178_956_970
"""Most pixels of a picture unless the user says otherwise: where Pillow refuses one as a decompression bomb."""

LIST_NAME = "bad_images.csv"
_SHOWN = 5


class BadPictures:
    """The rows of one data set whose pictures cannot be decoded.

    Attributes:
        path: the folder that the names are relative to.
        names: of the files; empty for arrays.
        n: rows of the data set.
        policy: "raise" or "skip", what `note` does.
        max_bad: most bad pictures of all sets `together` that are skipped; None for any number.
        max_pixels: a picture with more is bad; it must not be decoded at all.
        reasons: row -> why its picture cannot be decoded.
        together: the bad pictures of all sets of the data object, which are counted and listed together.
    """

    def __init__(self, path: Path, names: Sequence[str], n: int) -> None:
        self.path, self.names, self.n = path, names, n
        self.policy: OnBad = "raise"
        self.max_bad: int | None = None
        self.max_pixels = MAX_PIXELS
        self.reasons: dict[int, str] = {}
        self.together: Sequence[BadPictures] = [self]

    def note(self, found: Mapping[int, str]) -> None:
        """Adds rows and their reasons, see `note_together`."""
        note_together([(self, found)])

    def good_rows(self) -> npt.NDArray[np.int64]:
        """Returns the rows whose pictures are not known to be bad, ascending, `[n_good] int64`."""
        good = np.ones(self.n, bool)
        good[list(self.reasons)] = False
        return np.flatnonzero(good)


def bind_together(
    sets: Sequence[BadPictures], on_bad: OnBad = "raise", max_bad: int | None = None, max_pixels: int = MAX_PIXELS
) -> None:
    """Gives the sets of one data object the rules that it was made with.

    Raises:
        ValueError: when a rule is not one of those that `ImageClassifierData` takes.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"ImageClassifierData: on_bad must be 'raise' or 'skip', got {on_bad!r}.")
    if max_bad is not None and (isinstance(max_bad, bool) or not isinstance(max_bad, int) or max_bad < 0):
        raise ValueError(f"ImageClassifierData: max_bad must be a whole number of at least 0, got {max_bad!r}.")
    if max_bad is not None and on_bad == "raise":
        raise ValueError(f"ImageClassifierData: max_bad={max_bad} needs on_bad='skip', got on_bad='raise'.")
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise ValueError(f"ImageClassifierData: max_pixels must be a whole number of at least 1, got {max_pixels!r}.")
    for bad in sets:
        bad.policy, bad.max_bad, bad.max_pixels, bad.together = on_bad, max_bad, max_pixels, sets


def note_together(found: Sequence[tuple[BadPictures, Mapping[int, str]]]) -> None:
    """Adds bad rows of several sets of one data object, writes the list of all, and says or raises what it must.

    Raises:
        FileNotFoundError: when the data's folder is gone.
        BadImageError: when the policy is "raise", or there are more than `max_bad`; names every bad file. Then no row
            is added, so that one may mend the files and go on.
    """
    new = {bad: {row: why for row, why in rows.items() if row not in bad.reasons} for bad, rows in found}
    if not any(new.values()):
        return
    first = found[0][0]
    require_folder(first.path)  # else all are bad, and the list of them would bring it back
    reasons: dict[str, str] = {}
    for bad in first.together:
        rows = bad.reasons | new.get(bad, {})
        reasons |= {bad.names[row]: rows[row] for row in sorted(rows)}
    text = _described(reasons, sum(bad.n for bad in first.together))
    file = write_list(first.path, LIST_NAME, ("path", "reason"), reasons.items())
    where = f" Full list: {file}." if file else ""
    if first.policy == "raise":
        raise BadImageError(f'{text} Pass on_bad="skip" to train without them, or mend the files.{where}', reasons)
    if first.max_bad is not None and len(reasons) > first.max_bad:
        raise BadImageError(f"{text} That is more than max_bad={first.max_bad}; mend the files.{where}", reasons)
    for bad, rows in new.items():
        bad.reasons.update(rows)
    log(f"{text} They are skipped, and have no prediction.{where}")


def printable(name: str) -> str:
    r"""Returns a file name as one line: control characters and bytes that are no text as escapes such as '\n'."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)


def _described(reasons: Mapping[str, str], n: int) -> str:
    first = "; ".join(f"{printable(name)}: {why}" for name, why in itertools.islice(reasons.items(), _SHOWN))
    kinds = ""
    if len(reasons) > _SHOWN:
        counts = Counter(re.split("[:;]", why)[0] for why in reasons.values())
        kinds = ": " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{len(reasons)} of {n:,} pictures cannot be decoded ({len(reasons) / n:.2%}){kinds}. First: {first}."


def write_list(path: Path, name: str, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> Path | None:
    """Writes the table path/tmp/<name>, or else <name> in the user's cache folder.

    Returns:
        The file; None where neither can be written.
    """
    lines = [header, *((_cell(first), _cell(second)) for first, second in rows)]

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as handle:
            csv.writer(handle).writerows(lines)

    for folder in (path / "tmp", user_cache()):
        try:
            publish(folder / name, write)
        except OSError:
            continue
        return folder / name
    return None


def _cell(text: str) -> str:
    """Keeps spreadsheets from taking a name for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
