"""Forward passes without training: predictions over a loader, and the exact loss and metrics of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.data.loader import Loader, RowLoader
from fastclf.models.head import Head
from fastclf.models.net import Net, head_of
from fastclf.models.precision import autocast
from fastclf.ops import HeadSpec, predict
from fastclf.progress import track
from fastclf.training.losses import LogitLoss
from fastclf.training.metrics import evaluate_metric

Crit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """How a module's output becomes a loss, and a prediction.

    The losses of `fastclf.training.losses` meet the head's logits, which is stable; any other meets its output.
    """

    module: nn.Module
    crit: Crit

    @property
    def _head(self) -> Head | None:
        return head_of(self.module) if isinstance(self.crit, LogitLoss) else None

    @property
    def head_spec(self) -> HeadSpec | None:
        """The module as the native engine knows it, where it is a head alone."""
        head = self._head
        return None if head is None or head is not self.module else HeadSpec.from_layers(head.layers)

    def scores(self, x: Tensor) -> Tensor:
        """What the loss is taken of: logits ``[B, c]`` where it can be, else the module's output; float32."""
        head = self._head
        with autocast(x.device):
            if head is None:
                out = self.module(x)
            else:
                out = head.logits(self.module.features(x) if isinstance(self.module, Net) else x)
        return out.float() if isinstance(out, Tensor) and out.is_floating_point() else out

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """The loss of `scores`."""
        if self._head is not None and isinstance(self.crit, LogitLoss):
            return self.crit.from_logits(scores, y)
        return self.crit(scores, y)

    def output(self, scores: Tensor) -> Tensor:
        """The prediction that belongs to `scores`: log-probabilities, probabilities or values."""
        return scores if self._head is None else self._head.final(scores)


def scores_of(objective: Objective, loader: Loader, epoch: int = 0, what: str = "predict") -> tuple[Tensor, Tensor]:
    """Scores and targets of every row of ``loader``, on the CPU, in the loader's order; the module in eval mode."""
    objective.module.eval()
    spec = objective.head_spec
    if spec is not None and isinstance(loader, RowLoader) and loader.ds.rows is not None and not loader.shuffle:
        return predict(spec, loader.ds.rows), loader.targets
    scores, targets = [], []
    with torch.inference_mode():
        for x, y in track(loader.batches(epoch), len(loader), what, "batches"):
            scores.append(objective.scores(x).cpu())
            targets.append(y.cpu())
    return torch.cat(scores), torch.cat(targets)


def validate(objective: Objective, loader: Loader, metrics: Sequence[Callable[..., Any]]) -> list[float]:
    """``[loss, metric, ...]`` of the whole set that ``loader`` serves: each exact, none a mean of batch means."""
    scores, targets = scores_of(objective, loader, what="validate")
    loss = float(objective.loss(scores, targets).detach())
    output = objective.output(scores)
    return [loss, *(evaluate_metric(metric, output, targets) for metric in metrics)]
