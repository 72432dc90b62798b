"""What is odd about some data without being an error: leaks, contradictions, unusual classes and pictures."""

from __future__ import annotations

import hashlib
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from fastclf.data.bad_pictures import printable
from fastclf.data.folders import lookalikes
from fastclf.data.samples import Dataset, Labels
from fastclf.data.scan import ScanReport
from fastclf.data.seen import SeenFiles

NEAR_EMPTY = 10
"""A class with fewer training rows is reported."""
IMBALANCE = 100
"""Where the largest class is this many times the smallest, it is said."""
_ELONGATED = 4.0
_SHOWN = 3

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class CheckReport:
    """What `ImageClassifierData.check` has found; `print` shows it.

    Attributes:
        n: rows by set.
        counts: rows of train and valid that can be used, by class; empty for regression.
        leaks: (name in train, name in valid or test) of files with the same bytes.
        relabelled: (name, name) of files with the same bytes and different labels.
        repeated: (name, name) of files with the same bytes and label in one set.
        lookalikes: pairs of classes whose names differ in case, spaces or Unicode form only.
        elongated: names of pictures one side of which is more than four times the other.
        small: names of pictures whose shorter side is less than the transforms' size: they are enlarged.
        sides: smallest and largest shorter side, in pixels; None where it is not known.
        scan: what the scan has found.
        ignored: how many files of each kind were left out.
    """

    n: dict[str, int]
    counts: dict[str, tuple[int, int]]
    leaks: Pairs
    relabelled: Pairs
    repeated: Pairs
    lookalikes: Pairs
    elongated: list[str]
    small: list[str]
    sides: tuple[int, int] | None
    scan: ScanReport
    ignored: dict[str, int]

    @property
    def problems(self) -> list[str]:
        """What should be looked into, a line each; empty when all is well."""
        return [line for line in (self._bytes() + self._classes() + self._files()) if line]

    def _bytes(self) -> list[str]:
        return [
            _listed(self.leaks, "of valid or test are in train too, byte for byte", " = "),
            _listed(self.relabelled, "have the same bytes as another and a different label", " = "),
            _listed(self.repeated, "repeat another of their set, byte for byte", " = "),
        ]

    def _classes(self) -> list[str]:
        few = [name for name, (train, _) in self.counts.items() if train < NEAR_EMPTY]
        unmeasured = [name for name, (_, valid) in self.counts.items() if not valid]
        alike = ", ".join(f"{one!r} and {other!r}" for one, other in self.lookalikes[:_SHOWN])
        return [
            f"{len(few)} class(es) have fewer than {NEAR_EMPTY} training pictures: {_names(few)}" if few else "",
            f"{len(unmeasured)} class(es) have no picture in valid: {_names(unmeasured)}" if unmeasured else "",
            f"classes that look the same: {alike}" if alike else "",
            imbalance({name: train for name, (train, _) in self.counts.items()}) or "",
        ]

    def _files(self) -> list[str]:
        return [
            _listed([(f"{name}: {why}",) for name, why in self.scan.bad.items()], "cannot be decoded", ""),
            _listed([(name,) for name in self.elongated], "are more than four times as long as wide", ""),
        ]

    def __str__(self) -> str:
        """Shows the problems, each marked with '!', and the rest."""
        sets = ", ".join(f"{name} {n:,}" for name, n in self.n.items())
        lines = [f"{sets} pictures" + (f"; {len(self.counts)} classes" if self.counts else "")]
        lines += [f"! {line}" for line in self.problems]
        if self.sides:
            lines.append(f"  shorter sides of {self.sides[0]} to {self.sides[1]} pixels")
        if self.small:
            lines.append("  " + _listed([(name,) for name in self.small], "are smaller than the model's input", ""))
        lines += [f"  {count:,} {what}" for what, count in self.scan.odd.most_common()]
        left_out = ", ".join(f"{count:,} {what}" for what, count in self.ignored.items() if count)
        return "\n".join([*lines, f"  left out: {left_out or 'nothing'}"])


def check_sets(sets: dict[str, Dataset], sz: int | None, scan: ScanReport) -> CheckReport:
    """Compares the sets of one data object and looks at their classes and pictures.

    Args:
        sets: "train", "valid" and, when it is there, "test".
        sz: of the transforms, or None.
        scan: of these sets.
    """
    leaks, relabelled, repeated = _same_bytes(sets)
    train, valid = sets["train"], sets["valid"]
    elongated, small, sides = _shapes(sets.values(), sz)
    ignored: dict[str, int] = defaultdict(int)
    for ds in sets.values():
        for what, count in ds.ignored.items():
            ignored[what] += count
    return CheckReport(
        {name: len(ds) for name, ds in sets.items()},
        dict(zip(train.classes, zip(_counts(train), _counts(valid), strict=True), strict=True)),
        leaks,
        relabelled,
        repeated,
        list(lookalikes(train.classes)),
        elongated,
        small,
        sides,
        scan,
        dict(ignored),
    )


