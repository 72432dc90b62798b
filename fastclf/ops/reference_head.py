"""The head engine's plain twin: the same steps through torch autograd, in any floating dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclf.ops.head_spec import HeadLoss, HeadRates, HeadSpec
from fastclf.ops.reference import dropout_mask


class ReferenceHead:
    """Trains a head step by step; the tensors of `spec` are updated in place."""

    def __init__(
        self, spec: HeadSpec, rows: Tensor, targets: Tensor, loss: HeadLoss, rates: HeadRates, seed: int
    ) -> None:
        self.spec, self.rows, self.targets = spec, rows, targets
        self.loss, self.rates, self.seed = loss, rates, seed
        self.velocity = [torch.zeros_like(p) for p in spec.parameters()]

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Returns the loss of every batch; see `HeadEngine.train`."""
        firsts = range(0, len(order), batch_size)
        losses = [self._step(order[f : f + batch_size], first_step + i, frozen_bn) for i, f in enumerate(firsts)]
        return torch.stack(losses) if losses else torch.empty(0)

    def momenta(self) -> list[Tensor]:
        """A copy of the momentum of every parameter."""
        return [v.clone() for v in self.velocity]

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Replaces the momenta."""
        for v, given in zip(self.velocity, momenta, strict=True):
            v.copy_(given)

    def _step(self, index: Tensor, step: int, frozen_bn: bool) -> Tensor:
        parameters = self.spec.parameters()
        with torch.enable_grad():
            logits = self.logits(self.rows[index], step, frozen_bn)
            loss = head_loss(self.loss, logits, self.targets[index])
            gradients = list(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            if self.rates.clip is not None:
                norm = torch.stack([g.norm() for g in gradients]).norm()
                gradients = [g * (self.rates.clip / (norm + 1e-6)).clamp(max=1) for g in gradients]
            self._update(parameters, gradients, step)
        return loss.detach()

    def _update(self, parameters: list[Tensor], gradients: list[Tensor], step: int) -> None:
        rates = self.rates
        rate, own = rates.lr * rates.schedule.factor(step), rates.schedule.momentum(step)
        for p, g, v in zip(parameters, gradients, self.velocity, strict=True):
            if rates.decoupled:
                p.mul_(1 - rate * rates.weight_decay)
            elif rates.weight_decay:
                g = g + rates.weight_decay * p
            v.mul_(rates.momentum if own is None else own).add_(g)
            p.sub_(v, alpha=rate)

    def logits(self, x: Tensor, step: int, frozen_bn: bool) -> Tensor:
        """Logits `[B, C]` of rows `x [B, F]` in training step `step`."""
        for number, block in enumerate(self.spec.blocks):
            weight, bias, gamma, beta, mean, var = block.tensors()
            x = x.to(weight.dtype) if number == 0 else F.relu(x)
            momentum = block.bn.momentum or 0.0
            x = F.batch_norm(x, mean, var, gamma, beta, training=not frozen_bn, momentum=momentum, eps=block.bn.eps)
            if block.p > 0:
                x = x * dropout_mask(self.seed, step, number, x.shape[0], x.shape[1], block.p).to(x.dtype)
            x = F.linear(x, weight, bias)
        return x


def head_loss(loss: HeadLoss, logits: Tensor, y: Tensor) -> Tensor:
    """The loss of logits `[B, C]` and targets (`[B] int64` or `[B, C] float32`)."""
    weight = None if loss.weight is None else loss.weight.to(logits.dtype)
    s = loss.label_smoothing
    if loss.kind == "nll":
        return F.cross_entropy(logits, y, weight=weight, label_smoothing=s)
    return F.binary_cross_entropy_with_logits(logits, y.to(logits.dtype) * (1 - s) + s / 2, weight=weight)


def predict(spec: HeadSpec, rows: Tensor, index: Tensor) -> Tensor:
    """Logits `[M, C]` of rows `index`, with the running statistics and without dropout."""
    x = rows[index]
    with torch.no_grad():
        for number, block in enumerate(spec.blocks):
            weight, bias, gamma, beta, mean, var = block.tensors()
            x = x.to(weight.dtype) if number == 0 else F.relu(x)
            x = F.linear(F.batch_norm(x, mean, var, gamma, beta, eps=block.bn.eps), weight, bias)
    return x
