"""Decodes every image once, before anything is learnt from it, and names all that are bad at once.

A truncated image has a sound header, so only decoding it whole tells. What was found is remembered as long as the file
is unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastclf.data.dataset import Dataset
from fastclf.data.validation.bad_images import note_together
from fastclf.data.validation.verified import VerifiedFiles
from fastclf.errors import BadImageError
from fastclf.report import Progress


@dataclass
class ScanReport:
    """What a scan has found.

    Attributes:
        n: pictures looked at.
        decoded: pictures decoded in this scan; the others were known.
        bad: names of bad files and why, of this and earlier scans.
        odd: how many good pictures are unusual, by what is.
    """

    n: int = 0
    decoded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Describes it in one line."""
        odd = "".join(f", {count} {what}" for what, count in self.odd.most_common())
        return f"{self.n:,} pictures, {self.decoded:,} decoded now, {len(self.bad)} bad{odd}"


def scan_sets(sets: Sequence[Dataset], num_threads: int, *, raises: bool = True) -> ScanReport:
    """Looks at every picture in files that is not known to be good, and notes the bad ones in `ds.bad`.

    Args:
        sets: of one data object.
        num_threads: threads that decode.
        raises: False to report bad pictures and go on whatever the policy.

    Raises:
        BadImageError: as `BadPictures.note` says; names every bad file.
    """
    sets = [ds for ds in sets if _is_to_scan(ds)]
    report = ScanReport()
    if not sets:
        return report
    rows = {id(ds): ds.bad.good_rows().tolist() for ds in sets}
    names = {name: None for ds in sets for row in rows[id(ds)] for name in [ds.fnames[row]]}
    files = VerifiedFiles(sets[0].path, num_threads)
    try:
        with Progress(len(names), "scan", "pictures") as progress:
            bad = files.bad([*names], sets[0].bad.max_pixels, done=progress.advance)
    finally:
        files.cache.save()
    report.n, report.decoded = sum(map(len, rows.values())), files.decoded
    report.odd = _odd(files, [name for name in names if name not in bad])
    found = [{row: bad[name] for row in rows[id(ds)] if (name := ds.fnames[row]) in bad} for ds in sets]
    try:
        note_together([(ds.bad, reasons) for ds, reasons in zip(sets, found, strict=True)])
    except BadImageError as error:
        if raises:
            raise
        report.bad = error.reasons
        return report
    report.bad = {ds.fnames[row]: why for ds in sets for row, why in sorted(ds.bad.reasons.items())}
    return report


def _is_to_scan(ds: Dataset) -> bool:
    """Tells whether it is pictures in files; smaller copies of them were made from pictures that could be decoded."""
    return bool(ds.fnames) and ds.rows is None and ds.path == ds.bad.path


def _odd(files: VerifiedFiles, names: Sequence[str]) -> Counter[str]:
    odd: Counter[str] = Counter()
    for known in map(files.cache.get, names):
        assert known is not None
        if known.renamed:
            odd["with the extension of another format"] += 1
        if known.channels != 3:
            odd[{1: "grey", 2: "grey with transparency"}.get(known.channels, "with 4 channels")] += 1
    return odd