def class_counts(labels: Labels) -> npt.NDArray[np.int64]:
    """Counts the rows of each class, `[C] int64`; of no class for regression."""
    if labels.is_reg:
        return np.zeros(0, np.int64)
    if labels.is_multi:
        return np.asarray(np.count_nonzero(labels.y, axis=0), np.int64)
    return np.bincount(labels.y, minlength=labels.c)


def imbalance(counts: dict[str, int]) -> str | None:
    """Describes classes that differ in size by a factor of `IMBALANCE` or more; classes without any row aside."""
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return None
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < IMBALANCE * counts[least]:
        return None
    return (
        f"classes of very different size: {most!r} has {counts[most]:,} training rows, {least!r} {counts[least]:,}. "
        'class_weights="auto" in the learner makes the rare ones weigh more; accuracy alone says little here'
    )


def warn_imbalance(trn: Dataset) -> None:
    """Warns of training classes of very different size."""
    text = imbalance(dict(zip(trn.classes, class_counts(trn.labels).tolist(), strict=False)))
    if text is not None:
        warnings.warn(f"{text}.", UserWarning, stacklevel=3)


def _counts(ds: Dataset) -> list[int]:
    counts: list[int] = class_counts(ds.labels.take(ds.bad.good_rows())).tolist()
    return counts


def _same_bytes(sets: dict[str, Dataset]) -> tuple[Pairs, Pairs, Pairs]:
    """Compares contents: pairs that leak, that contradict each other, that repeat."""
    members: dict[bytes, list[tuple[str, int]]] = defaultdict(list)
    for where, row, digest in _digests(sets):
        members[digest].append((where, row))
    leaks: Pairs = []
    relabelled: Pairs = []
    repeated: Pairs = []
    for (first, row), *others in (group for group in members.values() if len(group) > 1):
        one = sets[first]
        for where, other_row in others:
            other = sets[where]
            pair = (_name(one, first, row), _name(other, where, other_row))
            if first == "train" != where:
                leaks.append(pair)
            if "test" not in (first, where) and not np.array_equal(one.y[row], other.y[other_row]):
                relabelled.append(pair)
            elif first == where:
                repeated.append(pair)
    return leaks, relabelled, repeated


def _digests(sets: dict[str, Dataset]) -> Iterator[tuple[str, int, bytes]]:
    """Yields set, row and SHA-256 of what may be there twice: of arrays all rows, of files those of one size."""
    sizes: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for where, ds in sets.items():
        for row in ds.bad.good_rows().tolist():
            if ds.images is not None or not ds.fnames:
                values = ds.images if ds.images is not None else ds.rows
                assert values is not None
                yield where, row, hashlib.sha256(np.ascontiguousarray(values[row]).data).digest()
                continue
            try:
                sizes[(ds.path / ds.fnames[row]).stat().st_size].append((where, row))
            except OSError:
                continue  # the scan has named it
    for same in sizes.values():
        for where, row in same if len(same) > 1 else ():
            ds = sets[where]
            try:
                with (ds.path / ds.fnames[row]).open("rb") as handle:
                    digest = hashlib.file_digest(handle, "sha256").digest()
            except OSError:
                continue
            yield where, row, digest


def _shapes(sets: Iterable[Dataset], sz: int | None) -> tuple[list[str], list[str], tuple[int, int] | None]:
    """Which pictures are elongated, which are small, and the range of the shorter sides; as far as scans know."""
    elongated, small = [], []
    low, high = 1 << 62, 0
    for ds in sets:
        if not ds.fnames or ds.rows is not None:
            continue
        seen = SeenFiles(ds.path)
        for row in ds.bad.good_rows().tolist():
            known = seen.named(ds.fnames[row])
            if known is None:
                continue
            short, long = sorted((known.height, known.width))
            low, high = min(low, short), max(high, short)
            if long > _ELONGATED * short:
                elongated.append(ds.fnames[row])
            if sz is not None and short < sz:
                small.append(ds.fnames[row])
    return elongated, small, (low, high) if high else None


def _name(ds: Dataset, where: str, row: int) -> str:
    return ds.fnames[row] if ds.fnames else f"{where} row {row}"


def _listed(found: Sequence[tuple[str, ...]], what: str, sign: str) -> str:
    if not found:
        return ""
    shown = "; ".join(sign.join(map(printable, names)) for names in found[:_SHOWN])
    return f"{len(found):,} picture(s) {what}; first {shown}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in islice(names, _SHOWN))
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
