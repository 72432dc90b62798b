"""What a classifier says of some images: probabilities, labels, and tables of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.decision import UNKNOWN, Decision
from fastclf.files import publish_table
from fastclf.paths import given_path, utf8_name

if TYPE_CHECKING:
    import pandas as pd

NONE_OF_THESE = "none of these"
"""The label of an image that is refused because the model is not sure enough of it."""

_OTHERS = re.compile(r"file|labels?|prob|(?:label|prob)_\d+|true_.*|p\(.*\)", re.DOTALL)


def probability_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of the classes' probabilities: their names, or ``p(NAME)`` for all of them.

    The latter where a class is called as another column of a table may be, ``file`` or ``label_2``, or has such a name
    itself: who reads a table finds all of them in parentheses, or none.
    """
    clash = any(map(_OTHERS.fullmatch, classes))
    return [f"p({name})" if clash else name for name in classes]


@dataclass(frozen=True)
class Predictions:
    """The predictions for N images, in their order.

    Attributes:
        outputs: what `Learner.predict` gives, ``[N, c] float32``: log-probabilities where an image has one label,
            probabilities where it may have several, and values in a regression. NaN where an image cannot be decoded.
        classes: names of the columns; empty in a regression.
        files: the name of each image; None for one without a file.
        kind: ``"one"`` label per image, ``"several"``, or ``"numbers"``.
        topk: how many of the most probable classes tables and `top` show.
        bad: row -> why its image cannot be decoded.
        decision: the thresholds of several labels, and how sure the model is of images of its classes.
        unknown: share of these that may be refused, see `Decision.least_confidence`; None refuses nothing.
    """

    outputs: NDArray[np.float32] = field(repr=False)
    classes: list[str]
    files: list[str | None] = field(repr=False)
    kind: str = "one"
    topk: int = 1
    bad: dict[int, str] = field(default_factory=dict)
    decision: Decision = field(default=Decision(), repr=False)
    unknown: float | None = None

    def __len__(self) -> int:
        return len(self.outputs)

    @cached_property
    def probs(self) -> NDArray[np.float32]:
        """The probabilities ``[N, c]``."""
        if self.kind == "numbers":
            raise ValueError("probs: the model predicts numbers, which have no probability. Take .outputs.")
        return np.exp(self.outputs) if self.kind == "one" else self.outputs

    @cached_property
    def labels(self) -> list[Any]:
        """What each image is: its class, or `NONE_OF_THESE`; the list of its classes where it has several; its numbers.

        None where the image cannot be decoded.
        """
        known = [bool(row.all()) for row in np.isfinite(self.outputs)]
        if self.kind == "numbers":
            return [values if ok else None for values, ok in zip(self.outputs.tolist(), known, strict=True)]
        if self.kind == "one":
            names = {**dict(enumerate(self.classes)), UNKNOWN: NONE_OF_THESE}
            answers = self.decision.answers(self.probs, self.unknown) if len(self) else np.empty(0, np.int64)
            return [names[i] if ok else None for i, ok in zip(answers.tolist(), known, strict=True)]
        given = self.decision.labels(self.probs)
        return [
            [self.classes[i] for i in np.flatnonzero(row)] if ok else None for row, ok in zip(given, known, strict=True)
        ]

    @property
    def top(self) -> list[list[tuple[str, float]]]:
        """The ``topk`` most probable classes of each image and their probabilities; none where it is bad."""
        return [[] if label is None else self._top_of(row) for row, label in enumerate(self.labels)]

    def columns(self, all_probs: bool = False) -> list[str]:
        """Return the names of a table's columns.

        Args:
            all_probs: see `to_frame`.
        """
        if self.kind == "numbers":
            n = self.outputs.shape[1]
            return ["file", *(["value"] if n == 1 else [f"value_{i}" for i in range(n)])]
        if self.kind == "several":
            names = ["file", "labels"]
        else:
            names = ["file", "label", "prob"]
            names += [f"{name}_{i}" for i in range(2, self.topk + 1) for name in ("label", "prob")]
        return names + (probability_columns(self.classes) if all_probs else [])

    def rows(self, all_probs: bool = False) -> Iterator[list[Any]]:
        """Yield the rows of a table, with None in the cells of images that cannot be decoded.

        Args:
            all_probs: see `to_frame`.
        """
        width = len(self.columns(all_probs)) - 1
        as_lists = any("|" in name for name in self.classes)  # `from_csv` reads both
        for i, (file, label) in enumerate(zip(self.files, self.labels, strict=True)):
            name = None if file is None else utf8_name(file)
            if label is None:
                yield [name, *[None] * width]
                continue
            if self.kind == "numbers":
                cells = list(label)
            elif self.kind == "several":
                cells = [str(label) if as_lists else "|".join(label)]
            else:
                cells = [label, *[cell for pair in self._top_of(i) for cell in pair][1:]]
            yield [name, *cells, *(self.probs[i].tolist() if all_probs else [])]

    def _top_of(self, row: int) -> list[tuple[str, float]]:
        probs = self.probs[row]
        best = np.argsort(-probs, kind="stable")[: self.topk]
        return [(self.classes[i], float(probs[i])) for i in best]

    def to_frame(self, all_probs: bool = False) -> pd.DataFrame:
        """Return a data frame: file, label and probability; with ``topk`` > 1, further ones.

        Args:
            all_probs: add the probability of every class, in columns with their names; where one of these is that of
                another column, such as ``label``, all are ``p(NAME)``, see `probability_columns`.
        """
        import pandas as pd

        return pd.DataFrame(list(self.rows(all_probs)), columns=self.columns(all_probs))

    def to_csv(self, path: str | os.PathLike[str], all_probs: bool = False) -> Path:
        """Write the table of `to_frame` as a CSV file, whole or not at all; return its path.

        Names of files stand in it as they are. Who opens it in a spreadsheet may meet one that begins like a formula.

        Args:
            path: of the file.
            all_probs: see `to_frame`.
        """
        file = given_path(path)
        publish_table(file, self.columns(all_probs), self.rows(all_probs))
        return file


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all parts, one after another."""
    bad: dict[int, str] = {}
    done = 0
    for part in parts:
        bad |= {done + row: why for row, why in part.bad.items()}
        done += len(part)
    first = parts[0]
    files = [name for part in parts for name in part.files]
    outputs = np.concatenate([part.outputs for part in parts])
    return replace(first, outputs=outputs, files=files, bad=bad)
