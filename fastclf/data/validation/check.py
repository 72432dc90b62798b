"""What is odd about some data without being an error: leaks, contradictions, unusual classes and images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastclf.data.dataset import Dataset
from fastclf.data.sources.labels import lookalikes
from fastclf.data.sources.names import printable, shorten
from fastclf.data.validation.duplicates import Place, Sets, contradicts, same_bytes
from fastclf.data.validation.scan import ScanReport
from fastclf.data.validation.verified import VerifiedImages
from fastclf.report import counted, encodable, listed, remedy, warn

NEAR_EMPTY = 10
"""A class with fewer training rows is reported."""
IMBALANCE = 100
"""Where the largest class is this many times the smallest, a warning names them when the data are made."""
UNEVEN = 10
"""Where it is this many times the smallest, the report names them."""
_MAX_CLASSES = 20
_ELONGATED = 4.0
_SKIPPED = "images that cannot be decoded"
_SHOWN = 3

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, repr=False)
class CheckReport:
    """What `ImageClassifierData.check` has found; a notebook and `print` show it.

    Attributes:
        n: rows by set that can be used.
        counts: those of train and valid, by class; empty for regression.
        leaks: (name in a set, name in a later one of train, valid and test) of files with the same bytes.
        relabelled: (name, name) of files with the same bytes and different labels.
        repeated: (name, name) of files with the same bytes and label in one set.
        lookalikes: pairs of classes whose names differ in case, spaces, invisible characters or Unicode form only.
        elongated: names of images one side of which is more than four times the other.
        small: names of images whose shorter side is less than the transforms' size: they are enlarged.
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
        """What should be looked into and what helps, a line each; empty when all is well."""
        return [*self._bytes(), *self._classes(), *self._files()]

    def _bytes(self) -> Iterator[str]:
        drop = remedy("Drop them: data = data.without_duplicates()", "Keep one of each")
        valid = "of valid or test"
        yield from _listed(self.leaks, f"{valid} is|{valid} are", "in another set too, byte for byte", drop, " = ")
        yield from _listed(self.relabelled, "has|have", "the same bytes as another and a different label", drop, " = ")
        yield from _listed(self.repeated, "repeats|repeat", "another of the same set, byte for byte", drop, " = ")

    def _classes(self) -> Iterator[str]:
        trained = {name: train for name, (train, _) in self.counts.items()}
        few = [f"{name!r} ({train:,})" for name, train in trained.items() if train < NEAR_EMPTY]
        unmeasured = [repr(name) for name, (_, valid) in self.counts.items() if not valid]
        alike = [f"{one!r} and {other!r}" for one, other in self.lookalikes]
        uneven = imbalance(trained, UNEVEN)
        if few:
            helps = "Add images" if len(few) == len(trained) else "Add images, or put what is rare into one class"
            what = counted(len(few), "class has", "classes have")
            yield f"{what} fewer than {NEAR_EMPTY} training images: {listed(few, _SHOWN)}. {helps}"
        if unmeasured:
            yield (
                f"{counted(len(unmeasured), 'class has', 'classes have')} no image in valid, so nothing is measured "
                f"there: {listed(unmeasured, _SHOWN)}. Move some there from train"
            )
        if alike:
            yield f"classes that look the same: {listed(alike, _SHOWN)}. Rename one, or put their images together"
        if uneven:
            yield uneven

    def _files(self) -> Iterator[str]:
        bad = [(f"{name}: {why}",) for name, why in self.scan.bad.items()]
        skip = remedy('on_bad="skip"', "--on-bad skip")
        helps = "They are left out" if _SKIPPED in self.ignored else f"Train without them: {skip}"
        yield from _listed(bad, "cannot|cannot", "be decoded", helps)
        squash = "Show them whole: tfms_from_model(..., crop_type=CropType.NO)"
        yield from _listed(
            [(name,) for name in self.elongated],
            "is|are",
            "more than four times as long as wide, and cut off at the ends",
            squash,
        )

    def __str__(self) -> str:
        """Show the problems, each marked with '!' and with what helps, and the rest."""
        sets = ", ".join(f"{name} {n:,}" for name, n in self.n.items())
        lines = [f"{sets} images" + (f"; {len(self.counts)} classes" if self.counts else ""), *_table(self.counts)]
        lines += [f"! {line}" for line in self.problems]
        if self.sides:
            lines.append(f"  shorter sides of {' to '.join(map(str, sorted({*self.sides})))} pixels")
        smaller = _listed(
            [(name,) for name in self.small], "is|are", "smaller than the model's input", "They are enlarged"
        )
        lines += [f"  {line}" for line in smaller]
        lines += [f"  {count:,} {what}" for what, count in self.scan.odd.most_common()]
        left_out = ", ".join(f"{count:,} {what}" for what, count in self.ignored.items() if count)
        return encodable("\n".join([*lines, f"  left out: {left_out or 'nothing'}"]))

    __repr__ = __str__  # as notebooks show it


