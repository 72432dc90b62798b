"""The table that a fit prints, a line per epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastclf.report import log

_NARROWEST = 12  # characters of a column


class EpochTable:
    """A column per value; the first epoch's ends with the loss of a constant prediction."""

    def __init__(self, columns: Sequence[str], constant: float | None) -> None:
        self._widths = [max(_NARROWEST, len(name) + 2) for name in columns]
        self._beside = "" if constant is None else f"   (val_loss of a constant: {constant:.6f})"
        self._log("epoch", columns)

    def row(self, epoch: int, values: Sequence[float]) -> None:
        """Print an epoch's values, n/a where one is undefined."""
        self._log(f"{epoch:5d}", ["n/a" if math.isnan(v) else _number(v) for v in values], self._beside)
        self._beside = ""

    def _log(self, first: str, cells: Sequence[str], beside: str = "") -> None:
        log(f"{first} " + "".join(c.rjust(w) for c, w in zip(cells, self._widths, strict=True)) + beside)


def _number(value: float) -> str:
    """Return six decimals, or as many digits as leave a blank before the narrowest column."""
    return next(text for text in (f"{value:.6f}", f"{value:.7g}", f"{value:.4g}") if len(text) < _NARROWEST)
