"""What training makes of a loss: which logits it takes, its class weights, its value for a constant prediction.

A row with several labels has one term in the loss per label. The loss that is shown is their mean, which can be
compared between sets. Training follows the gradient of their sum (`gradient_scale`): the log-likelihood of a row is the
sum over its labels, and so one rate serves one label and many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fastclf.data.sources.labels import Labels
from fastclf.losses import BCE, L1, NLL, LogitLoss, is_ours

T = TypeVar("T")

# Losses whose targets are shares of classes that exclude each other: of zeros and ones they would make nonsense.
_OF_ONE_LABEL = {"CrossEntropyLoss", "SoftTargetCrossEntropy", "cross_entropy"}

# Losses that take logits, by package and name; their subclasses do, too.
_OF_LOGITS = {
    "torch": {
        "BCEWithLogitsLoss",
        "CrossEntropyLoss",
        "MultiLabelSoftMarginLoss",
        "MultiMarginLoss",
        "binary_cross_entropy_with_logits",
        "cross_entropy",
        "multilabel_soft_margin_loss",
        "multi_margin_loss",
    },
    "torchvision": {"sigmoid_focal_loss"},
    "timm": {
        "AsymmetricLossMultiLabel",
        "AsymmetricLossSingleLabel",
        "BinaryCrossEntropy",
        "LabelSmoothingCrossEntropy",
        "SoftTargetCrossEntropy",
    },
}


def wants_logits(crit: object) -> bool:
    """Whether a loss is known to take logits: ours can, and so do those of torch, torchvision and timm that say so."""
    return is_ours(crit) or any(name in _OF_LOGITS.get(package, ()) for package, name in _known_as(crit))


def _known_as(crit: object) -> Iterator[tuple[str, str]]:
    """Yield package and name of a function, or of an object's class and the classes that it is derived from."""
    while isinstance(crit, partial):
        crit = crit.func
    for kind in [crit] if hasattr(crit, "__name__") else type(crit).__mro__:
        yield kind.__module__.partition(".")[0], kind.__name__


def check_targets(crit: object, labels: Labels) -> None:
    """Raise ValueError where a loss of one label per row would take several, or numbers, as shares of classes."""
    of_one = isinstance(crit, NLL) or any(
        package in _OF_LOGITS and name in _OF_ONE_LABEL for package, name in _known_as(crit)
    )
    if of_one and (labels.is_multi or labels.is_reg):
        name = getattr(crit, "__name__", type(crit).__name__)
        what, remedy = (
            ("several labels per row", "BCE()")
            if labels.is_multi
            else ("numbers to be predicted", "L1() or nn.MSELoss()")
        )
        raise ValueError(
            f"crit: {name} is for one class per row, and these data have {what}. Leave crit out, or pass {remedy}."
        )


def gradient_scale(crit: object, columns: int) -> float:
    """Return what training multiplies a loss's gradient with: for `BCE` the labels of a row that it averages over."""
    return float(columns) if isinstance(crit, BCE) else 1.0


def unweighted(crit: T) -> T:
    """Return the loss without its class weights: what is shown of a validation set, with weights and without."""
    return replace(crit, weight=None) if isinstance(crit, NLL | BCE) else crit


def constant_logits(labels: Labels) -> NDArray[np.float64]:
    """Return the logits ``[C]`` of the best prediction that does not look at the image.

    One label: logarithms of the class frequencies, less their mean. Several: the log-odds of each label. Half a row is
    added to every count, which keeps them finite (Haldane, 1956; Anscombe, 1956). Regression: the medians.
    """
    y = labels.y
    if labels.is_reg:
        return np.atleast_1d(np.median(y.astype(np.float64), axis=0))
    if labels.is_multi:
        positive = y.sum(0, dtype=np.float64)
        return np.asarray(np.log((positive + 0.5) / (len(y) - positive + 0.5)))
    logs = np.log(np.bincount(y, minlength=labels.c) + 0.5)
    return np.asarray(logs - logs.mean())


def constant_loss(crit: LogitLoss, train: Labels, y: Tensor) -> float:
    """Return the unweighted loss on targets ``y`` of the `constant_logits` of a training set."""
    logits = torch.from_numpy(constant_logits(train)).expand(len(y), -1)
    return float(unweighted(crit).from_logits(logits, y.double() if y.is_floating_point() else y))


def class_weights(given: str | ArrayLike, y: NDArray[Any], c: int) -> Tensor:
    """Weights ``[C] float32`` of the classes in a loss.

    Args:
        given: one number per class, finite and not negative; or ``"auto"``: in proportion to ``1 / sqrt(rows)``, the
            mean over the training set's labels being 1, so that a rate that is right without weights is right with
            them. (``1 / rows``, "balanced" in scikit-learn, lets a class of three rows dominate. Square roots of
            frequencies: Mikolov et al., 2013; for images, Mahajan et al., "Exploring the Limits of Weakly Supervised
            Pretraining", 2018.) A class without rows weighs as much as one with one.
        y: labels of the training set: ``[N]`` class numbers, or ``[N, C]`` of zeros and ones.
        c: number of classes.

    Raises:
        ValueError: ``given`` is something else.
    """
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'class_weights: class_weights must be "auto" or one number per class, got {given!r}')
        rows = np.bincount(y, minlength=c) if y.ndim == 1 else y.sum(0, dtype=np.float64)
        weights = 1 / np.sqrt(np.maximum(rows, 1))
        # With several labels, every row has a term of every label, whether it bears the label or not.
        weights /= np.average(weights, weights=rows) if y.ndim == 1 else weights.mean()
    else:
        must = f"class_weights: class_weights must be {c} numbers, one per class, finite, not negative and not all 0"
        keys = list(given.keys()) if hasattr(given, "keys") else []
        if isinstance(given, Mapping) or keys != list(range(len(keys))):  # a column of a data frame has keys as well
            each = f"range({c})" if {*keys} == {*range(c)} else "data.classes"
            raise ValueError(f"{must}, got some by name or number. Pass [weights[key] for key in {each}].")
        try:
            weights = np.asarray(given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{must}, got {given!r}. Or pass "auto".') from error
        if weights.shape != (c,) or not (np.isfinite(weights) & (weights >= 0)).all() or not weights.any():
            raise ValueError(f'{must}, got {np.array2string(weights, threshold=10)}. Or pass "auto".')
    return torch.tensor(weights, dtype=torch.float32)


def default_loss(*, is_multi: bool, is_reg: bool, weight: Tensor | None = None) -> LogitLoss:
    """The loss that goes with the labels: L1 for regression, BCE for several labels, else NLL."""
    if is_reg:
        return L1()
    return BCE(weight) if is_multi else NLL(weight)
