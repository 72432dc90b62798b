"""Forward kernels: BatchNorm's statistics, the operands of the products, and evaluation."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastclf.ops.arguments import DTYPES
from fastclf.ops.cuda.arguments import Dropout, Moments, RowBatch, Scratch
from fastclf.ops.cuda.checks import (
    OPERAND,
    addresses,
    check,
    check_batch,
    check_matrix,
    check_moments,
    moments_of,
    rows_of,
    size_of,
)
from fastclf.ops.dropout import dropout_mask
from fastclf.ops.registry import address, operation, stream_of


def _set_moments(x: Tensor, m: Moments) -> None:
    var, mean = torch.var_mean(x, 0, correction=0)
    m.mean.copy_(mean)
    m.rstd.copy_((var + m.eps).rsqrt())
    m.running_mean.lerp_(mean, m.momentum)
    m.running_var.lerp_(var * (len(x) / (len(x) - 1)), m.momentum)


@operation
def batch_moments(x: RowBatch, moments: Moments, scratch: Scratch) -> None:
    """Compute BatchNorm's statistics of a batch, gathering its rows while they are read.

    Args:
        x: B >= 2 rows of F columns.
        moments: is written.
        scratch: for at least `[B, F]`.
    """
    _set_moments(x.gathered().to(moments.mean.dtype), moments)


@batch_moments.check
def _(x: RowBatch, moments: Moments, scratch: Scratch) -> None:
    check_batch("batch_moments", x, scratch)
    check_moments("batch_moments", x.device, moments, x.src.shape[1])


@batch_moments.cuda
def _(native: ModuleType, x: RowBatch, moments: Moments, scratch: Scratch) -> None:
    native.batch_moments(**rows_of(x), **moments_of(moments, scratch), stream=stream_of(x.device))


@operation
def relu_moments(z: Tensor, bias: Tensor, moments: Moments, scratch: Scratch) -> None:
    """Turn a product into a hidden layer, `z = max(z + bias, 0)`, and compute BatchNorm's statistics of it.

    Args:
        z: `[B, F] float32`, in place.
        bias: `[F] float32`.
        moments: is written.
        scratch: for at least `[B, F]`.
    """
    z.add_(bias).relu_()
    _set_moments(z, moments)


@relu_moments.check
def _(z: Tensor, bias: Tensor, moments: Moments, scratch: Scratch) -> None:
    check_matrix("relu_moments", "z", z, scratch)
    check("relu_moments", z.device, "bias", bias, z.shape[1:])
    check_moments("relu_moments", z.device, moments, z.shape[1])


@relu_moments.cuda
def _(native: ModuleType, z: Tensor, bias: Tensor, moments: Moments, scratch: Scratch) -> None:
    native.relu_moments(
        z=address(z), bias=address(bias), **size_of(z), **moments_of(moments, scratch), stream=stream_of(z.device)
    )


def batch_mask(x: RowBatch, dropout: Dropout, like: Tensor) -> Tensor:
    """Return the mask of a batch, of the dtype and on the device of a tensor."""
    mask = dropout_mask(dropout.seed, x.step(), dropout.layer, x.rows, x.src.shape[1], dropout.p)
    return mask.to(like.device, like.dtype)


@operation
def normalise(
    x: RowBatch, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, dropout: Dropout, out: Tensor
) -> None:
    """Apply BatchNorm and dropout: `out = mask * (gamma * (x - mean) * rstd + beta)`.

    Args:
        x: B rows of F columns.
        mean: `[F] float32`, and so are `rstd`, `gamma` and `beta`.
        rstd: see mean.
        gamma: see mean.
        beta: see mean.
        dropout: the mask is `fastclf.ops.dropout_mask` of these and the step.
        out: `[B, F] float32 | bfloat16`, the left operand of a product.
    """
    y = gamma * ((x.gathered().to(mean.dtype) - mean) * rstd) + beta
    out.copy_(y * batch_mask(x, dropout, y))


@normalise.check
def _(x: RowBatch, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, dropout: Dropout, out: Tensor) -> None:
    check_batch("normalise", x)
    for name, tensor in {"mean": mean, "rstd": rstd, "gamma": gamma, "beta": beta}.items():
        check("normalise", x.device, name, tensor, x.src.shape[1:])
    check("normalise", x.device, "out", out, (x.rows, x.src.shape[1]), OPERAND)


@normalise.cuda
def _(
    native: ModuleType,
    x: RowBatch,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    beta: Tensor,
    dropout: Dropout,
    out: Tensor,
) -> None:
    native.normalise(
        **rows_of(x),
        **vars(dropout),
        **addresses({"mean": mean, "rstd": rstd, "gamma": gamma, "beta": beta, "out": out}),
        out_dtype=DTYPES[out.dtype],
        stream=stream_of(out.device),
    )


@operation
def add_bias(z: Tensor, bias: Tensor, *, relu: bool) -> None:
    """Add `bias [F] float32` to `z [B, F] float32` in place; with `relu`, `z = max(z + bias, 0)`."""
    z.add_(bias)
    if relu:
        z.relu_()


@add_bias.check
def _(z: Tensor, bias: Tensor, *, relu: bool) -> None:
    check("add_bias", z.device, "z", z, z.shape)
    check("add_bias", z.device, "bias", bias, z.shape[1:])


@add_bias.cuda
def _(native: ModuleType, z: Tensor, bias: Tensor, *, relu: bool) -> None:
    native.add_bias(**addresses({"z": z, "bias": bias}), **size_of(z), relu=relu, stream=stream_of(z.device))


@operation
def fold(
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    out_weight: Tensor,
    out_bias: Tensor,
) -> None:
    """Fold BatchNorm with its running statistics into the linear layer after it.

    Args:
        weight: `[O, F] float32`.
        bias: `[O] float32`.
        gamma: `[F] float32`, and so are `beta`, `mean` and `var`.
        beta: see gamma.
        mean: see gamma.
        var: see gamma.
        eps: BatchNorm's.
        out_weight: `[O, F] float32`: `weight * gamma / sqrt(var + eps)`.
        out_bias: `[O] float32`: `bias + weight @ (beta - gamma * mean / sqrt(var + eps))`.
    """
    factor = gamma * (var + eps).rsqrt()
    out_weight.copy_(weight * factor)
    out_bias.copy_(bias + weight @ (beta - factor * mean))


@fold.check
def _(
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    out_weight: Tensor,
    out_bias: Tensor,
) -> None:
    n_out, n_in = weight.shape
    for name, tensor in {"gamma": gamma, "beta": beta, "mean": mean, "var": var}.items():
        check("fold", weight.device, name, tensor, (n_in,))
    for name, tensor in {"bias": bias, "out_bias": out_bias}.items():
        check("fold", weight.device, name, tensor, (n_out,))
    for name, tensor in {"weight": weight, "out_weight": out_weight}.items():
        check("fold", weight.device, name, tensor, (n_out, n_in))


@fold.cuda
def _(
    native: ModuleType,
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    out_weight: Tensor,
    out_bias: Tensor,
) -> None:
    native.fold(
        **addresses({"weight": weight, "bias": bias, "gamma": gamma, "beta": beta, "mean": mean, "var": var}),
        **addresses({"out_weight": out_weight, "out_bias": out_bias}),
        eps=eps,
        n_out=len(weight),
        n_in=weight.shape[1],
        stream=stream_of(weight.device),
    )
