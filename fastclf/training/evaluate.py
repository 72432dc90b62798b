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
    """Scores ``[N, c]`` and targets of the rows of ``loader``, on the CPU; the module in eval mode.

    Rows are in data set order, and NaN where the loader serves none because the picture is bad. A loader that shuffles
    gives the rows that it serves, in its own order.
    """
    objective.module.eval()
    spec = objective.head_spec
    if spec is not None and isinstance(loader, RowLoader) and loader.ds.rows is not None and not loader.shuffle:
        return _at_their_places(predict(spec, loader.ds.rows, loader.order(epoch)), loader)
    scores, targets = [], []
    with torch.inference_mode():
        for x, y in track(loader.batches(epoch), len(loader), what, "batches"):
            scores.append(objective.scores(x).cpu())
            targets.append(y.cpu())
    return (torch.cat(scores), torch.cat(targets)) if loader.shuffle else _at_their_places(torch.cat(scores), loader)


def _at_their_places(scores: Tensor, loader: Loader) -> tuple[Tensor, Tensor]:
    """Scores of the rows served, in data set order, with NaN in between; and the targets of all rows."""
    served, targets = torch.from_numpy(loader.served), loader.targets[: loader.n]
    if len(served) == loader.n:
        return scores, targets
    places = scores.new_full((loader.n, *scores.shape[1:]), torch.nan)
    places[served] = scores
    return places, targets


def validate(objective: Objective, loader: Loader, metrics: Sequence[Callable[..., Any]]) -> list[float]:
    """``[loss, metric, ...]`` of the whole set that ``loader`` serves: each exact, none a mean of batch means."""
    scores, targets = scores_of(objective, loader, what="validate")
    if len(loader.served) < loader.n:
        served = torch.from_numpy(loader.served)
        scores, targets = scores[served], targets[served]
    loss = float(objective.loss(scores, targets).detach())
    output = objective.output(scores)
    return [loss, *(evaluate_metric(metric, output, targets) for metric in metrics)]
