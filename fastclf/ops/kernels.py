"""The GPU's kernels, one function per operation: checks its arguments and says who runs it.

A training step of a head is a few of these around matrix products (`fastclf.ops.kernel_head`). They write into tensors
that the caller has allocated, all on one device, and never wait for it. Under the reference backend, and for tensors on
the CPU, the plain twins of `reference_kernels` run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastclf.ops import reference_kernels
from fastclf.ops.backend import kernel_module
from fastclf.ops.head_spec import HeadLoss
from fastclf.ops.kernel_arguments import Dropout, Moments, RowBatch, Scratch
from fastclf.ops.kernel_checks import (
    DTYPES,
    FLOAT,
    OPERAND,
    address,
    addresses,
    check,
    check_batch,
    check_copy,
    check_matrix,
    check_moments,
    moments_of,
    rows_of,
    size_of,
    stream_of,
)


def gather_rows(src: Tensor, index: Tensor, out: Tensor) -> Tensor:
    """Gathers rows and widens them: `out[b] = src[index[b]]`.

    Args:
        src: `[N, F] float16 | bfloat16 | float32`.
        index: `[B] int64`, each in 0..N-1; not checked, for that would wait for the device.
        out: `[B, F] float32`.
    """
    check("gather_rows", src.device, "src", src, src.shape, tuple(DTYPES))
    check("gather_rows", src.device, "index", index, (len(index),), (torch.int64,))
    check("gather_rows", src.device, "out", out, (len(index), src.shape[1]))
    module = kernel_module(src.device)
    if module is None:
        out.copy_(src[index])
    else:
        module.gather_rows(
            src=src.data_ptr(),
            dtype=DTYPES[src.dtype],
            index=index.data_ptr(),
            out=out.data_ptr(),
            rows=len(index),
            width=src.shape[1],
            stream=stream_of(src.device),
        )
    return out


def batch_moments(x: RowBatch, moments: Moments, scratch: Scratch) -> None:
    """Computes BatchNorm's statistics of a batch, gathering its rows as it reads them.

    Args:
        x: B >= 2 rows of F columns.
        moments: is written.
        scratch: for at least `[B, F]`.
    """
    module = check_batch("batch_moments", x, scratch)
    check_moments("batch_moments", x.src.device, moments, x.src.shape[1])
    if module is None:
        reference_kernels.batch_moments(x, moments)
    else:
        module.batch_moments(**rows_of(x), **moments_of(moments, scratch), stream=stream_of(x.src.device))


def relu_moments(z: Tensor, bias: Tensor, moments: Moments, scratch: Scratch) -> None:
    """Turns a product into a hidden layer, `z = max(z + bias, 0)`, and computes BatchNorm's statistics of it.

    Args:
        z: `[B, F] float32`, in place.
        bias: `[F] float32`.
        moments: is written.
        scratch: for at least `[B, F]`.
    """
    module = check_matrix("relu_moments", "z", z, scratch)
    check("relu_moments", z.device, "bias", bias, z.shape[1:])
    check_moments("relu_moments", z.device, moments, z.shape[1])
    if module is None:
        reference_kernels.relu_moments(z, bias, moments)
    else:
        module.relu_moments(
            z=z.data_ptr(),
            bias=bias.data_ptr(),
            **size_of(z),
            **moments_of(moments, scratch),
            stream=stream_of(z.device),
        )


def normalise(
    x: RowBatch, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, dropout: Dropout, out: Tensor
) -> None:
    """Applies BatchNorm and dropout: `out = mask * (gamma * (x - mean) * rstd + beta)`.

    Args:
        x: B rows of F columns.
        mean: `[F] float32`, and so are `rstd`, `gamma` and `beta`.
        rstd: see mean.
        gamma: see mean.
        beta: see mean.
        dropout: the mask is `fastclf.ops.dropout_mask` of these and the clock's step.
        out: `[B, F] float32 | bfloat16`, the left operand of a product.
    """
    module = check_batch("normalise", x)
    columns = {"mean": mean, "rstd": rstd, "gamma": gamma, "beta": beta}
    for name, tensor in columns.items():
        check("normalise", x.src.device, name, tensor, x.src.shape[1:])
    check("normalise", x.src.device, "out", out, (x.rows, x.src.shape[1]), OPERAND)
    if module is None:
        reference_kernels.normalise(x, mean, rstd, gamma, beta, dropout, out)
    else:
        module.normalise(
            **rows_of(x),
            **vars(dropout),
            **addresses(columns),
            out=out.data_ptr(),
            out_dtype=DTYPES[out.dtype],
            stream=stream_of(out.device),
        )


def loss_gradient(
    loss: HeadLoss,
    z: Tensor,
    bias: Tensor,
    targets: Tensor,
    batch: RowBatch,
    losses: Tensor,
    scratch: Scratch,
    copy: Tensor | None = None,
) -> None:
    """Computes the loss of a batch of logits `z + bias` and, in place of z, its gradient.

    Args:
        loss: its kind, weights (on the device) and smoothing.
        z: `[B, C] float32`.
        bias: `[C] float32`.
        targets: `[N] int64` classes in 0..C-1 ("nll") or `[N, C] float32` ("bce").
        batch: which of the targets; must have an order.
        losses: `[M] float32`; the loss is written at the batch's number.
        scratch: for at least `[B, C]`.
        copy: `[B, C] bfloat16`, another copy of the gradient.
    """
    module = check_matrix("loss_gradient", "z", z, scratch)
    nll, classes = loss.kind == "nll", z.shape[1]
    check("loss_gradient", z.device, "bias", bias, (classes,))
    shape = (len(targets),) if nll else (len(targets), classes)
    check("loss_gradient", z.device, "targets", targets, shape, (torch.int64,) if nll else FLOAT)
    check("loss_gradient", z.device, "losses", losses, losses.shape)
    check_copy("loss_gradient", copy, z)
    if loss.weight is not None:
        check("loss_gradient", z.device, "loss.weight", loss.weight, (classes,))
    if module is None:
        reference_kernels.loss_gradient(loss, z, bias, targets, batch, losses, copy)
        return
    assert batch.order is not None
    module.loss_gradient(
        loss=0 if nll else 1,
        **addresses({"z": z, "bias": bias, "targets": targets, "order": batch.order, "clock": batch.clock}),
        stride=batch.stride,
        rows=len(z),
        classes=classes,
        weight=address(loss.weight),
        weight_sum=float(classes) if loss.weight is None else loss.weight_sum,
        smoothing=loss.label_smoothing,
        **addresses({"row_loss": scratch.row_loss, "losses": losses, "ticket": scratch.ticket}),
        copy=address(copy),
        stream=stream_of(z.device),
    )


def column_sums(x: Tensor, out: Tensor, scratch: Scratch) -> None:
    """Adds up the rows of `x [B, F] float32` into `out [F] float32`."""
    module = check_matrix("column_sums", "x", x, scratch)
    check("column_sums", x.device, "out", out, x.shape[1:])
    if module is None:
        reference_kernels.column_sums(x, out)
    else:
        module.column_sums(
            x=x.data_ptr(), **size_of(x), out=out.data_ptr(), **scratch.addresses(), stream=stream_of(x.device)
        )


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
    """Takes the gradient of what `normalise` made back through dropout, and sums the gradients of gamma and beta.

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
    module = check_batch("affine_gradient", x, scratch)
    check("affine_gradient", x.src.device, "g", g, (x.rows, x.src.shape[1]))
    columns = {"mean": mean, "rstd": rstd, "dgamma": dgamma, "dbeta": dbeta}
    for name, tensor in columns.items():
        check("affine_gradient", x.src.device, name, tensor, x.src.shape[1:])
    if module is None:
        reference_kernels.affine_gradient(g, x, mean, rstd, dropout, dgamma, dbeta, write=write)
    else:
        module.affine_gradient(
            **rows_of(x),
            **vars(dropout),
            g=g.data_ptr(),
            write=write,
            **addresses(columns),
            **scratch.addresses(),
            stream=stream_of(g.device),
        )


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
    """Takes the gradient of BatchNorm's output back through it and through the ReLU before.

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
    module = check_matrix("input_gradient", "g", g, scratch)
    check("input_gradient", g.device, "h", h, g.shape)
    columns = {"mean": mean, "rstd": rstd, "gamma": gamma, "dgamma": dgamma, "dbeta": dbeta, "dbias": dbias}
    for name, tensor in columns.items():
        check("input_gradient", g.device, name, tensor, g.shape[1:])
    check_copy("input_gradient", copy, g)
    if module is None:
        reference_kernels.input_gradient(g, h, mean, rstd, gamma, dgamma, dbeta, dbias, copy, frozen=frozen)
    else:
        module.input_gradient(
            **addresses({"g": g, "h": h}),
            **size_of(g),
            **addresses(columns),
            frozen=frozen,
            copy=address(copy),
            **scratch.addresses(),
            stream=stream_of(g.device),
        )


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
    """Folds BatchNorm with its running statistics into the linear layer after it.

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
    n_out, n_in = weight.shape
    columns = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    for name, tensor in columns.items():
        check("fold", weight.device, name, tensor, (n_in,))
    matrices = {"weight": weight, "out_weight": out_weight, "bias": bias, "out_bias": out_bias}
    for name, tensor in matrices.items():
        check("fold", weight.device, name, tensor, (n_out,) if name.endswith("bias") else (n_out, n_in))
    module = kernel_module(weight.device)
    if module is None:
        reference_kernels.fold(weight, bias, gamma, beta, mean, var, eps, out_weight, out_bias)
    else:
        module.fold(**addresses(columns | matrices), eps=eps, n_out=n_out, n_in=n_in, stream=stream_of(weight.device))


def add_bias(z: Tensor, bias: Tensor, *, relu: bool) -> None:
    """Adds `bias [F] float32` to `z [B, F] float32` in place; with `relu`, `z = max(z + bias, 0)`."""
    check("add_bias", z.device, "z", z, z.shape)
    check("add_bias", z.device, "bias", bias, z.shape[1:])
    module = kernel_module(z.device)
    if module is None:
        reference_kernels.add_bias(z, bias, relu=relu)
    else:
        module.add_bias(**addresses({"z": z, "bias": bias}), **size_of(z), relu=relu, stream=stream_of(z.device))
