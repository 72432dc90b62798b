"""What a rate search suggests: rates read off the curve of the loss over the rate."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastclf.arrays import Floats
from fastclf.training.recorder import SMOOTHING

_FEWEST = 10  # batches from which rates can be read
_SKIPPED = 0.1  # of the batches, at the start: their mean is over few
_SPAN = 0.1  # of the batches, over which a slope is measured
_NONE = "no rate suggested, as the loss does not clearly fall; see sched.plot()"
_MEDIAN_TO_DEVIATION = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class RateSuggestions:
    """Rates of the last layer group; None where the curve shows none: it is too short, never falls, or never rises.

    Attributes:
        steepest: where the loss falls fastest over the logarithm of the rate (``steep`` in fastai).
        valley: the middle of the longest fall (``valley`` in fastai).
        minimum: where the loss is lowest. That is too high to train with: take a tenth (``minimum`` in fastai).
    """

    steepest: float | None = None
    valley: float | None = None
    minimum: float | None = None

    def rates(self) -> dict[str, float]:
        """Rates to train with, by name: those that there are."""
        tenth = None if self.minimum is None else self.minimum / 10
        named = {"steepest": self.steepest, "valley": self.valley, "minimum / 10": tenth}
        return {name: rate for name, rate in named.items() if rate is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {rate:.1e}" for name, rate in self.rates().items()) or _NONE


def suggest(lrs: Sequence[float], losses: Sequence[float]) -> RateSuggestions:
    """Read rates off a search.

    Args:
        lrs: the rate in each batch, rising.
        losses: the smoothed loss after it; the search may have ended in one that is not finite.
    """
    rates, loss = np.asarray(lrs, np.float64), np.asarray(losses, np.float64)
    first = int(_SKIPPED * len(loss))
    end = first + int(np.argmin(np.where(np.isfinite(loss), loss, np.inf)[first:])) + 1 if len(loss) else 0
    rates, fall = rates[first:end], loss[first:end]  # up to the lowest loss
    if len(fall) < _FEWEST or fall[0] - fall[-1] < _noise(loss[:end], first):
        return RateSuggestions()
    minimum = float(rates[-1]) if end < len(loss) else None  # it may lie beyond the last rate
    return RateSuggestions(float(rates[_steepest(rates, fall)]), float(rates[_valley(fall)]), minimum)


def _noise(losses: Floats, first: int) -> float:
    """Return how far the smoothed loss falls by chance: two standard errors of a mean over the skipped batches."""
    weights = 1 - SMOOTHING ** np.arange(1, len(losses) + 1)
    single = np.diff(losses * weights, prepend=0) / (1 - SMOOTHING)  # of one batch, less what came before it
    differences = np.abs(np.diff(single))
    deviation = float(np.median(differences)) * _MEDIAN_TO_DEVIATION / math.sqrt(2)
    return 2 * deviation / math.sqrt(max(first, 1))


def _steepest(rates: Floats, losses: Floats) -> int:
    """Find where the loss falls most, measured over a span on a logarithmic axis of rates."""
    half = max(1, round(_SPAN * len(losses) / 2))
    slopes = (losses[2 * half :] - losses[: -2 * half]) / np.log(rates[2 * half :] / rates[: -2 * half])
    return half + int(slopes.argmin())


def _valley(losses: Floats) -> int:
    """Find the middle of the longest strictly decreasing subsequence: what lies between need not fall all the way.

    The method of fastai's ``valley``, which ESRI contributed; found by patience sorting (Fredman, 1975).
    """
    ends: list[float] = []  # negated last values of the best subsequences, by length
    starts: list[int] = []  # where these began
    last = 0
    for i, loss in enumerate(losses.tolist()):
        length = bisect_left(ends, -loss)
        start = starts[length - 1] if length else i
        ends[length : length + 1], starts[length : length + 1] = [-loss], [start]
        if length == len(ends) - 1:
            last = i
    return (starts[-1] + last) // 2