def _table(counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Rows of train and valid by class, most first; of many classes the first and the last."""
    rows = sorted(counts.items(), key=lambda item: -item[1][0])
    shown = [(shorten(name), f"{train:,}", f"{valid:,}") for name, (train, valid) in rows]
    if len(shown) > _MAX_CLASSES:
        left_out = len(shown) - _MAX_CLASSES + 1
        shown[_MAX_CLASSES // 2 : _MAX_CLASSES // 2 + left_out] = [(f"... {left_out} more", "", "")]
    width = max((len(name) for name, _, _ in shown), default=0)
    return [
        f"  {name:{width}} {train:>9} {valid:>9}" for name, train, valid in [("", "train", "valid"), *shown] if rows
    ]


def check_sets(sets: Sets, sz: int | None, scan: ScanReport) -> CheckReport:
    """Compare the sets of one data object and look at their classes and images.

    Args:
        sets: "train", "valid" and, when it is there, "test".
        sz: of the transforms, or None.
        scan: of these sets.
    """
    leaks, relabelled, repeated = _pairs(sets)
    train, valid = sets["train"], sets["valid"]
    elongated, small, sides = _shapes(sets.values(), sz)
    ignored: dict[str, int] = defaultdict(int)
    for ds in sets.values():
        for what, count in ds.ignored.items():
            ignored[what] += count
        if ds.bad.policy == "skip" and ds.bad.reasons:
            ignored[_SKIPPED] += len(ds.bad.reasons)
    return CheckReport(
        {name: len(ds.bad.good_rows()) for name, ds in sets.items()},
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


def imbalance(counts: dict[str, int], factor: int = IMBALANCE) -> str | None:
    """Describe classes that differ in size by a factor or more; classes without any row aside."""
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return None
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < factor * counts[least]:
        return None
    weigh = 'class_weights="auto" in the learner'
    return (
        f"classes of very different size: {most!r} has {counts[most]:,} training rows, {least!r} {counts[least]:,}. "
        f"Accuracy alone means little here; {remedy(weigh, f'in Python, {weigh}')} makes the rare ones weigh more"
    )


def warn_imbalance(trn: Dataset) -> None:
    """Warn of training classes of very different size."""
    text = imbalance(dict(zip(trn.classes, trn.labels.counts().tolist(), strict=False)))
    if text is not None:
        warn(f"{text}.")


def warn_divided(trn: Dataset, val: Dataset) -> None:
    """Warn of groups that have images or rows in both sets."""
    if trn.groups is None or val.groups is None:
        return
    both = np.intersect1d(trn.groups, val.groups)
    if len(both):
        one, other = (ds.source.name(int(np.argmax(ds.groups == both[0]))) for ds in (trn, val))
        warn(
            f"{counted(len(both), 'group has', 'groups have')} images in train and in valid, such as {printable(one)} "
            f"and {printable(other)}: figures on valid look better than they are. Without a validation set of "
            "your own, one is chosen that divides no group."
        )


def _counts(ds: Dataset) -> list[int]:
    counts: list[int] = ds.labels.take(ds.bad.good_rows()).counts().tolist()
    return counts


def _pairs(sets: Sets) -> tuple[Pairs, Pairs, Pairs]:
    """Pairs of rows with the same bytes: that leak, that contradict each other, that repeat."""
    leaks: Pairs = []
    relabelled: Pairs = []
    repeated: Pairs = []
    for first, *others in same_bytes(sets):
        for other in others:
            pair = (_name(sets, first), _name(sets, other))
            if first[0] != other[0]:
                leaks.append(pair)
            if contradicts(sets, first, other):
                relabelled.append(pair)
            elif first[0] == other[0]:
                repeated.append(pair)
    return leaks, relabelled, repeated


def _shapes(sets: Iterable[Dataset], sz: int | None) -> tuple[list[str], list[str], tuple[int, int] | None]:
    """Which images are elongated, which are small, and the range of the shorter sides; as far as scans know."""
    elongated, small = [], []
    low, high = 1 << 62, 0
    for ds in sets:
        if not ds.is_encoded:
            continue
        rows = ds.bad.good_rows().tolist()
        for row, known in zip(rows, VerifiedImages(ds.source, 1).verdicts(rows), strict=True):
            if known is None or known.why:
                continue
            name = ds.source.name(row)
            short, long = sorted((known.height, known.width))
            low, high = min(low, short), max(high, short)
            if long > _ELONGATED * short:
                elongated.append(name)
            if sz is not None and short < sz:
                small.append(name)
    return elongated, small, (low, high) if high else None


def _name(sets: Sets, place: Place) -> str:
    where, row = place
    source = sets[where].source
    return source.name(row) if source.names else f"{where} {source.name(row)}"


def _listed(found: Sequence[tuple[str, ...]], verbs: str, what: str, remedy: str, sign: str = "") -> Iterator[str]:
    """Yield the line of a problem, if there is one; ``verbs`` are those of one image and of several."""
    if found:
        shown = "; ".join(sign.join(map(printable, names)) for names in found[:_SHOWN])
        one, several = verbs.split("|")
        yield f"{counted(len(found), f'image {one}', f'images {several}')} {what}; first {shown}. {remedy}"
