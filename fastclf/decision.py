"""How predictions become answers: a temperature, thresholds of labels, and when the answer is "none of these"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastclf.argument_checks import is_number
from fastclf.arrays import Array
from fastclf.models.from_pixels import BELOW_ONE
from fastclf.report import log_once, remedy
from fastclf.training.forward import Objective
from fastclf.training.metrics import NO_PREDICTION

UNKNOWN = -2
"""The answer "none of these classes", in place of a class number."""

HALF = 0.5  # the threshold of a label that none was tuned for


@dataclass(frozen=True)
class Decision:
    """What was tuned on the validation set, of predictions that a model has made; saved with the model.

    Attributes:
        temperature: the logits are divided by it (Guo et al., "On Calibration of Modern Neural Networks", 2017).
        thresholds: of each label, the probability above which an image has it; None for .5. Several labels only.
        confidences: the highest probability of each validation row, ascending, see `thinned`; None where `calibrate`
            has not been called. One label only.

    Raises:
        ValueError: a value cannot be any of this.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] | None = None
    confidences: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.temperature) and 0 < self.temperature < np.inf):
            raise ValueError(f"temperature must be a number above 0, got {self.temperature!r}")
        for name in ("thresholds", "confidences"):
            values = getattr(self, name)
            if values is not None and not all(is_number(value) and 0 <= value <= 1 for value in values):
                raise ValueError(f"{name} must be probabilities in 0..1")

    def tempered(self, preds: Array, *, several: bool) -> Array:
        """Return predictions ``[N, C]`` with their logits divided by the temperature, in the same type.

        Args:
            preds: log-probabilities; probabilities where rows have several labels. Those count as 1 - 2⁻²⁴ at most, as
                1 has no finite log-odds.
            several: whether rows have several labels.
        """
        if self.temperature == 1:
            return preds
        from scipy.special import expit, log_softmax, logit

        values = preds.astype(np.float64)
        if several:
            return np.asarray(expit(logit(np.minimum(values, BELOW_ONE)) / self.temperature), preds.dtype)
        return np.asarray(log_softmax(values / self.temperature, axis=1), preds.dtype)

    def outputs(self, objective: Objective, scores: Tensor, *, several: bool) -> Array:
        """Return the tempered predictions ``[N, C]`` that belong to an objective's scores.

        From logits where these are known, as a probability near 1 has lost digits of them; see `tempered`.
        """
        with torch.inference_mode():
            if objective.scores_logits:
                return np.asarray(objective.output(scores / self.temperature).cpu().numpy())
            return self.tempered(objective.output(scores).detach().cpu().numpy(), several=several)

    def with_temperature(self, temperature: float) -> Decision:
        """Return the decision with another temperature; thresholds move along, so that they choose the same labels."""
        from scipy.special import expit, logit

        thresholds = self.thresholds
        if thresholds is not None:
            thresholds = tuple(expit(logit(thresholds) * (self.temperature / temperature)).tolist())
        return replace(self, temperature=temperature, thresholds=thresholds)

    def labels(self, probs: Array) -> NDArray[np.bool_]:
        """Return which labels each row has, ``[N, C]``, from probabilities ``[N, C]`` of several labels."""
        return np.asarray(probs > (HALF if self.thresholds is None else np.array(self.thresholds)))

    def least_confidence(self, unknown: float) -> float:
        """Return the highest probability below which the answer is "none of these".

        As few images of the known classes are refused as ``unknown`` says, in the mean over validation sets: the
        threshold is a rank among the validation rows (split conformal prediction; Papadopoulos et al., 2002). With few
        rows no rank is so low: 19 are needed for .05, and with fewer nothing is refused, which is logged.

        Args:
            unknown: share of images of the known classes that may be refused, in 0..1.

        Raises:
            ValueError: `calibrate` has not been called, or ``unknown`` is no share.
        """
        if not (is_number(unknown) and 0 <= unknown < 1):
            raise ValueError(f"unknown must be a share of false refusals in 0..1, such as .05, got {unknown!r}")
        if self.confidences is None:
            calibrate = remedy("Call learn.calibrate()", "Train with fastclf train --calibrate")
            raise ValueError(f"unknown: how sure the model is of known images is not known. {calibrate}.")
        rank = int(unknown * (len(self.confidences) + 1) + 1e-9)
        if rank == 0 and unknown > 0:
            needed = math.ceil(1 / unknown - 1 - 1e-9)
            log_once(
                f"unknown={unknown:g}: nothing is refused, as that needs {needed:,} validation rows, and the model was "
                f"calibrated on {len(self.confidences):,}. Pass a larger share, or calibrate on more."
            )
        return self.confidences[rank - 1] if rank else 0.0

    def answers(self, probs: Array, unknown: float | None = None) -> NDArray[np.int64]:
        """Return the class of each row ``[N]``, one label; `NO_PREDICTION` where probabilities are NaN.

        Args:
            probs: ``[N, C]`` probabilities.
            unknown: answers `UNKNOWN` where the highest probability is low, see `least_confidence`; None never does.
        """
        answers: NDArray[np.int64] = probs.argmax(1)
        if unknown is not None:
            answers[probs.max(1) < self.least_confidence(unknown)] = UNKNOWN
        answers[np.isnan(probs).any(1)] = NO_PREDICTION
        return answers

    def reordered(self, order: Sequence[int]) -> Decision:
        """Return the decision for classes in another order: class i is class ``order[i]`` of this one."""
        if self.thresholds is None:
            return self
        return replace(self, thresholds=tuple(self.thresholds[k] for k in order))

    def to_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, for JSON."""
        values: dict[str, Any] = {} if self.temperature == 1 else {"temperature": self.temperature}
        for name in ("thresholds", "confidences"):
            if getattr(self, name) is not None:
                values[name] = list(getattr(self, name))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], c: int) -> Decision:
        """Return what `to_dict` gave, for ``c`` classes; an empty one is the default.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(values, Mapping) or not values.keys() <= {"temperature", "thresholds", "confidences"}:
            raise ValueError(f"a decision has temperature, thresholds and confidences, got {values!r:.80}")
        lists = {name: value for name, value in values.items() if name != "temperature"}
        if not all(isinstance(value, list) for value in lists.values()) or len(lists.get("thresholds", [0] * c)) != c:
            raise ValueError(f"thresholds and confidences must be lists, with {c} thresholds, one per class")
        return cls(values.get("temperature", 1.0), **{name: tuple(value) for name, value in lists.items()})
