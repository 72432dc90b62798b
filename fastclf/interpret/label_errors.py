"""Labels that are probably wrong: confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021. The predictions must
come from models that have not seen the row. The formulas are short, so they stand here: the package cleanlab, against
which the tests compare them, needs pandas, takes seconds to import, and warns of classes with few rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastclf.arrays import Floats

Classes = NDArray[np.int64]

_ROUNDING = 1e-6  # how far below its threshold a probability still counts, as in cleanlab
_IMPROBABLE = 0.05
NO_CLASS = -1


def confident_classes(probs: Floats, y: Classes) -> Classes:
    """Return the class that each row confidently belongs to, ``[N]``; -1 where there is none.

    A row may belong to the classes whose probability is at least as high as it is on average over the rows with that
    label; of several, the most probable one.

    Args:
        probs: ``[N, C]``, out of sample.
        y: ``[N]``, the labels given.
    """
    c = probs.shape[1]
    counts = np.bincount(y, minlength=c)
    own = np.bincount(y, probs[np.arange(len(y)), y], c)
    thresholds = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    confident = probs >= np.maximum(thresholds, _ROUNDING) - _ROUNDING
    best = np.where(confident, probs, -1).argmax(1)
    return np.where(confident.any(1), best, NO_CLASS)


def label_errors(probs: Floats, y: Classes) -> NDArray[np.bool_]:
    """Return which labels are probably wrong, ``[N]``: the row confidently belongs to another class, its most probable.

    These are the off-diagonal entries of the confident joint (the paper's equation 1).
    """
    found = confident_classes(probs, y)
    return np.asarray((found != NO_CLASS) & (found != y) & (probs.argmax(1) != y))


def improbable(probs: Floats, y: Classes) -> NDArray[np.bool_]:
    """Return which labels have a probability below .05, and another class a higher one, ``[N]``.

    A calibrated head is sure of few rows, and of an obvious error it can be less sure than confident learning asks:
    that asks for the mean over a class. The share was chosen on digits and breeds of dogs with planted errors.
    """
    return np.asarray((probs[np.arange(len(y)), y] < _IMPROBABLE) & (probs.argmax(1) != y))


def estimated_errors(probs: Floats, y: Classes) -> float:
    """Return the estimated number of wrong labels: the confident joint, scaled to the rows of each label.

    Where wrong labels are frequent, this can be more than the rows that `label_errors` can name.
    """
    found = confident_classes(probs, y)
    known = found != NO_CLASS
    c = probs.shape[1]
    joint = np.zeros((c, c))
    np.add.at(joint, (y[known], found[known]), 1)
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    joint *= (np.bincount(y, minlength=c) / joint.sum(1))[:, None]
    return float(joint.sum() - joint.trace())


def of_each_label(probs: NDArray[Any], y: NDArray[Any]) -> tuple[NDArray[np.bool_], float]:
    """Do the same where rows have several labels: each label is a question of its own, with two answers.

    Args:
        probs: ``[N, C]``, out of sample.
        y: ``[N, C]`` of 0 and 1.

    Returns:
        Which entries of ``y`` are probably wrong, ``[N, C]``, and their estimated number.
    """
    wrong, expected = np.zeros(y.shape, bool), 0.0
    for k in range(y.shape[1]):
        p, given = probs[:, k].astype(np.float64), (y[:, k] > 0).astype(np.int64)
        both = np.stack([1 - p, p], 1)
        wrong[:, k], expected = label_errors(both, given), expected + estimated_errors(both, given)
    return wrong, expected
