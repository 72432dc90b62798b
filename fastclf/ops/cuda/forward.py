"""Forward kernels: the operands of the products, and evaluation."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastclf.ops.arguments import DTYPES
from fastclf.ops.cuda.arguments import Dropout, Moments, RowBatch
from fastclf.ops.cuda.checks import (
    OPERAND,
    addresses,
    check,
    check_batch,
    check_columns,
    check_moments,
    moments_of,
    rows_of,
    size_of,
)
from fastclf.ops.dropout import dropout_mask
from fastclf.ops.registry import address, operation, stream_of


def batch_mask(x: RowBatch, dropout: Dropout, like: Tensor) -> Tensor:
    """Return the mask of a batch, of the dtype and on the device of a tensor."""
    mask = dropout_mask(dropout.seed, x.step(), dropout.layer, x.rows, x.src.shape[1], dropout.p)
    return mask.to(like.device, like.dtype)


@operation
def normalise(
    x: RowBatch,
    moments: Moments,
    gamma: Tensor,
    beta: Tensor,
    dropout: Dropout,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    frozen: bool,
) -> None:
    """Apply BatchNorm, with the statistics of the batch, and dropout: `out = mask * (gamma * xhat + beta)`.

    `xhat` is `(x - mean) * rstd`; rows are gathered while they are read.

    Args:
        x: B rows of F columns, two or more; with a bias a product `[B, F] float32` without order.
        moments: is written; the running statistics are those that count, and stay, where they are frozen.
        gamma: `[F] float32`, and so is beta.
        beta: see gamma.
        dropout: the mask is `fastclf.ops.dropout_mask` of these and the step.
        out: `[B, F] float32 | bfloat16`, the left operand of a product.
        bias: `[F] float32`: x becomes a hidden layer first, `max(x + bias, 0)`, in place.
        factors: `[B, F]` or `[B, 2 F]` of the dtype of out, the operand in factors: `keep * xhat`, and `keep` behind it
            (0 or 1).
        frozen: whether the statistics are the running ones.
    """
    m = moments
    if bias is not None:
        x.src[: x.rows].add_(bias).relu_()
    rows = x.gathered().to(m.mean.dtype)
    if frozen:
        m.mean.copy_(m.running_mean)
        m.rstd.copy_((m.running_var + m.eps).rsqrt())
    else:
        _set_moments(rows, m)
    xhat = (rows - m.mean) * m.rstd
    mask = batch_mask(x, dropout, xhat)
    out.copy_(mask * (gamma * xhat + beta))
    if factors is not None:
        keep = (mask > 0).to(xhat.dtype)
        factors.copy_(torch.cat([keep * xhat, keep], 1)[:, : factors.shape[1]])


def _set_moments(x: Tensor, m: Moments) -> None:
    var, mean = torch.var_mean(x, 0, correction=0)
    m.mean.copy_(mean)
    m.rstd.copy_((var + m.eps).rsqrt())
    m.running_mean.lerp_(mean, m.momentum)
    m.running_var.lerp_(var * (len(x) / (len(x) - 1)), m.momentum)


@normalise.check
def _(
    x: RowBatch,
    moments: Moments,
    gamma: Tensor,
    beta: Tensor,
    dropout: Dropout,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    frozen: bool,
) -> None:
    cols = x.src.shape[1]
    check_batch("normalise", x)
    check_moments("normalise", x.device, moments, cols)
    check_columns("normalise", x.device, {"gamma": gamma, "beta": beta}, cols)
    check("normalise", x.device, "out", out, (x.rows, cols), OPERAND)
    if bias is not None:
        check("normalise", x.device, "x.src", x.src, (x.rows, cols))
        check_columns("normalise", x.device, {"bias": bias}, cols)
    if factors is not None:
        width = min(2 * cols, max(cols, factors.shape[-1]))
        check("normalise", x.device, "factors", factors, (x.rows, width), (out.dtype,))


@normalise.cuda
def _(
    native: ModuleType,
    x: RowBatch,
    moments: Moments,
    gamma: Tensor,
    beta: Tensor,
    dropout: Dropout,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    factors: Tensor | None = None,
    frozen: bool,
) -> None:
    native.normalise(
        **rows_of(x),
        **moments_of(moments),
        **vars(dropout),
        **addresses({"gamma": gamma, "beta": beta, "out": out}),
        out_dtype=DTYPES[out.dtype],
        bias=address(bias),
        factors=address(factors),
        factor_cols=0 if factors is None else factors.shape[1],
        frozen=frozen,
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
