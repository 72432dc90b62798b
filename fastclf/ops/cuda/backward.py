"""Backward kernels: from logits to their gradient, and back through dropout, BatchNorm and ReLU."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastclf.losses import BCE, NLL
from fastclf.ops.arguments import DTYPES
from fastclf.ops.cuda.arguments import MOST_CLASSES, DeviceLoss, Dropout, LastLayer, Moments, RowBatch, Scratch
from fastclf.ops.cuda.checks import (
    FLOAT,
    OPERAND,
    addresses,
    check,
    check_batch,
    check_columns,
    check_copy,
    check_moments,
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
    product: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Compute the loss of a batch of logits `z + bias` and, in place of z, its gradient.

    Args:
        z: `[B, C] float32`.
        bias: `[C] float32`.
        loss: what is minimised.
        batch: the targets, `[N] int64` classes in 0..C-1 (`NLL`) or `[N, C] float32` (`BCE`); must have an order.
        losses: `[M] float32`; the loss is written at the batch's number.
        scratch: for at least B rows.
        copy: `[B, C] bfloat16`, another copy of the gradient.
        product: `[B, F] float32 | bfloat16` and `[C, F] float32`: z is first made, as `left @ right.T`.
    """
    if product is not None:
        torch.mm(product[0].to(z.dtype), product[1].to(z.dtype).t(), out=z)
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
    product: tuple[Tensor, Tensor] | None = None,
) -> None:
    nll, classes, n = isinstance(loss.loss, NLL), z.shape[1], len(batch.src)
    check("loss_gradient", z.device, "z", z, z.shape)
    if len(z) > scratch.rows:
        raise ValueError(
            f"loss_gradient: scratch must be for at least {len(z)} rows, got one for {scratch.rows}. Make a larger one."
        )
    check("loss_gradient", z.device, "bias", bias, (classes,))
    shape = (n,) if nll else (n, classes)
    check("loss_gradient", z.device, "targets", batch.src, shape, (torch.int64,) if nll else FLOAT)
    check("loss_gradient", z.device, "losses", losses, losses.shape)
    check_copy("loss_gradient", copy, z)
    if loss.loss.weight is not None:
        check("loss_gradient", z.device, "loss.weight", loss.loss.weight, (classes,))
    if product is not None:
        check("loss_gradient", z.device, "left", product[0], (len(z), product[0].shape[1]), OPERAND)
        check("loss_gradient", z.device, "right", product[1], (classes, product[0].shape[1]))


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
    product: tuple[Tensor, Tensor] | None = None,
) -> None:
    assert batch.order is not None
    left, right = (None, None) if product is None else product
    native.loss_gradient(
        left=address(left),
        left_dtype=DTYPES[torch.float32 if left is None else left.dtype],
        right=address(right),
        inner=0 if left is None else left.shape[1],
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
def column_sums(x: Tensor, out: Tensor) -> None:
    """Add up the rows of `x [B, F] float32` into `out [F] float32`."""
    out.copy_(x.sum(0))


@column_sums.check
def _(x: Tensor, out: Tensor) -> None:
    check("column_sums", x.device, "x", x, x.shape)
    check("column_sums", x.device, "out", out, x.shape[1:])


@column_sums.cuda
def _(native: ModuleType, x: Tensor, out: Tensor) -> None:
    native.column_sums(**addresses({"x": x, "out": out}), **size_of(x), stream=stream_of(x.device))


@operation
def hidden_gradient(
    d: Tensor,
    h: RowBatch,
    moments: Moments,
    gamma: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    copy: Tensor | None = None,
    last: LastLayer | None = None,
    *,
    frozen: bool,
) -> None:
    """Take the gradient of a layer's operand back through dropout, BatchNorm and the ReLU before them.

    Args:
        d: `[B, F] float32`: the gradient of the operand, `mask * (gamma * xhat + beta)`; becomes that of what went into
            the ReLU.
        h: `[B, F] float32` without order, what the ReLU gave.
        moments: of h; mean and rstd count.
        gamma: `[F] float32`.
        dropout: of the operand.
        dgamma: `[F] float32`, is written, and so are dbeta and dbias.
        dbeta: see dgamma.
        dbias: the sums of the new d: the gradient of the bias before the ReLU.
        copy: `[B, F] bfloat16`, another copy of the new d.
        last: where d is not given, but to be made of this layer's logits, with this layer's gradients.
        frozen: the statistics are running ones and do not depend on h.
    """
    g, rows = d, h.src.to(d.dtype)
    if last is not None:
        g = last.logits @ last.weight
        last.dweight.copy_(last.logits.t() @ last.operand.to(d.dtype))
        last.dbias.copy_(last.logits.sum(0))
    g = g * batch_mask(h, dropout, d)
    xhat = (rows - moments.mean) * moments.rstd
    dgamma.copy_((g * xhat).sum(0))
    dbeta.copy_(g.sum(0))
    share = 0.0 if frozen else 1 / len(d)
    d.copy_(gamma * moments.rstd * (g - share * dbeta - xhat * (share * dgamma)) * (rows > 0))
    dbias.copy_(d.sum(0))
    if copy is not None:
        copy.copy_(d)


@hidden_gradient.check
def _(
    d: Tensor,
    h: RowBatch,
    moments: Moments,
    gamma: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    copy: Tensor | None = None,
    last: LastLayer | None = None,
    *,
    frozen: bool,
) -> None:
    rows, cols = d.shape
    check("hidden_gradient", d.device, "d", d, d.shape)
    check("hidden_gradient", d.device, "h.src", h.src, d.shape)
    check_batch("hidden_gradient", h)
    check_moments("hidden_gradient", d.device, moments, cols)
    columns = {"gamma": gamma, "dgamma": dgamma, "dbeta": dbeta, "dbias": dbias}
    check_columns("hidden_gradient", d.device, columns, cols)
    check_copy("hidden_gradient", copy, d)
    if last is None:
        return
    classes = last.logits.shape[1]
    if classes > MOST_CLASSES:
        raise ValueError(
            f"hidden_gradient: last must have at most {MOST_CLASSES} classes, got {classes}. Give d instead."
        )
    check("hidden_gradient", d.device, "last.logits", last.logits, (rows, classes))
    check("hidden_gradient", d.device, "last.operand", last.operand, d.shape, OPERAND)
    for name in ("weight", "dweight"):
        check("hidden_gradient", d.device, f"last.{name}", getattr(last, name), (classes, cols))
    check("hidden_gradient", d.device, "last.dbias", last.dbias, (classes,))


@hidden_gradient.cuda
def _(
    native: ModuleType,
    d: Tensor,
    h: RowBatch,
    moments: Moments,
    gamma: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    copy: Tensor | None = None,
    last: LastLayer | None = None,
    *,
    frozen: bool,
) -> None:
    native.hidden_gradient(
        **vars(dropout),
        logits=address(last and last.logits),
        classes=0 if last is None else last.logits.shape[1],
        weight=address(last and last.weight),
        operand=address(last and last.operand),
        operand_dtype=DTYPES[torch.float32 if last is None else last.operand.dtype],
        dweight=address(last and last.dweight),
        dweight_bias=address(last and last.dbias),
        **addresses({"step_counter": h.step_counter, "d": d, "h": h.src}),
        **addresses({"mean": moments.mean, "rstd": moments.rstd, "gamma": gamma}),
        **addresses({"dgamma": dgamma, "dbeta": dbeta, "dbias": dbias}),
        **size_of(d),
        frozen=frozen,
        copy=address(copy),
        stream=stream_of(d.device),
    )
