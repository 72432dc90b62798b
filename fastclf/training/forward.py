"""Forward passes without training: predictions over a loader, and the exact loss and metrics of a set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fastclf import rank_tensors, ranks
from fastclf.data import transfer
from fastclf.data.loader import Batch, Loader, RowLoader
from fastclf.data.sources.labels import Labels
from fastclf.data.transfer import Returning
from fastclf.errors import DivergedError
from fastclf.losses import NLL, is_ours
from fastclf.models.head import Head
from fastclf.models.net import Net, head_of
from fastclf.models.precision import autocast
from fastclf.ops import HeadSpec, predict
from fastclf.report import track
from fastclf.settings import own_settings
from fastclf.training.losses import constant_loss, gradient_scale, unweighted, wants_logits
from fastclf.training.metrics import evaluate_metric, mark_without_prediction

Crit = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """How a module's output becomes a loss, and a prediction.

    Losses that take logits (`wants_logits`) meet those of a head of ours; any other meets the module's output.
    """

    module: nn.Module
    crit: Crit

    @property
    def _head(self) -> Head | None:
        return head_of(self.module) if wants_logits(self.crit) else None

    @property
    def head_spec(self) -> HeadSpec | None:
        """The module as the native engine knows it, where it is a head alone."""
        head = self._head
        return None if head is None or head is not self.module else HeadSpec.from_layers(head.layers)

    @property
    def scores_logits(self) -> bool:
        """Whether `scores` are logits."""
        return self._head is not None

    def scores(self, x: Tensor) -> Tensor:
        """Compute the loss's input in float32: logits ``[B, c]`` where it takes them, else the module's output."""
        head = self._head
        with autocast(x.device):
            if head is None:
                out = self.module(x)
            else:
                out = head.logits(self.module.features(x) if isinstance(self.module, Net) else x)
        if not isinstance(out, Tensor):
            holds = f" with {', '.join(map(str, out))}" if isinstance(out, Mapping) else ""
            raise ValueError(
                f"model must give its predictions as one tensor, as crit takes them, got a {type(out).__name__}{holds} "
                f"for a batch {list(x.shape)}. Return that tensor alone from its forward."
            )
        return out.float() if out.is_floating_point() else out

    def loss(self, scores: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of `scores`."""
        scores = shaped_as(y, scores)
        if self._head is not None and is_ours(self.crit):
            return self.crit.from_logits(scores, y)
        return _one_number(self.crit, scores, y)

    def training_loss(self, scores: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Compute what is minimised, and the loss that is shown: see `gradient_scale`."""
        loss = self.loss(scores, y)
        return loss * gradient_scale(self.crit, y[0].numel()), loss

    def output(self, scores: Tensor) -> Tensor:
        """Return the prediction that belongs to `scores`: log-probabilities, probabilities or values."""
        return scores if self._head is None else self._head.final(scores)


def _one_number(crit: Crit, scores: Tensor, y: Tensor) -> Tensor:
    """Compute the loss by the user's function; where that fails, the error names it and its arguments."""
    name = getattr(crit, "__name__", type(crit).__name__)
    if isinstance(crit, type) or not callable(crit):
        made = f" Make one: {name}()." if isinstance(crit, type) else ""
        raise ValueError(f"crit must be a function of (predictions, targets), got {crit!r}.{made}")
    given = f"predictions {list(scores.shape)} and targets {list(y.shape)} {str(y.dtype).removeprefix('torch.')}"
    must = f"crit {name!r} must give one number for {given}"
    try:
        loss = crit(scores, y)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{must}, but fails: {error}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = list(loss.shape) if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"{must}, but gives {got}. Take its mean.")
    return loss


def check_final_layer(module: nn.Module, crit: Crit) -> None:
    """Raise ValueError where a loss that takes logits would meet probabilities, and squash them once more."""
    if not (isinstance(crit, NLL) or (wants_logits(crit) and not is_ours(crit))):
        return
    last = module.head if isinstance(module, Net) else module
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    if isinstance(last, nn.Sigmoid | nn.Softmax):
        name = getattr(crit, "__name__", type(crit).__name__)
        wanted = (
            "log-probabilities, so end it in nn.LogSoftmax(1)" if isinstance(crit, NLL) else "logits, so leave it out"
        )
        raise ValueError(
            f"crit: the model ends in nn.{type(last).__name__} and gives probabilities, but {name} takes {wanted}; "
            "or take a loss of probabilities, such as nn.BCELoss()."
        )


