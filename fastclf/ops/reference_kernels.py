"""Plain twins of the GPU's kernels, in any floating dtype: what each must compute. `kernels` says what they are for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclf.ops.head_spec import HeadLoss
from fastclf.ops.kernel_arguments import Dropout, Moments, RowBatch
from fastclf.ops.reference import dropout_mask


def _set_moments(x: Tensor, m: Moments) -> None:
    var, mean = torch.var_mean(x, 0, correction=0)
    m.mean.copy_(mean)
    m.rstd.copy_((var + m.eps).rsqrt())
    m.running_mean.lerp_(mean, m.momentum)
    m.running_var.lerp_(var * (len(x) / (len(x) - 1)), m.momentum)


def batch_moments(x: RowBatch, m: Moments) -> None:
    """Statistics of the batch."""
    _set_moments(x.gathered().to(m.mean.dtype), m)


def relu_moments(z: Tensor, bias: Tensor, m: Moments) -> None:
    """`z = max(z + bias, 0)`, and its statistics."""
    z.add_(bias).relu_()
    _set_moments(z, m)


def _mask(x: RowBatch, dropout: Dropout, like: Tensor) -> Tensor:
    mask = dropout_mask(dropout.seed, x.step(), dropout.layer, x.rows, x.src.shape[1], dropout.p)
    return mask.to(like.device, like.dtype)


def normalise(
    x: RowBatch, mean: Tensor, rstd: Tensor, gamma: Tensor, beta: Tensor, dropout: Dropout, out: Tensor
) -> None:
    """`out = mask * (gamma * (x - mean) * rstd + beta)`."""
    y = gamma * ((x.gathered().to(mean.dtype) - mean) * rstd) + beta
    out.copy_(y * _mask(x, dropout, y))


def loss_gradient(
    loss: HeadLoss, z: Tensor, bias: Tensor, y: Tensor, batch: RowBatch, losses: Tensor, copy: Tensor | None
) -> None:
    """The gradient of the loss with respect to `z + bias` into `z`, the loss into `losses[batch]`."""
    with torch.enable_grad():
        logits = (z + bias).requires_grad_()
        weight = None if loss.weight is None else loss.weight.to(z.device, z.dtype)
        s, wanted = loss.label_smoothing, y[batch.index()]
        if loss.kind == "nll":
            value = F.cross_entropy(logits, wanted, weight=weight, label_smoothing=s)
        else:
            wanted = wanted.to(z.dtype) * (1 - s) + s / 2
            value = F.binary_cross_entropy_with_logits(logits, wanted, weight=weight)
        (gradient,) = torch.autograd.grad(value, logits)
    z.copy_(gradient)
    losses[batch.number()] = value.detach()
    if copy is not None:
        copy.copy_(gradient)


def column_sums(x: Tensor, out: Tensor) -> None:
    """`out = x.sum(0)`."""
    out.copy_(x.sum(0))


def affine_gradient(
    g: Tensor,
    x: RowBatch,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    dgamma: Tensor,
    dbeta: Tensor,
    *,
    write: bool,
) -> None:
    """Back through dropout, and the gradients of gamma and beta."""
    masked = g * _mask(x, dropout, g)
    dgamma.copy_((masked * ((x.gathered().to(g.dtype) - mean) * rstd)).sum(0))
    dbeta.copy_(masked.sum(0))
    if write:
        g.copy_(masked)


def input_gradient(
    g: Tensor,
    h: Tensor,
    mean: Tensor,
    rstd: Tensor,
    gamma: Tensor,
    dgamma: Tensor,
    dbeta: Tensor,
    dbias: Tensor,
    copy: Tensor | None,
    *,
    frozen: bool,
) -> None:
    """Back through BatchNorm and the ReLU that made h; dbias: the sums of the columns."""
    share = 0.0 if frozen else 1 / len(g)
    d = gamma * rstd * (g - share * dbeta - (h - mean) * rstd * (share * dgamma)) * (h > 0)
    g.copy_(d)
    dbias.copy_(d.sum(0))
    if copy is not None:
        copy.copy_(d)


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
    """BatchNorm with its running statistics folded into the linear layer after it."""
    factor = gamma * (var + eps).rsqrt()
    out_weight.copy_(weight * factor)
    out_bias.copy_(bias + weight @ (beta - factor * mean))


def add_bias(z: Tensor, bias: Tensor, *, relu: bool) -> None:
    """`z = z + bias`, or `max(z + bias, 0)`."""
    z.add_(bias)
    if relu:
        z.relu_()
