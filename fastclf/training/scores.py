"""What a fit returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FitScores(list[float]):
    """``[val_loss, metric, ...]`` after the last epoch: a list, which a notebook shows as one line with names.

    Attributes:
        names: of the values.
    """

    def __init__(self, values: Sequence[float], names: Sequence[str]) -> None:
        super().__init__(values)
        self.names = list(names)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Return how IPython shows it."""
        printer.text(", ".join(f"{name} {value:.6g}" for name, value in zip(self.names, self, strict=False)))
