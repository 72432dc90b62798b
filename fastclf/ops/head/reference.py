"""The head engine's reference implementation: the same steps through torch autograd, in any floating dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastclf.ops.arguments import RowSource
from fastclf.ops.dropout import dropout_mask
from fastclf.ops.head.spec import HeadSpec, HeadTraining, WithVelocity
from fastclf.ops.sgd import update_tensor


class ReferenceHead(WithVelocity):
    """Trains a head step by step; the tensors of `spec` are updated in place."""

    def __init__(self, training: HeadTraining) -> None:
        self.training, self.spec = training, training.spec
        self.velocity = [torch.zeros_like(p) for p in self.spec.parameters()]

    def train(self, order: Tensor, batch_size: int, first_step: int, *, frozen_bn: bool) -> Tensor:
        """Return the loss of every batch; see `HeadEngine.train`."""
        firsts = range(0, len(order), batch_size)
        losses = [self._step(order[f : f + batch_size], first_step + i, frozen_bn) for i, f in enumerate(firsts)]
        return torch.stack(losses) if losses else torch.empty(0, dtype=torch.float32)

    def _step(self, index: Tensor, step: int, frozen_bn: bool) -> Tensor:
        parameters, rates, rows = self.spec.parameters(), self.training.rates, self.training.rows
        with torch.enable_grad():
            logits = self.logits(rows.matrix[rows.places(index)], step, frozen_bn)
            loss = self.training.loss.from_logits(logits, self.training.targets[index])
            gradients = list(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            if rates.clip is not None:
                norm = torch.stack([g.norm() for g in gradients]).norm()
                gradients = [g * (rates.clip / (norm + 1e-6)).clamp(max=1) for g in gradients]
            for p, g, v in zip(parameters, gradients, self.velocity, strict=True):
                update_tensor(p, g, v, None, rates.group, step)
        return loss.detach()

    def logits(self, x: Tensor, step: int, frozen_bn: bool) -> Tensor:
        """Return logits `[B, C]` of rows `x [B, F]` in training step `step`."""
        for number, block in enumerate(self.spec.blocks):
            weight, bias, gamma, beta, mean, var = block.tensors()
            x = x.to(weight.dtype) if number == 0 else F.relu(x)
            momentum = block.bn.momentum or 0.0
            x = F.batch_norm(x, mean, var, gamma, beta, training=not frozen_bn, momentum=momentum, eps=block.bn.eps)
            if block.p > 0:
                x = x * dropout_mask(self.training.seed, step, number, x.shape[0], x.shape[1], block.p).to(x.dtype)
            x = F.linear(x, weight, bias)
        return x


def predict(spec: HeadSpec, rows: RowSource, index: Tensor) -> Tensor:
    """Return logits `[M, C]` of rows `index`, with the running statistics and without dropout."""
    x = rows.matrix[rows.places(index)]
    with torch.no_grad():
        for number, block in enumerate(spec.blocks):
            weight, bias, gamma, beta, mean, var = block.tensors()
            x = x.to(weight.dtype) if number == 0 else F.relu(x)
            x = F.linear(F.batch_norm(x, mean, var, gamma, beta, eps=block.bn.eps), weight, bias)
    return x
