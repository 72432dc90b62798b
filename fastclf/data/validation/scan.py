"""Decodes every image once, before training, and names all that are bad at once.

A truncated image has a sound header, so only decoding all of it shows the damage. What was found is kept as long as
the image is unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastclf import ranks
from fastclf.data.bad_images import BadImages, note_together
from fastclf.data.dataset import Dataset
from fastclf.data.validation.verified import AT_ONCE, VerifiedImages
from fastclf.errors import BadImageError
from fastclf.report import Progress, counted


@dataclass
class ScanReport:
    """What a scan has found.

    Attributes:
        n: images looked at.
        decoded: images decoded in this scan; the others were known.
        bad: names of bad images and why, of this and earlier scans.
        odd: how many good images are unusual, by what is.
    """

    n: int = 0
    decoded: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    odd: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """Describe it in one line."""
        odd = "".join(f", {count} {what}" for what, count in self.odd.most_common())
        return f"{counted(self.n, 'image')}, {self.decoded:,} decoded now, {len(self.bad)} bad{odd}"


def scan_sets(sets: Sequence[Dataset], num_threads: int, *, raises: bool = True) -> ScanReport:
    """Decode every image that is not known to be good, and note the bad ones in `ds.bad`.

    Args:
        sets: of one data object.
        num_threads: threads that decode.
        raises: False to report bad images and go on whatever the policy.

    Raises:
        BadImageError: as `BadImages.note` says; names every bad image.
    """
    sets = [ds for ds in sets if _is_to_scan(ds)]
    report = ScanReport()
    if not sets:
        return report
    report.n = sum(len(ds.bad.good_rows()) for ds in sets)
    found: list[tuple[BadImages, dict[int, str]]] = []
    with Progress(report.n // ranks.size(), "scan", "images") as progress:
        for ds in sets:
            images, rows = VerifiedImages(ds.source, num_threads), ds.bad.good_rows().tolist()
            mine = rows[ranks.share(len(rows))]
            bad: dict[int, str] = {}
            odd: Counter[str] = Counter()
            try:
                for start in range(0, len(mine), AT_ONCE):
                    part = mine[start : start + AT_ONCE]
                    bad |= images.bad(part, ds.bad.max_pixels, done=progress.advance)
                    odd += _odd(images, [row for row in part if row not in bad])
            finally:
                images.cache.save()
            if ranks.size() > 1:
                images.exchange(rows)
                parts = ranks.gather((bad, odd))
                bad = {row: why for one, _ in parts for row, why in one.items()}
                odd = sum((one for _, one in parts), Counter())
            report.decoded += images.decoded
            report.odd += odd
            found.append((ds.bad, bad))
    try:
        note_together(found)
    except BadImageError as error:
        if raises:
            raise
        report.bad = error.reasons
        return report
    report.bad = {ds.source.name(row): why for ds in sets for row, why in sorted(ds.bad.reasons.items())}
    return report


def _is_to_scan(ds: Dataset) -> bool:
    """Return whether images must be decoded; smaller copies of them were made from images that could be."""
    return ds.is_encoded and ds.source is ds.bad.source


def _odd(images: VerifiedImages, rows: Sequence[int]) -> Counter[str]:
    """Count what is unusual about good images."""
    odd: Counter[str] = Counter()
    for known in filter(None, images.verdicts(rows)):
        if known.renamed:
            odd["with the extension of another format"] += 1
        if known.channels != 3:
            odd[{1: "grey", 2: "grey with transparency"}.get(known.channels, "with 4 channels")] += 1
    return odd
