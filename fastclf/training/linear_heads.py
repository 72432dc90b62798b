"""Heads without a hidden layer, solved to the end instead of trained by steps: regularised logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

from fastclf.data.dataset import Dataset
from fastclf.losses import BCE, NLL
from fastclf.models.head import Head
from fastclf.report import warn
from fastclf.training.losses import constant_logits, gradient_scale

_MOST_STEPS = 1000
_CURVATURE = 0.1  # of the loss by a logit, about: p (1 - p) of a model that has learnt something
_BLOCK = 4096  # rows that are in memory at once, where there are as many rows as features or more

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scaling: TypeAlias = Literal["common", "pareto", "standard"]
_POWERS: dict[Scaling, float] = {"common": 0.0, "pareto": 0.5, "standard": 1.0}


@dataclass(frozen=True)
class LinearSetting:
    """How a head without a hidden layer is solved.

    Attributes:
        decay: half of it times the squared weights is added to the mean loss: ``1 / (C n)`` of scikit-learn. The bias
            is not penalised.
        scaling: what each feature is divided by: all by one ``common`` deviation, each by its own (``standard``), or by
            the square root of its own (``pareto``; van den Berg et al., "Centering, scaling, and transformations",
            2006).
    """

    decay: float
    scaling: Scaling

    def __post_init__(self) -> None:
        if not self.decay > 0 or self.scaling not in _POWERS:
            raise ValueError(
                f"LinearSetting: decay must be above 0 and scaling one of {tuple(_POWERS)}, got {self.decay!r} and "
                f"{self.scaling!r}"
            )


def linear_heads(ds: Dataset, train: Ints, settings: Sequence[LinearSetting], *, crit: NLL | BCE) -> list[Head]:
    """Return the head of each setting: the minimum of the loss on some rows plus the penalty, by L-BFGS.

    The penalty does not change when the rows are rotated, so that fewer rows than features are solved in their own
    span, exactly. More rows are read block by block; more than 4,096 are multiplied in float32, else in float64. A
    class without rows (a label that all rows have, or none) counts half a row at the mean of all rows, which keeps its
    bias finite. Nothing is random.

    A warning names how many settings have not converged after 1,000 steps.

    Args:
        ds: holds rows ``[views * N, F]``; all views of a row count.
        train: the rows to learn from, ``[n] int64``, two or more; bad ones are left out.
        settings: any number; those of one scaling are solved from the highest decay to the lowest, each from where the
            one before it ended.
        crit: the loss, with class weights and label smoothing.
    """
    assert ds.rows is not None
    train = np.intersect1d(train, ds.bad.good_rows())
    places = np.concatenate([train + view * len(ds) for view in range(len(ds.rows) // len(ds))])
    moments = _moments(ds, places)
    heads: dict[LinearSetting, Head] = {}
    unsolved = 0
    for scaling in dict.fromkeys(setting.scaling for setting in settings):
        rows = _Rows(ds, places, moments, _POWERS[scaling])
        problem = _Problem(rows, ds, train, crit)
        solution = problem.start
        mine = sorted({s for s in settings if s.scaling == scaling}, key=lambda setting: -setting.decay)
        for setting in mine:
            solution, converged = problem.solve(solution, setting.decay)
            unsolved += not converged
            heads[setting] = rows.head(solution, ds.c, crit)
    if unsolved:
        warn(
            f"linear_heads: {unsolved} of {len(heads)} logistic regressions have not converged after {_MOST_STEPS:,} "
            "steps; they are compared as they are. Scale the features, or pass higher decays."
        )
    return [heads[setting] for setting in settings]


@dataclass(frozen=True)
class _Moments:
    """Of the features: mean and variance ``[F]``; the covariance ``[F, F]`` where there are rows enough for it."""

    mean: Floats
    variance: Floats
    covariance: Floats | None


def _moments(ds: Dataset, places: Ints) -> _Moments:
    """Return the moments of some rows, block by block, around the first block's mean."""
    assert ds.rows is not None
    first = ds.rows[places[:_BLOCK]].astype(np.float64).mean(0)
    if len(places) < len(first):
        return _Moments(first, ds.rows[places].astype(np.float64).var(0), None)
    total, products = np.zeros_like(first), np.zeros((len(first), len(first)))
    for begin in range(0, len(places), _BLOCK):
        x = torch.from_numpy(ds.rows[places[begin : begin + _BLOCK]]).double() - torch.from_numpy(first)
        total += x.sum(0).numpy()
        products += (x.T @ x).numpy()
    mean = total / len(places)
    covariance = products / len(places) - np.outer(mean, mean)
    return _Moments(first + mean, np.maximum(covariance.diagonal(), 0), covariance)


