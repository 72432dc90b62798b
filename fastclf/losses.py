"""The losses that go with a head: on its final output, and, stably, on its logits.

Each averages over rows, so one call over a whole set gives that set's exact loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclf.argument_checks import check_range


def _weight(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like.device, like.dtype)


def _check_smoothing(call: str, value: object) -> None:
    check_range(call, "label_smoothing", value, 0, 1, "Pass e.g. label_smoothing=0.1.")


@dataclass(frozen=True)
class NLL:
    """Negative log likelihood of log-probabilities ``[B, C]`` and classes ``[B] int64``.

    ``weight [C]`` weighs rows by their class (the mean is weighted as in ``torch.nn.functional.cross_entropy``, but of
    rows that weigh 0 together it is 0);
    ``label_smoothing`` in 0..1 moves that share of the target to all classes evenly.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing("NLL", self.label_smoothing)

    def __call__(self, log_probs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of log-probabilities (log-softmax leaves log-probabilities as they are)."""
        return self.from_logits(log_probs, y)

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits ``[B, C]``.

        Args:
            logits: ``[B, C]``.
            y: ``[B] int64`` class numbers.
        """
        if self.weight is None:
            return F.cross_entropy(logits, y, label_smoothing=self.label_smoothing)
        return self.of_rows(logits, y).mean()

    def of_rows(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return each row's part ``[B]`` of the loss, which is their mean.

        Args:
            logits: ``[B, C]``.
            y: ``[B] int64`` class numbers.
        """
        weight = _weight(self.weight, logits)
        parts = F.cross_entropy(logits, y, weight=weight, label_smoothing=self.label_smoothing, reduction="none")
        if weight is None:
            return parts
        mean = weight[y].mean()
        return parts * torch.where(mean > 0, 1 / mean, 0)


@dataclass(frozen=True)
class BCE:
    """Binary cross-entropy of probabilities ``[B, C]`` and targets ``[B, C] float32``, averaged over both.

    ``weight [C]`` multiplies each class's terms; ``label_smoothing`` s makes targets ``y(1-s) + s/2``.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing("BCE", self.label_smoothing)

    def __call__(self, probs: Tensor, y: Tensor) -> Tensor:
        """Return the loss of probabilities."""
        return F.binary_cross_entropy(probs, self._smooth(y), weight=_weight(self.weight, probs))

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss of logits, finite for any finite logit.

        Args:
            logits: ``[B, C]``.
            y: zeros and ones ``[B, C]``.
        """
        target = self._smooth(y.to(logits.dtype))
        return F.binary_cross_entropy_with_logits(logits, target, weight=_weight(self.weight, logits))

    def of_rows(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return each row's part ``[B]`` of the loss, which is their mean.

        Args:
            logits: ``[B, C]``.
            y: zeros and ones ``[B, C]``.
        """
        target, weight = self._smooth(y.to(logits.dtype)), _weight(self.weight, logits)
        return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none").mean(1)

    def _smooth(self, y: Tensor) -> Tensor:
        s = self.label_smoothing
        return y * (1 - s) + s / 2 if s else y


@dataclass(frozen=True)
class L1:
    """Mean absolute error of predictions and targets ``[B, k]``."""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        """Return the loss of predictions."""
        return F.l1_loss(out, y)

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the same: a regression head has no final function.

        Args:
            logits: predictions ``[B, k]``.
            y: targets ``[B, k]``.
        """
        return self(logits, y)


LogitLoss = NLL | BCE | L1


def is_ours(crit: object) -> TypeGuard[LogitLoss]:
    """Return whether a loss is one of these, and not derived from one: what that computes is known only to itself."""
    return type(crit) in (NLL, BCE, L1)
