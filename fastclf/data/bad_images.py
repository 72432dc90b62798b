"""Which images of a data set cannot be decoded, and what happens then: an error that names them all, or go on."""

from __future__ import annotations

import itertools
import re
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fastclf.argument_checks import check_count
from fastclf.data.sources.names import printable, write_list
from fastclf.data.sources.source import Source
from fastclf.errors import BadImageError
from fastclf.paths import require_folder
from fastclf.report import log, remedy

OnBad: TypeAlias = Literal["raise", "skip"]

MAX_PIXELS = 178_956_970
"""Most pixels of an image by default: where Pillow refuses one as a decompression bomb."""

LIST_NAME = "bad_images.csv"
_SHOWN = 5


class BadImages:
    """The rows of one data set whose images cannot be decoded.

    Attributes:
        source: the images, as they were before any copies were made.
        folder: of the data object; the list of bad images is written below it.
        policy: "raise" or "skip", what `note` does.
        max_bad: most bad images of all sets `together` that are skipped; None for any number.
        max_pixels: an image with more is bad; it must not be decoded at all.
        reasons: row -> why its image cannot be decoded.
        together: the bad images of all sets of the data object, which are counted and listed together.
    """

    def __init__(self, source: Source) -> None:
        self.source, self.folder = source, source.root
        self.policy: OnBad = "raise"
        self.max_bad: int | None = None
        self.max_pixels = MAX_PIXELS
        self.reasons: dict[int, str] = {}
        self.together = [self]

    @property
    def together(self) -> list[BadImages]:
        """See above. Weak references hold them, as a reference cycle would keep the sources, and the files they map."""
        return [bad for reference in self._together if (bad := reference()) is not None]

    @together.setter
    def together(self, sets: Sequence[BadImages]) -> None:
        self._together = [weakref.ref(bad) for bad in sets]

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles hold, which weak references cannot be."""
        return self.__dict__ | {"_together": self.together}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.together = state["_together"]

    def note(self, found: Mapping[int, str]) -> None:
        """Add rows and their reasons, see `note_together`."""
        note_together([(self, found)])

    def good_rows(self) -> npt.NDArray[np.int64]:
        """Return the rows whose images are not known to be bad, ascending, `[n_good] int64`."""
        good = np.ones(len(self.source), bool)
        good[list(self.reasons)] = False
        return np.flatnonzero(good)


def bind_together(
    sets: Sequence[BadImages],
    folder: Path,
    on_bad: OnBad = "raise",
    max_bad: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Give the sets of one data object its folder and the rules that it was made with.

    Raises:
        ValueError: a rule is not one of those that `ImageClassifierData` takes.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"ImageClassifierData: on_bad must be 'raise' or 'skip', got {on_bad!r}.")
    if max_bad is not None:
        check_count("ImageClassifierData", "max_bad", max_bad, 0)
        if on_bad == "raise":
            raise ValueError(f"ImageClassifierData: max_bad={max_bad} needs on_bad='skip', got on_bad='raise'.")
    check_count("ImageClassifierData", "max_pixels", max_pixels)
    for bad in sets:
        bad.folder, bad.together = folder, sets
        bad.policy, bad.max_bad, bad.max_pixels = on_bad, max_bad, max_pixels


def note_together(found: Sequence[tuple[BadImages, Mapping[int, str]]]) -> None:
    """Add bad rows of several sets of one data object, write the list of all, and warn of them or raise.

    Raises:
        FileNotFoundError: the data's folder is gone.
        BadImageError: the policy is "raise", or there are more than `max_bad`; names every bad image. Then no row is
            added, so that one may fix the files and go on.
    """
    new = {bad: {row: why for row, why in rows.items() if row not in bad.reasons} for bad, rows in found}
    if not any(new.values()):
        return
    first = found[0][0]
    if first.source.has_paths:  # else all are bad, and the list of them would bring the folder back
        require_folder(first.source.root)
    reasons: dict[str, str] = {}
    for bad in first.together:
        rows = bad.reasons | new.get(bad, {})
        reasons |= {bad.source.name(row): rows[row] for row in sorted(rows)}
    text = _described(reasons, sum(len(bad.source) for bad in first.together))
    file = write_list(first.folder, LIST_NAME, ("path", "reason"), reasons.items())
    where = f" Full list: {file}." if file else ""
    if first.policy == "raise":
        skip = remedy('on_bad="skip"', "--on-bad skip")
        raise BadImageError(f"{text} Pass {skip} to train without them, or fix the files.{where}", reasons)
    if first.max_bad is not None and len(reasons) > first.max_bad:
        raise BadImageError(f"{text} That is more than max_bad={first.max_bad}; fix the files.{where}", reasons)
    for bad, rows in new.items():
        bad.reasons.update(rows)
    log(f"{text} They are skipped, and have no prediction.{where}")


def _described(reasons: Mapping[str, str], n: int) -> str:
    first = "; ".join(f"{printable(name)}: {why}" for name, why in itertools.islice(reasons.items(), _SHOWN))
    kinds = ""
    if len(reasons) > _SHOWN:
        counts = Counter(re.split("[:;]", why)[0] for why in reasons.values())
        kinds = ": " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{len(reasons)} of {n:,} images cannot be decoded ({len(reasons) / n:.2%}){kinds}. First: {first}."
