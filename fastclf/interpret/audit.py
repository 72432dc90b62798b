"""What is doubtful about labelled images, by their activations: wrong labels, near duplicates, outliers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastclf.data.dataset import Dataset
from fastclf.data.sources.names import printable, shorten
from fastclf.interpret.label_errors import estimated_errors, improbable, label_errors, of_each_label
from fastclf.interpret.neighbours import RowPool, nearest_others
from fastclf.interpret.results import ImageModelResults
from fastclf.interpret.tables import Cells, Table
from fastclf.report import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAME = 0.93
"""Cosine similarity from which two images count as near duplicates."""
_NEIGHBOURS = 10
_FAR_OUT = 3.0  # interquartile ranges above the upper quartile
_SHOWN = 10
_KINDS = ("label", "near duplicate", "outlier")
_COLUMNS = ("finding", "set", "row", "file", "label", "suggested", "confidence", "suggested_confidence", "other")


@dataclass(frozen=True)
class Finding:
    """One doubt about one image.

    Attributes:
        finding: ``"label"``, ``"near duplicate"`` or ``"outlier"``.
        set: "train", "valid" or "test".
        row: of the set.
        file: the image's name; empty where images have none.
        label: the class given; of several labels, the one in doubt, with + where the image has it and - where not.
        suggested: what it should probably be, in the same form.
        confidence: of a label, the probability of what is given; of a near duplicate, the similarity; of an outlier,
            the mean similarity to its ten nearest images.
        suggested_confidence: the probability of what is suggested.
        other: the near duplicate's set and file, or row.
    """

    finding: str
    set: str
    row: int
    file: str
    label: str
    suggested: str = ""
    confidence: float = math.nan
    suggested_confidence: float = math.nan
    other: str = ""


@dataclass(frozen=True, repr=False)
class Audit(Table):
    """What `audit` has found. Prints as tables; `to_csv` and `to_frame` have every finding.

    Attributes:
        findings: labels first, then near duplicates and outliers; the most doubtful of each first.
        sets: the audited sets.
        preds: by set, ``[N, C]`` out-of-sample log-probabilities (probabilities when several labels).
        expected: the estimated number of wrong labels.
    """

    findings: list[Finding]
    sets: Mapping[str, Dataset] = field(repr=False)
    preds: Mapping[str, NDArray[np.float32]] = field(repr=False)
    expected: float

    def __len__(self) -> int:
        return len(self.findings)

    def of(self, finding: str) -> list[Finding]:
        """Return the findings of one kind: ``"label"``, ``"near duplicate"`` or ``"outlier"``."""
        if finding not in _KINDS:
            raise ValueError(f"finding must be one of {', '.join(map(repr, _KINDS))}, got {finding!r}")
        return [found for found in self.findings if found.finding == finding]

    def results(self, name: str) -> ImageModelResults:
        """Return the out-of-sample predictions of a set, "train" or another, beside its images."""
        if name not in self.sets:
            raise ValueError(f"results: name must be one of {', '.join(self.sets)}, got {name!r}")
        return ImageModelResults(self.sets[name], self.preds[name])

    def plot(self, finding: str = "label", n: int = 8) -> Figure:
        """Draw the images of the first findings of one kind, with what is suggested."""
        from fastclf.data.image import decoded
        from fastclf.interpret.images import plots

        everything = self.of(finding)
        found = everything[:n]
        count = f"{len(everything):,}" if len(found) == len(everything) else f"{len(found):,} of {len(everything):,}"
        lines = (
            (shorten(f.file.rpartition("/")[2]), _arrow(f), f"{f.confidence:.3f}", printable(f.other)) for f in found
        )
        titles = ["\n".join(filter(None, texts)) for texts in lines]
        images = [decoded(self.sets[f.set].source, f.row) for f in found]
        return plots(images, titles=titles, rows=max(1, -(-len(found) // 4)), maintitle=f"{finding}: {count}")

    def to_dict(self) -> dict[str, Any]:
        """Return everything in plain Python types, for JSON, see `Table.to_dict`."""
        return super().to_dict() | {"expected": self.expected}

    def _columns(self) -> list[str]:
        return list(_COLUMNS)

    def _rows(self) -> list[list[Any]]:
        return [[getattr(f, name) for name in _COLUMNS] for f in self.findings]

    def _parts(self) -> tuple[str, list[Cells], list[str]]:
        kinds = {kind: self.of(kind) for kind in _KINDS}
        rows = sum(len(ds.bad.good_rows()) for ds in self.sets.values())
        wrong = len(kinds["label"])
        title = (
            f"{counted(rows, 'image')} of {', '.join(self.sets)}: {counted(wrong, 'label is', 'labels are')} probably "
            f"wrong (about {self.expected:.0f} estimated), {counted(len(kinds['near duplicate']), 'near duplicate')}, "
            f"{counted(len(kinds['outlier']), 'outlier')}"
        )
        labels = [["label", "given", "suggested", "p(given)", "p(suggested)"]]
        labels += [
            [_where(f), shorten(f.label), shorten(f.suggested), f"{f.confidence:.4f}", f"{f.suggested_confidence:.4f}"]
            for f in kinds["label"][:_SHOWN]
        ]
        pairs = [["near duplicate", "label", "of", "its label", "similarity"]]
        pairs += [
            [_where(f), shorten(f.label), shorten(f.other), shorten(f.suggested), f"{f.confidence:.4f}"]
            for f in kinds["near duplicate"][:_SHOWN]
        ]
        outliers = [["outlier", "label", "similarity"]]
        outliers += [[_where(f), shorten(f.label), f"{f.confidence:.4f}"] for f in kinds["outlier"][:_SHOWN]]
        more = any(len(found) > _SHOWN for found in kinds.values())
        notes = [f"the first {_SHOWN} of each are shown; to_csv() and to_frame() have all"] if more else []
        return title, [labels, pairs, outliers], [*notes, "the same bytes twice: data.check()"]


def audit(sets: Mapping[str, Dataset], preds: Mapping[str, NDArray[np.float32]]) -> Audit:
    """Find doubtful labels, near duplicates and outliers.

    Labels: confident learning (Northcutt, Jiang and Chuang, 2021), and one label of a row that has a probability below
    .05, see `fastclf.interpret.label_errors`. Near duplicates: images whose activations have a cosine similarity of at
    least `SAME`. Outliers: images whose mean similarity to their ten nearest others (Kuan and Mueller, "Back to the
    Basics: Revisiting Out-of-Distribution Detection Baselines", 2022) lies more than three interquartile ranges below
    the lower quartile ("far out"; Tukey, "Exploratory Data Analysis", 1977).

    Args:
        sets: labelled rows.
        preds: by set, see `Audit`; NaN in bad rows, which are left out.
    """
    wrong, expected = _labels(sets, preds)
    return Audit([*wrong, *_by_neighbours(sets)], sets, preds, expected)


def _labels(sets: Mapping[str, Dataset], preds: Mapping[str, NDArray[np.float32]]) -> tuple[list[Finding], float]:
    pool = RowPool([*sets.values()])
    names = [*sets]
    first = pool.sets[0]
    p = np.concatenate([preds[name][ds.bad.good_rows()] for name, ds in sets.items()]).astype(np.float64)
    y = np.concatenate([ds.y[ds.bad.good_rows()] for ds in sets.values()])
    known = np.isfinite(p).all(1)
    p, y, at = p[known], y[known], np.flatnonzero(known)

    def found(number: int, given: str, better: str, before: float, after: float) -> Finding:
        set_name, row = names[pool.of[number]], int(pool.row[number])
        return Finding("label", set_name, row, _file(sets[set_name], row), given, better, before, after)

    findings = []
    if first.is_multi:
        wrong, expected = of_each_label(p, y)
        for i, k in np.argwhere(wrong):
            has, name = y[i, k] > 0, first.classes[k]
            signs = "+-" if has else "-+"
            share = p[i, k] if has else 1 - p[i, k]
            findings.append(found(at[i], f"{signs[0]}{name}", f"{signs[1]}{name}", float(share), float(1 - share)))
    else:
        probs = np.exp(p)
        probs /= probs.sum(1, keepdims=True)
        expected = estimated_errors(probs, y)
        for i in np.flatnonzero(label_errors(probs, y) | improbable(probs, y)):
            k = int(probs[i].argmax())
            pair = first.classes[y[i]], first.classes[k]
            findings.append(found(at[i], *pair, float(probs[i, y[i]]), float(probs[i, k])))
    return sorted(findings, key=lambda f: f.confidence), expected


def _by_neighbours(sets: Mapping[str, Dataset]) -> list[Finding]:
    """Return near duplicates, the most similar first, and outliers, the least similar to others first."""
    pool, names = RowPool([*sets.values()]), [*sets]
    if len(pool) <= _NEIGHBOURS:
        return []
    same: dict[tuple[int, int], float] = {}
    typical = np.empty(len(pool))
    for first, others, similar in nearest_others(pool, _NEIGHBOURS):
        typical[first : first + len(others)] = similar.mean(1)
        for q, j in np.argwhere(similar >= SAME):
            a, b = first + int(q), int(others[q, j])
            same[max(a, b), min(a, b)] = float(similar[q, j])

    def found(what: str, number: int, similarity: float, other: int | None = None) -> Finding:
        ds_name, row = names[pool.of[number]], int(pool.row[number])
        more: dict[str, Any] = {}
        if other is not None:
            theirs, their_row = names[pool.of[other]], int(pool.row[other])
            more = {
                "other": f"{theirs} {_file(sets[theirs], their_row) or their_row}",
                "suggested": _label(sets[theirs], their_row),
            }
        ds = sets[ds_name]
        return Finding(what, ds_name, row, _file(ds, row), _label(ds, row), confidence=similarity, **more)

    ordered = sorted(same.items(), key=lambda pair: (-pair[1], pair[0]))
    pairs = [found("near duplicate", a, similarity, b) for (a, b), similarity in ordered]
    low, high = np.quantile(typical, [0.25, 0.75])
    far = np.flatnonzero(typical < low - _FAR_OUT * (high - low))
    return [*pairs, *(found("outlier", int(i), float(typical[i])) for i in far[np.argsort(typical[far])])]


def _label(ds: Dataset, row: int) -> str:
    if ds.is_multi:
        return ", ".join(ds.classes[k] for k in np.flatnonzero(ds.y[row]))
    return ds.classes[int(ds.y[row])]


def _file(ds: Dataset, row: int) -> str:
    return ds.source.name(row) if ds.source.names else ""


def _where(f: Finding) -> str:
    return f"{f.set} {shorten(f.file) or f.row}"


def _arrow(f: Finding) -> str:
    return printable(f"{f.label} -> {f.suggested}" if f.finding == "label" else f.label)
