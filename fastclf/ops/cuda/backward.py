"""Backward kernels: from logits to their gradient, and back through dropout, BatchNorm and ReLU."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastclf.losses import BCE, NLL
from fastclf.ops.cuda.arguments import DeviceLoss, Dropout, RowBatch, Scratch
from fastclf.ops.cuda.checks import (
    FLOAT,
    addresses,
    check,
    check_batch,
    check_copy,
    check_matrix,
    rows_of,
    size_of,
)
from fastclf.ops.cuda.forward import batch_mask
from fastclf.ops.registry import address, operation, stream_of


@operation
def loss_gradient(
    z: Tensor,
    bias: Tensor,
    loss: DeviceLoss,
    batch: RowBatch,
    losses: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
) -> None:
    """Compute the loss of a batch of logits `z + bias` and, in place of z, its gradient.

    Args:
        z: `[B, C] float32`.
        bias: `[C] float32`.
        loss: what is minimised.
        batch: the targets, `[N] int64` classes in 0..C-1 (`NLL`) or `[N, C] float32` (`BCE`); must have an order.
        losses: `[M] float32`; the loss is written at the batch's number.
        scratch: for at least `[B, C]`.
        copy: `[B, C] bfloat16`, another copy of the gradient.
    """
    with torch.enable_grad():
        logits = (z + bias).requires_grad_()
        value = loss.loss.from_logits(logits, batch.gathered())
        (gradient,) = torch.autograd.grad(value, logits)
    z.copy_(gradient)
    losses[batch.number()] = value.detach()
    if copy is not None:
        copy.copy_(gradient)


@loss_gradient.check
def _(
    z: Tensor,
    bias: Tensor,
    loss: DeviceLoss,
    batch: RowBatch,
    losses: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
) -> None:
    nll, classes, n = isinstance(loss.loss, NLL), z.shape[1], len(batch.src)
    check_matrix("loss_gradient", "z", z, scratch)
    check("loss_gradient", z.device, "bias", bias, (classes,))
    shape = (n,) if nll else (n, classes)
    check("loss_gradient", z.device, "targets", batch.src, shape, (torch.int64,) if nll else FLOAT)
    check("loss_gradient", z.device, "losses", losses, losses.shape)
    check_copy("loss_gradient", copy, z)
    if loss.loss.weight is not None:
        check("loss_gradient", z.device, "loss.weight", loss.loss.weight, (classes,))


@loss_gradient.cuda
def _(
    native: ModuleType,
    z: Tensor,
    bias: Tensor,
    loss: DeviceLoss,
    batch: RowBatch,
    losses: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
) -> None:
    assert batch.order is not None
    native.loss_gradient(
        loss=int(isinstance(loss.loss, BCE)),
        **addresses({"z": z, "bias": bias, "targets": batch.src, "order": batch.order}),
        step_counter=address(batch.step_counter),
        stride=batch.stride,
        rows=len(z),
        classes=z.shape[1],
        weight=address(loss.loss.weight),
        weight_sum=loss.weight_sum,
        smoothing=loss.loss.label_smoothing,
        **addresses({"row_loss": scratch.row_loss, "losses": losses, "block_counter": scratch.block_counter}),
        copy=address(copy),
        stream=stream_of(z.device),
    )


@operation
def column_sums(x: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Add up the rows of `x [B, F] float32` into `out [F] float32`; scratch is for at least `[B, F]`."""
    out.copy_(x.sum(0))


@column_sums.check
def _(x: Tensor, out: Tensor, scratch: Scratch) -> None:
    check_matrix("column_sums", "x", x, scratch)
    check("column_sums", x.device, "out", out, x.shape[1:])


@column_sums.cuda
def _(native: ModuleType, x: Tensor, out: Tensor, scratch: Scratch) -> None:
    native.column_sums(x=address(x), **size_of(x), out=address(out), **scratch.addresses(), stream=stream_of(x.device))