class _Rows:
    """Scaled rows in the coordinates of their principal axes.

    Attributes:
        places: the rows, ``[n] int64``.
        small: whether the rows are in memory: fewer than features, they span fewer axes.
        variances: along each axis, ``[m]``, by which a solver knows how steep its loss is.
    """

    def __init__(self, ds: Dataset, places: Ints, moments: _Moments, power: float) -> None:
        assert ds.rows is not None
        self._source, self.places = ds.rows, places
        self._moments = moments
        deviation = np.sqrt(moments.variance + torch.nn.BatchNorm1d(1).eps)
        gamma = deviation ** (1 - power)
        self._gamma = gamma / np.sqrt(np.mean(gamma**2))
        factor = self._gamma / deviation
        self.small = moments.covariance is None
        # The noise of float32 would keep a solver of few rows searching for what it cannot see.
        self._dtype = torch.float64 if len(places) <= _BLOCK else torch.float32
        if moments.covariance is None:
            z = (self._source[places].astype(np.float64) - moments.mean) * factor
            left, sizes, axes = np.linalg.svd(z, full_matrices=False)
            self.variances, self.axes = sizes**2 / len(places), axes.T
            self._z = torch.from_numpy(left * sizes)
        else:
            self.variances, self.axes = np.linalg.eigh(moments.covariance * np.outer(factor, factor))
            self.variances = np.maximum(self.variances, 0)
            self._to_axes = torch.from_numpy(factor[:, None] * self.axes)
            self._mean = torch.from_numpy(moments.mean)

    def blocks(self) -> list[slice]:
        """Return the places of the blocks that a pass over the rows takes."""
        size = len(self.places) if self.small else _BLOCK
        return [slice(begin, begin + size) for begin in range(0, len(self.places), size)]

    def forward(self, weight: Tensor) -> Callable[[slice], tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Return what gives a block's logits ``[b, c]`` without bias, and the way back from their gradient."""
        if self.small:
            return lambda block: (self._z[block] @ weight, lambda g: self._z[block].T @ g)
        by_feature = self._to_axes @ weight
        at_mean, cast = self._mean @ by_feature, by_feature.to(self._dtype)

        def of_block(block: slice) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            x = torch.from_numpy(self._source[self.places[block]]).to(self._dtype)
            return (x @ cast).double() - at_mean, lambda g: self._back(x, g)

        return of_block

    def _back(self, x: Tensor, gradient: Tensor) -> Tensor:
        return (x.T @ gradient.to(self._dtype)).double() - torch.outer(self._mean, gradient.sum(0))

    def to_axes(self, gradient: Tensor) -> Tensor:
        """Return the sum over blocks of what goes back, as a gradient of the weights."""
        return gradient if self.small else self._to_axes.T @ gradient

    @torch.no_grad()
    def head(self, solution: Floats, c: int, crit: NLL | BCE) -> Head:
        """Return a head that applies weights and bias to rows as they come."""
        weight = solution[:-c].reshape(-1, c)
        weight = self.axes @ weight
        final = "log_softmax" if isinstance(crit, NLL) else "sigmoid"
        head = Head(len(self._gamma), c, ps=0, xtra_fc=(), final=final, bias=solution[-c:])
        bn, linear = head.layers
        for tensor, values in (
            (bn.running_mean, self._moments.mean),
            (bn.running_var, self._moments.variance),
            (bn.weight, self._gamma),
            (linear.weight, weight.T),
        ):
            tensor.copy_(torch.from_numpy(np.ascontiguousarray(values)))  # type: ignore[operator]
        return head.eval()


class _Problem:
    """The penalised loss of one scaling's rows, and its minimum."""

    def __init__(self, rows: _Rows, ds: Dataset, train: Ints, crit: NLL | BCE) -> None:
        y = torch.from_numpy(np.concatenate([ds.y[train]] * (len(rows.places) // len(train))))
        self._rows, self._crit, self._c = rows, crit, ds.c
        self._y = y.double() if isinstance(crit, BCE) else y
        self._shares = self._weights_of_rows()
        self._missing, self._sign = _missing(ds.y[train], ds.c)
        bias = constant_logits(ds.labels.take(train))
        self.start: Floats = np.concatenate([np.zeros(len(rows.variances) * ds.c), bias])

    def _weights_of_rows(self) -> Tensor:
        """Return what each block's mean loss counts for in the whole: a weighted mean, where classes have weights."""
        weight = self._crit.weight if isinstance(self._crit, NLL) else None
        per_row = torch.ones(len(self._y), dtype=torch.float64) if weight is None else weight.double().cpu()[self._y]
        sums = torch.stack([per_row[block].sum() for block in self._rows.blocks()])
        return sums / sums.sum()

    def solve(self, start: Floats, decay: float) -> tuple[Floats, bool]:
        """Return weights and bias at the minimum, from a start near it, and whether it was reached.

        Each coordinate is scaled by about the root of the loss's second derivative, so that few steps are needed.
        """
        scales = np.sqrt(_CURVATURE * self._rows.variances + decay).repeat(self._c)
        scales = np.concatenate([scales, np.ones(self._c)])

        def loss(flat: Floats) -> tuple[float, Floats]:
            total, gradient = self._loss(flat / scales, decay)
            return total, gradient / scales

        options = {"maxiter": _MOST_STEPS, "maxfun": 2 * _MOST_STEPS, "ftol": 1e-10, "gtol": 1e-6}
        # Products of few rows are small: their threads wait for each other longer than they compute.
        with threadpool_limits(limits=1) if len(self._y) <= _BLOCK else nullcontext():
            found = minimize(loss, start * scales, jac=True, method="L-BFGS-B", options=options)
        # Where the line search finds nothing lower (status 2), the loss is at the limit of its precision.
        return np.asarray(found.x / scales, np.float64), found.status != 1

    @torch.enable_grad()
    def _loss(self, flat: Floats, decay: float) -> tuple[float, Floats]:
        values = torch.from_numpy(flat).clone()
        weight, bias = values[: -self._c].view(-1, self._c), values[-self._c :].requires_grad_()
        extra = self._of_missing(bias)
        (of_bias,) = torch.autograd.grad(extra, bias)
        total = float(extra.detach()) + decay / 2 * float(weight.square().sum())
        scale, forward = gradient_scale(self._crit, self._c), self._rows.forward(weight)
        through: Tensor | None = None
        for share, block in zip(self._shares, self._rows.blocks(), strict=True):
            logits, back = forward(block)
            logits = (logits + bias.detach()).requires_grad_()
            loss = scale * share * self._crit.from_logits(logits, self._y[block])
            (of_logits,) = torch.autograd.grad(loss, logits)
            total += float(loss.detach())
            through = back(of_logits) if through is None else through + back(of_logits)
            of_bias = of_bias + of_logits.sum(0)
        assert through is not None
        of_weight = self._rows.to_axes(through) + decay * weight
        return total, torch.cat([of_weight.flatten(), of_bias]).numpy()

    def _of_missing(self, bias: Tensor) -> Tensor:
        half = 0.5 / len(self._y)
        if isinstance(self._crit, NLL):
            return -half * log_softmax(bias, 0)[self._missing].sum()
        return half * softplus(self._sign * bias)[self._missing].sum()


def _missing(y: NDArray[np.generic], c: int) -> tuple[Tensor, Tensor]:
    """Return which classes ``[c]`` no row has, or which labels all rows or none have, and the sign of their bias."""
    if y.ndim == 1:
        return torch.from_numpy(np.bincount(y, minlength=c) == 0), torch.ones(c)
    share = y.astype(np.float64).mean(0)
    return torch.from_numpy((share == 0) | (share == 1)), torch.from_numpy(np.where(share == 0, -1.0, 1.0))
