"""Heads without a hidden layer, solved to the end instead of trained by steps: regularised logistic regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from fastclf.data.dataset import Dataset
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.training.losses import constant_logits, gradient_scale

_MOST_STEPS = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinearSetting:
    """How a head without a hidden layer is solved.

    Attributes:
        decay: half of it times the squared weights is added to the mean loss: ``1 / (C n)`` of scikit-learn.
        standardise: whether each feature is divided by its own deviation, or all by one common deviation.
    """

    decay: float
    standardise: bool


@threadpool_limits.wrap(limits=1)  # type: ignore[untyped-decorator]  # products this small wait for each other's threads longer than they compute
def linear_heads(
    ds: Dataset, train: NDArray[np.int64], settings: Sequence[LinearSetting], *, crit: NLL | BCE
) -> list[Head]:
    """Return the head of each setting: the minimum of the loss on some rows plus the penalty, by L-BFGS.

    The penalty does not change when the rows are rotated, so that fewer rows than features are solved in their own
    span, exactly. The bias is drawn towards the best constant prediction, which keeps it finite for a class without
    rows. Nothing is random.

    Args:
        ds: holds rows ``[views * N, F]``; all views of a row count.
        train: the rows to learn from, ``[n] int64``, two or more; bad ones are left out.
        settings: any number; each begins where the one before it ended, so sort them by decay, highest first.
        crit: the loss, with class weights and label smoothing.
    """
    assert ds.rows is not None
    train = np.intersect1d(train, ds.bad.good_rows())
    views = len(ds.rows) // len(ds)
    x = np.concatenate([ds.rows[train + view * len(ds)] for view in range(views)]).astype(np.float64)
    y = torch.from_numpy(np.concatenate([ds.y[train]] * views))
    labels = ds.labels.take(train)
    heads: dict[LinearSetting, Head] = {}
    for standardise in {setting.standardise for setting in settings}:
        rows = _Rows(x, standardise=standardise)
        bias = constant_logits(labels)
        start = np.concatenate([np.zeros(rows.z.shape[1] * ds.c), bias])
        for setting in (setting for setting in settings if setting.standardise == standardise):
            start = _solve(rows.z, y, bias, start, setting.decay, crit)
            heads[setting] = rows.head(start, ds.c, crit)
    return [heads[setting] for setting in settings]


class _Rows:
    """Scaled rows, in coordinates of their own span where that is smaller."""

    def __init__(self, x: Floats, *, standardise: bool) -> None:
        self.mean, self.var = x.mean(0), x.var(0)
        layer = torch.nn.BatchNorm1d(1)
        deviation = np.sqrt(self.var + layer.eps)
        self.gamma = np.ones(x.shape[1]) if standardise else deviation / np.sqrt(np.mean(deviation**2))
        z = (x - self.mean) * (self.gamma / deviation)
        self.basis: Floats | None = None
        if len(x) < x.shape[1]:
            self.basis = np.linalg.svd(z, full_matrices=False)[2].T
            z = z @ self.basis
        self.z = torch.from_numpy(z)

    @torch.no_grad()
    def head(self, solution: Floats, c: int, crit: NLL | BCE) -> Head:
        """Return a head that applies weights and bias to rows as they come."""
        weight = solution[:-c].reshape(-1, c)
        weight = weight if self.basis is None else self.basis @ weight
        final = "log_softmax" if isinstance(crit, NLL) else "sigmoid"
        head = Head(len(self.mean), c, ps=0, xtra_fc=(), final=final, bias=solution[-c:])
        bn, linear = head.layers
        for tensor, values in (
            (bn.running_mean, self.mean),
            (bn.running_var, self.var),
            (bn.weight, self.gamma),
            (linear.weight, weight.T),
        ):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))  # type: ignore[operator]
        return head.eval()


def _solve(z: Tensor, y: Tensor, bias: Floats, start: Floats, decay: float, crit: NLL | BCE) -> Floats:
    c = len(bias)
    towards = torch.from_numpy(bias)
    scale = gradient_scale(crit, c)
    y = y.double() if isinstance(crit, BCE) else y

    @torch.enable_grad()
    def loss(flat: Floats) -> tuple[float, Floats]:
        values = torch.from_numpy(flat).clone().requires_grad_()
        weight, b = values[:-c].view(-1, c), values[-c:]
        penalty = weight.square().sum() + (b - towards).square().sum()
        total = scale * crit.from_logits(z @ weight + b, y) + decay / 2 * penalty
        (gradient,) = torch.autograd.grad(total, values)
        return float(total.detach()), gradient.numpy()

    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _MOST_STEPS})
    return np.asarray(found.x, np.float64)
