"""Data in a few lines, as a notebook shows them."""

from __future__ import annotations

from pathlib import Path

from fastclf.data.sources.names import printable, shorten
from fastclf.data.validation.duplicates import Sets

_SHOWN = 12


def summary(name: str, path: Path, sets: Sets, sz: int | None, bs: int) -> str:
    """Describe sets, sizes and classes."""
    what = "activations" if sz is None else f"images of {sz} x {sz}"
    lines = [f"{name}: {what} in batches of {bs}, {printable(str(path))}"]
    for where, ds in sets.items():
        lines.append(f"  {where:5} {len(ds):>10,} rows{'' if ds.labels.known else ' without labels'}")
    trn = sets["train"]
    if trn.is_reg:
        return "\n".join([*lines, f"  {trn.c} number(s) to predict"])
    counts = sorted(zip(trn.labels.counts().tolist(), trn.classes, strict=True), key=lambda pair: -pair[0])
    shown = [f"{shorten(label)} {count:,}" for count, label in counts[:_SHOWN]]
    more = [f"{len(counts) - _SHOWN} more"] if len(counts) > _SHOWN else []
    several = ", several of them per row" if trn.is_multi else ""
    return "\n".join([*lines, f"  {trn.c} classes{several}; in train: {', '.join([*shown, *more])}"])