@operation
def affine_gradient(
    g: Tensor,
    x: RowBatch,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    scratch: Scratch,
    *,
    write: bool,
) -> None:
    """Take the gradient of what `normalise` made back through dropout, and sum the gradients of gamma and beta.

    Args:
        g: `[B, F] float32`; with `write` it becomes `mask * g`.
        x: what `normalise` was given, and so are `mean`, `rstd` and `dropout`.
        mean: see x.
        rstd: see x.
        dropout: see x.
        dgamma: `[F] float32`, the sums of `mask * g * (x - mean) * rstd`.
        dbeta: `[F] float32`, the sums of `mask * g`.
        scratch: for at least `[B, F]`.
        write: see g.
    """
    masked = g * batch_mask(x, dropout, g)
    dgamma.copy_((masked * ((x.gathered().to(g.dtype) - mean) * rstd)).sum(0))
    dbeta.copy_(masked.sum(0))
    if write:
        g.copy_(masked)


@affine_gradient.check
def _(
    g: Tensor,
    x: RowBatch,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    scratch: Scratch,
    *,
    write: bool,
) -> None:
    check_batch("affine_gradient", x, scratch)
    check("affine_gradient", x.device, "g", g, (x.rows, x.src.shape[1]))
    for name, tensor in {"mean": mean, "rstd": rstd, "dgamma": dgamma, "dbeta": dbeta}.items():
        check("affine_gradient", x.device, name, tensor, x.src.shape[1:])


@affine_gradient.cuda
def _(
    native: ModuleType,
    g: Tensor,
    x: RowBatch,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    scratch: Scratch,
    *,
    write: bool,
) -> None:
    native.affine_gradient(
        **rows_of(x),
        **vars(dropout),
        **addresses({"g": g, "mean": mean, "rstd": rstd, "dgamma": dgamma, "dbeta": dbeta}),
        write=write,
        **scratch.addresses(),
        stream=stream_of(g.device),
    )


@operation
def input_gradient(
    g: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
    *,
    frozen: bool,
) -> None:
    """Take the gradient of BatchNorm's output back through it and through the ReLU before.

    Args:
        g: `[B, F] float32`, in place.
        h: `[B, F] float32`, what the ReLU gave.
        mean: `[F] float32`, and so are all up to `dbias`.
        rstd: see mean.
        gamma: see mean.
        dgamma: what `affine_gradient` found.
        dbeta: what `affine_gradient` found.
        dbias: the sums of the new g: the gradient of the bias before the ReLU.
        scratch: for at least `[B, F]`.
        copy: `[B, F] bfloat16`, another copy of the new g.
        frozen: the statistics are running ones and do not depend on h.
    """
    share = 0.0 if frozen else 1 / len(g)
    d = gamma * rstd * (g - share * dbeta - (h - mean) * rstd * (share * dgamma)) * (h > 0)
    g.copy_(d)
    dbias.copy_(d.sum(0))
    if copy is not None:
        copy.copy_(d)


@input_gradient.check
def _(
    g: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
    *,
    frozen: bool,
) -> None:
    check_matrix("input_gradient", "g", g, scratch)
    check("input_gradient", g.device, "h", h, g.shape)
    columns = {"mean": mean, "rstd": rstd, "gamma": gamma, "dgamma": dgamma, "dbeta": dbeta, "dbias": dbias}
    for name, tensor in columns.items():
        check("input_gradient", g.device, name, tensor, g.shape[1:])
    check_copy("input_gradient", copy, g)


@input_gradient.cuda
def _(
    native: ModuleType,
    g: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
    *,
    frozen: bool,
) -> None:
    native.input_gradient(
        **addresses({"g": g, "h": h, "mean": mean, "rstd": rstd, "gamma": gamma}),
        **addresses({"dgamma": dgamma, "dbeta": dbeta, "dbias": dbias}),
        **size_of(g),
        frozen=frozen,
        copy=address(copy),
        **scratch.addresses(),
        stream=stream_of(g.device),
    )
