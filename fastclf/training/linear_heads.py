"""Heads without a hidden layer, solved to the end instead of trained by steps: regularised logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event, Lock
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor
from torch.linalg import solve_triangular
from torch.nn.functional import log_softmax, softplus

from fastclf.arrays import Floats, RowNumbers
from fastclf.data.dataset import Dataset
from fastclf.data.sources.labels import Labels
from fastclf.losses import BCE, NLL
from fastclf.models.head import FINALS, Head
from fastclf.report import warn
from fastclf.training.losses import constant_logits, gradient_scale
from fastclf.training.tasks import go_on

_MOST_STEPS = 1000
_EXACTLY, _NEARLY = 1e-10, 1e-7  # of the loss: what float64 and float32 can see
_CURVATURE = 0.1  # of the loss by a logit, about: p (1 - p) of a model that has learnt something
_BLOCK = 4096  # rows that are multiplied at once
_KEPT = 2**30  # bytes of centred rows that stay in memory; more are read again at every step
_SPANNED = 2 / 3  # rows per feature from which a step in all features costs less than to find the span of the rows
_SMALL = 2**20  # numbers in the rows of a problem that one thread solves

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


def linear_heads(ds: Dataset, train: RowNumbers, settings: Sequence[LinearSetting], *, crit: NLL | BCE) -> list[Head]:
    """Return the head of each setting: the minimum of the loss on some rows plus the penalty, see `LinearPaths`.

    Args:
        ds: holds rows, see there.
        train: the rows to learn from.
        settings: any number.
        crit: the loss.
    """
    paths, never = LinearPaths(ds, train, crit=crit, exact=True), Event()
    solved: dict[LinearSetting, Solved] = {}
    for scaling in dict.fromkeys(setting.scaling for setting in settings):
        decays = sorted({one.decay for one in settings if one.scaling == scaling}, reverse=True)
        solved |= {LinearSetting(one.decay, scaling): one for one in paths.solve(scaling, decays, never)}
    warn_of_unsolved([one.converged for one in solved.values()])
    return [solved[setting].head for setting in settings]


@dataclass(frozen=True)
class Solved:
    """A solution of `LinearPaths`.

    Attributes:
        decay: see `LinearSetting`.
        head: applies it to rows as they come.
        converged: whether the solver came to its end.
    """

    decay: float
    head: Head
    converged: bool


class LinearPaths:
    """Regularised logistic regressions on some rows, solved by L-BFGS, one decay after another.

    The penalty does not change when the rows are rotated, so that much fewer rows than features are solved in their own
    span. They are multiplied in float32, block by block, until a step lowers the loss by less than 1e-7: enough to
    compare settings by. A head of up to 4,096 rows that is to be kept is solved in float64, until a step lowers the
    loss by less than 1e-10. A class without rows (a label that all rows have, or none) counts half a row at the mean of
    all rows, which keeps its bias finite. Nothing is random.

    Up to 1 GiB of rows, less their mean, stay in memory, once for all scalings; more are read again at every step. The
    exception is where rows are fewer than two thirds of the features: each scaling keeps the axes of their span, as
    many numbers in float64 as the rows have, and takes about four times that while it finds them.
    """

    def __init__(self, ds: Dataset, train: RowNumbers, *, crit: NLL | BCE, exact: bool = False) -> None:
        """Read the rows.

        Args:
            ds: holds rows ``[views * N, F]``; all views of a row count.
            train: the rows to learn from, ``[n] int64``, two or more; bad ones are left out.
            crit: the loss, with class weights and label smoothing.
            exact: see above.
        """
        assert ds.rows is not None
        self._ds, self._crit, self._train = ds, crit, np.intersect1d(train, ds.bad.good_rows())
        self._views = len(ds.rows) // len(ds)
        places = np.concatenate([self._train + view * len(ds) for view in range(self._views)])
        # The noise of float32 would keep an exact solver searching for what it cannot see.
        self._exact = exact and len(places) <= _BLOCK
        self._places, self._lock = places, Lock()
        self._centred: _Centred | None = None

    def solve(self, scaling: Scaling, decays: Sequence[float], stop: Event) -> Iterator[Solved]:
        """Yield the solution of each decay, found when it is asked for, from where the one before ended.

        Several threads may do so at once, each for a scaling.

        Args:
            scaling: of the features.
            decays: the highest first, since each solution is near the one before.
            stop: once it is set, `StoppedError` is raised within one pass over the rows.
        """
        rows = _ScaledRows(self._centred_rows(stop), _POWERS[scaling])
        tolerance = _EXACTLY if self._exact else _NEARLY
        problem = _Problem(rows, self._ds, self._train, self._crit, views=self._views, tolerance=tolerance)
        solution = problem.start
        for decay in decays:
            solution, converged = problem.solve(solution, decay, stop)
            yield Solved(decay, rows.head(solution, self._ds.labels), converged)

    def _centred_rows(self, stop: Event) -> _Centred:
        with self._lock:  # the first thread reads them, and the others wait
            if self._centred is None:
                dtype = torch.float64 if self._exact else torch.float32
                self._centred = _Centred(self._ds, self._places, dtype, stop)
            return self._centred


def warn_of_unsolved(converged: Sequence[bool]) -> None:
    """Warn how many solutions have not converged after 1,000 steps, where there are any."""
    if not all(converged):
        warn(
            f"linear_heads: {converged.count(False)} of {len(converged)} logistic regressions have not converged after "
            f"{_MOST_STEPS:,} steps; they are compared as they are. Scale the features, or pass higher decays."
        )


class _Centred:
    """Rows less their mean, block by block, kept where they fit.

    Attributes:
        mean: of the features, ``[F]``.
        variance: of the features, ``[F]``.
        covariance: ``[F, F] float64``, where there are not much fewer rows than features.
    """

    def __init__(self, ds: Dataset, places: RowNumbers, dtype: torch.dtype, stop: Event) -> None:
        assert ds.rows is not None
        self._source, self.places, self._dtype = ds.rows, places, dtype
        n, features = len(places), ds.rows.shape[1]
        self.blocks = [slice(begin, begin + _BLOCK) for begin in range(0, n, _BLOCK)]
        self.mean: Floats = sum(ds.rows[places[b]].sum(0, dtype=np.float64) for b in self.blocks) / n
        self._kept: list[Tensor] = []
        squares, products = torch.zeros(features, dtype=torch.float64), None
        if n >= _SPANNED * features:
            products = torch.zeros(features, features, dtype=torch.float64)
        for block in range(len(self.blocks)):
            go_on(stop)
            x = self._read(block)
            if n * features * dtype.itemsize <= _KEPT:
                self._kept.append(x)
            squares += x.square().sum(0)
            if products is not None:
                products += x.T @ x
        self.variance: Floats = (squares / n).numpy()
        self.covariance = None if products is None else products / n

    def read(self, block: int) -> Tensor:
        """Return a block, ``[b, F]``."""
        return self._kept[block] if self._kept else self._read(block)

    def _read(self, block: int) -> Tensor:
        x = self._source[self.places[self.blocks[block]]].astype(np.float64)
        x -= self.mean
        return torch.from_numpy(x).to(self._dtype)


class _ScaledRows:
    """Scaled rows; much fewer rows than features in coordinates of their own span.

    Attributes:
        covariance: of the coordinates, ``[m, m]``, by which a solver knows how steep its loss is.
    """

    def __init__(self, centred: _Centred, power: float) -> None:
        self._moments = centred
        deviation = np.sqrt(centred.variance + torch.nn.BatchNorm1d(1).eps)
        gamma = deviation ** (1 - power)
        self._gamma = gamma / np.sqrt(np.mean(gamma**2))
        factor = torch.from_numpy(self._gamma / deviation)
        self._axes: Tensor | None = None
        self.blocks, self._read, self._factor = centred.blocks, centred.read, factor[:, None]
        if centred.covariance is None:
            z = torch.cat([centred.read(b) for b in range(len(centred.blocks))]).double() * factor
            self._axes, triangle = torch.linalg.qr(z.T)
            self.covariance = triangle @ triangle.T / len(z)
            self._factor = torch.ones(len(triangle), 1, dtype=torch.float64)
            columns = triangle.T.contiguous().to(centred.read(0).dtype)
            self._read = columns.split(_BLOCK).__getitem__
        else:
            self.covariance = centred.covariance * torch.outer(factor, factor)

    def forward(self, weight: Tensor) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """Yield each block's logits ``[b, c]`` without bias, and the way back from their gradient."""
        scaled = self._factor * weight
        for block in range(len(self.blocks)):
            x = self._read(block)
            # Few columns: a product of theirs transposed takes half the time of x @ scaled.
            yield (scaled.T.to(x.dtype) @ x.T).T.double(), partial(self._back, x)

    def _back(self, x: Tensor, gradient: Tensor) -> Tensor:
        return self._factor * (gradient.to(x.dtype).T @ x).T.double()

    @torch.no_grad()
    def head(self, solution: Floats, labels: Labels) -> Head:
        """Return a head that applies weights and bias to rows as they come."""
        c = labels.c
        weight = solution[:-c].reshape(-1, c)
        if self._axes is not None:
            weight = self._axes.numpy() @ weight
        head = Head(len(self._gamma), c, ps=0, xtra_fc=(), final=FINALS[labels.kind], bias=solution[-c:])
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

    def __init__(
        self, rows: _ScaledRows, ds: Dataset, train: RowNumbers, crit: NLL | BCE, *, views: int, tolerance: float
    ) -> None:
        y = torch.from_numpy(np.concatenate([ds.y[train]] * views))
        self._rows, self._crit, self._c, self._tolerance = rows, crit, ds.c, tolerance
        self._y = y.double() if isinstance(crit, BCE) else y
        self._shares = self._weights_of_blocks()
        self._missing, self._sign = _missing(ds.y[train], ds.c)
        bias = constant_logits(ds.labels.take(train))
        self.start: Floats = np.concatenate([np.zeros(len(rows.covariance) * ds.c), bias])

    def _weights_of_blocks(self) -> Tensor:
        """Return what each block's mean loss counts for in the whole: a weighted mean, where classes have weights."""
        weight = self._crit.weight if isinstance(self._crit, NLL) else None
        per_row = torch.ones(len(self._y), dtype=torch.float64) if weight is None else weight.double().cpu()[self._y]
        sums = torch.stack([per_row[block].sum() for block in self._rows.blocks])
        return sums / sums.sum() if sums.any() else sums

    def solve(self, start: Floats, decay: float, stop: Event) -> tuple[Floats, bool]:
        """Return weights and bias at the minimum, from a start near it, and whether it was reached.

        The solver's coordinates are those in which the loss's second derivative is about 1 along each axis, so that
        few steps are needed: the weights times the Cholesky factor of the derivative at a constant curvature.
        """
        from scipy.optimize import minimize

        steep = _CURVATURE * self._rows.covariance
        # Rounded products are not quite positive definite.
        steep.diagonal().add_(decay + 1e-5 * float(steep.diagonal().mean()))
        factor = torch.linalg.cholesky(steep)

        def there(flat: Floats) -> Floats:
            return self._by_weight(lambda w: factor.T @ w, flat)

        def back(flat: Floats) -> Floats:
            return self._by_weight(lambda w: solve_triangular(factor.T, w, upper=True), flat)

        def loss(flat: Floats) -> tuple[float, Floats]:
            go_on(stop)
            total, gradient = self._loss(back(flat), decay)
            return total, self._by_weight(lambda w: solve_triangular(factor, w, upper=False), gradient)

        options = {
            "maxiter": _MOST_STEPS,
            "maxfun": 2 * _MOST_STEPS,
            "maxcor": 30,
            "ftol": self._tolerance,
            "gtol": 1e-6,
        }
        # The solver's own vectors are small: threads wait for each other longer than they compute.
        with threadpool_limits(limits=1, user_api=None if len(self._y) * len(factor) <= _SMALL else "blas"):
            found = minimize(loss, there(start), jac=True, method="L-BFGS-B", options=options)
        # Where the line search finds nothing lower (status 2), the loss is at the limit of its precision.
        return back(found.x), found.status != 1

    def _by_weight(self, change: Callable[[Tensor], Tensor], flat: Floats) -> Floats:
        """Return a solution or gradient whose weights ``[m, c]`` are changed, the bias not."""
        weight = torch.from_numpy(flat[: -self._c]).view(-1, self._c)
        return np.concatenate([change(weight).numpy().ravel(), flat[-self._c :]])

    @torch.enable_grad()
    def _loss(self, flat: Floats, decay: float) -> tuple[float, Floats]:
        values = torch.from_numpy(flat).clone()
        weight, bias = values[: -self._c].view(-1, self._c), values[-self._c :].requires_grad_()
        extra = self._of_missing(bias)
        (of_bias,) = torch.autograd.grad(extra, bias)
        total = float(extra.detach()) + decay / 2 * float(weight.square().sum())
        of_weight, scale = decay * weight, gradient_scale(self._crit, self._c)
        for share, block, (logits, back) in zip(
            self._shares, self._rows.blocks, self._rows.forward(weight), strict=True
        ):
            if not share:  # all its classes weigh 0: it has no mean
                continue
            logits = (logits + bias.detach()).requires_grad_()
            loss = scale * share * self._crit.from_logits(logits, self._y[block])
            (of_logits,) = torch.autograd.grad(loss, logits)
            total += float(loss.detach())
            of_weight = of_weight + back(of_logits)
            of_bias = of_bias + of_logits.sum(0)
        return total, torch.cat([of_weight.flatten(), of_bias]).numpy()

    def _of_missing(self, bias: Tensor) -> Tensor:
        half = 0.5 / len(self._y)
        if isinstance(self._crit, NLL):
            return -half * log_softmax(bias, 0)[self._missing].sum()
        return half * softplus(self._sign * bias)[self._missing].sum()


def _missing(y: NDArray[np.generic], c: int) -> tuple[Tensor, Tensor]:
    """Return which classes ``[c]`` no row has, or which labels all rows or none have, and the sign of their bias."""
    if y.ndim == 1:
        return torch.from_numpy(np.bincount(y, minlength=c) == 0), torch.ones(c, dtype=torch.float32)
    share = y.astype(np.float64).mean(0)
    return torch.from_numpy((share == 0) | (share == 1)), torch.from_numpy(np.where(share == 0, -1.0, 1.0))