def shaped_as(y: Tensor, scores: Tensor) -> Tensor:
    """Return predictions ``[B]`` of one number as targets are, ``[B, 1]``: nothing may broadcast to ``[B, B]``."""
    return scores.reshape(y.shape) if y.is_floating_point() and scores.numel() == y.numel() else scores


@own_settings()
def scores_of(objective: Objective, loader: Loader, epoch: int = 0, what: str = "predict") -> tuple[Tensor, Tensor]:
    """Compute scores ``[N, c]`` of the rows of ``loader``, and return them with their targets, on the CPU.

    Rows are in data set order, and NaN where the loader serves none because the image is bad; their targets are
    marked, see `mark_without_prediction`. A loader that shuffles gives the rows that it serves, in its own order. In a
    regression, scores have the shape of the targets.
    """
    objective.module.eval()
    spec = objective.head_spec
    if spec is not None and isinstance(loader, RowLoader) and loader.ds.rows is not None and not loader.shuffle:
        return _at_their_places(predict(spec, loader.ds.rows, loader.order(epoch)), loader)
    found, y = (_all_scores if ranks.size() == 1 else _shared_scores)(objective, loader, epoch, what)
    found = shaped_as(y, found)
    return (found, y) if loader.shuffle else _at_their_places(found, loader)


def _all_scores(objective: Objective, loader: Loader, epoch: int, what: str) -> tuple[Tensor, Tensor]:
    parts = list(_each(objective, loader.batches(epoch), len(loader), what))
    scores, targets = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(targets)


def _shared_scores(objective: Objective, loader: Loader, epoch: int, what: str) -> tuple[Tensor, Tensor]:
    """Compute scores of a part of the rows, and return those of all, which the other processes compute."""
    loader.note_bad_together()
    chunks = loader.part(epoch)
    parts = list(_each(objective, loader.batches_of(epoch, chunks, least=1), len(chunks), what))
    loader.note_bad_together()
    mine = (torch.cat(part) for part in zip(*parts, strict=True)) if parts else (None, None)
    scores, targets = map(rank_tensors.all_rows, mine)
    assert scores is not None
    assert targets is not None
    return scores, targets


def _each(objective: Objective, batches: Iterator[Batch], total: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    started: deque[Returning] = deque()
    with torch.inference_mode():
        for x, y in track(batches, total, what, "batches"):
            started.append(Returning(objective.scores(x), y))
            if len(started) > transfer.in_flight(x.device):
                yield _arrived(started.popleft())
        yield from map(_arrived, started)


def _arrived(batch: Returning) -> tuple[Tensor, Tensor]:
    scores, y = batch.wait()
    return scores, y


def _at_their_places(scores: Tensor, loader: Loader) -> tuple[Tensor, Tensor]:
    """Return scores of the rows served, in data set order, NaN for the others; and targets that mark these."""
    # A copy, as whoever gets them may write into them, and these are the data's own.
    served, targets = torch.from_numpy(loader.served), loader.targets[: loader.n].clone()
    if len(served) == loader.n:
        return scores, targets
    places = scores.new_full((loader.n, *scores.shape[1:]), torch.nan)
    places[served] = scores
    bad = torch.ones(loader.n, dtype=torch.bool)
    bad[served] = False
    return places, mark_without_prediction(targets, bad)


def validate(objective: Objective, loader: Loader, metrics: Sequence[Callable[..., Any]]) -> list[float]:
    """``[loss, metric, ...]`` of the whole set that ``loader`` serves: each exact, none a mean of batch means.

    The loss is that without class weights, which can be compared with and without them.

    Raises:
        DivergedError: predictions are NaN, as those of weights so large that they overflow.
    """
    scores, targets = scores_of(objective, loader, what="validate")
    if len(loader.served) < loader.n:
        served = torch.from_numpy(loader.served)
        scores, targets = scores[served], targets[served]
    lost = int(scores.isnan().reshape(len(scores), -1).any(1).sum()) if len(scores) else 0
    if lost:
        raise DivergedError(f"predictions of {lost:,} of {len(scores):,} validation rows are NaN")
    loss = float(replace(objective, crit=unweighted(objective.crit)).loss(scores, targets).detach())
    output = objective.output(scores)
    return [loss, *(evaluate_metric(metric, output, targets) for metric in metrics)]


def loss_of_constant(crit: Crit, train: Labels, loader: Loader) -> float | None:
    """Return the loss of the best constant prediction on the rows of ``loader``; None for a loss of the user's own.

    Args:
        crit: the loss.
        train: the labels that the prediction is made from, see `constant_logits`.
        loader: serves the validation set.
    """
    if not is_ours(crit):
        return None
    return constant_loss(crit, train, loader.targets[torch.from_numpy(loader.served)])
