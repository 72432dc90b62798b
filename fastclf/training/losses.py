"""The losses that go with a head: on its final output, and, stably, on its logits.

Each averages over rows, so one call over a whole set gives that set's exact loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def _weight(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.to(like.device, like.dtype)


@dataclass(frozen=True)
class NLL:
    """Negative log likelihood of log-probabilities ``[B, C]`` and classes ``[B] int64``.

    ``weight [C]`` weighs rows by their class (the mean is weighted as in ``torch.nn.functional.cross_entropy``);
    ``label_smoothing`` in 0..1 moves that share of the target to all classes evenly.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, log_probs: Tensor, y: Tensor) -> Tensor:
        """The loss of log-probabilities (log-softmax leaves log-probabilities as they are)."""
        return self.from_logits(log_probs, y)

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits ``[B, C]``."""
        weight = _weight(self.weight, logits)
        return F.cross_entropy(logits, y, weight=weight, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class BCE:
    """Binary cross-entropy of probabilities ``[B, C]`` and targets ``[B, C] float32``, averaged over both.

    ``weight [C]`` multiplies each class's terms; ``label_smoothing`` s makes targets ``y(1-s) + s/2``.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def __call__(self, probs: Tensor, y: Tensor) -> Tensor:
        """The loss of probabilities."""
        return F.binary_cross_entropy(probs, self._smooth(y), weight=_weight(self.weight, probs))

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of logits, finite for any finite logit."""
        return F.binary_cross_entropy_with_logits(logits, self._smooth(y), weight=_weight(self.weight, logits))

    def _smooth(self, y: Tensor) -> Tensor:
        s = self.label_smoothing
        return y * (1 - s) + s / 2 if s else y


@dataclass(frozen=True)
class L1:
    """Mean absolute error of predictions and targets of the same shape (one target: ``[B]`` or ``[B, 1]``)."""

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        """The loss of predictions."""
        return F.l1_loss(out, y.reshape(out.shape))

    def from_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """The same: a regression head has no final function."""
        return self(logits, y)


LogitLoss = NLL | BCE | L1


def class_weights(given: str | ArrayLike, y: NDArray[Any], c: int) -> Tensor:
    """Weights ``[C] float32`` of the classes in a loss.

    Args:
        given: one number per class, finite and not negative; or ``"auto"``: the mean number of rows of the classes that
            have any, over the class's own (one label: ``N / (C * rows)``, "balanced" in scikit-learn). A class without
            rows weighs 1.
        y: labels of the training set: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        c: number of classes.

    Raises:
        ValueError: ``given`` is something else.
    """
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'class_weights: class_weights must be "auto" or one number per class, got {given!r}')
        rows = np.bincount(y, minlength=c) if y.ndim == 1 else y.sum(0)
        there = rows > 0
        weights = np.where(there, rows[there].mean() / np.maximum(rows, 1), 1.0)
    else:
        weights = np.asarray(given, dtype=np.float64)
        if weights.shape != (c,) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise ValueError(
                f"class_weights: class_weights must be {c} numbers, one per class, finite, not negative and not all "
                f'0, got {np.array2string(weights, threshold=10)}. Or pass "auto".'
            )
    return torch.tensor(weights, dtype=torch.float32)


def default_loss(*, is_multi: bool, is_reg: bool, weight: Tensor | None = None) -> LogitLoss:
    """The loss that goes with the labels: L1 for regression, BCE for several labels, else NLL."""
    if is_reg:
        return L1()
    return BCE(weight) if is_multi else NLL(weight)
