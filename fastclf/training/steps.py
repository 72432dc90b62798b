"""Training steps through autograd: any module, any loss, any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from fastclf import rank_tensors, ranks
from fastclf.arrays import RowNumbers
from fastclf.models.freezing import LayerGroups
from fastclf.models.net import Net, head_of
from fastclf.models.precision import compute_dtype
from fastclf.models.runtime.on_gpu import DepthwiseOutsideCudnn, has_depthwise
from fastclf.ops import rate
from fastclf.report import warn
from fastclf.schedules import Schedule
from fastclf.training.batch_norm import WholeBatchNorm
from fastclf.training.forward import Objective
from fastclf.training.optimizer import AVERAGE, MOMENTUM, SGDR

OptFn = Callable[..., Optimizer]
_MANY_SKIPPED = 10
_WORTH_COMPILING = 50_000  # images of a fit: about 10 s against some milliseconds in each step
_IN_A_ROW = 4  # steps on a GPU before their losses are read: it then runs dry, and until then their batches are held


@dataclass(frozen=True)
class Rates:
    """What every group is trained with; arrays hold one value per layer group, frozen ones included."""

    lrs: NDArray[np.float64]
    schedule: Schedule
    wds: NDArray[np.float64] | None = None
    decoupled: bool = False
    clip: float | None = None

    def describe(self) -> dict[str, Any]:
        """Return the rates as plain numbers, texts and lists."""
        return {
            "lrs": self.lrs.tolist(),
            "wds": None if self.wds is None else self.wds.tolist(),
            "schedule": self.schedule.describe(),
            "use_wd_sched": self.decoupled,
            "clip": self.clip,
        }


class AutogradSteps:
    """Forward, backward and update, one batch at a time.

    Of processes that train together, each runs the network on its slice of every batch. The loss is that of the whole
    batch in all of them, whatever the loss function; so their gradients add up to those of the whole batch.

    A step whose gradients overflow in fp16 is left out: it changes nothing, and the schedule does not advance.

    Attributes:
        chunk: how many batches the loop asks for at once when nothing needs to happen between them.
        step: steps done, as the schedule counts them.
        precision: what the forward pass computes in.
    """

    chunk = 1

    def __init__(self, objective: Objective, groups: LayerGroups, loader: Any, opt_fn: OptFn, rates: Rates) -> None:
        self.objective, self.loader, self.rates = objective, loader, rates
        self._parameters = [p for _, parameters in groups.trainable() for p in parameters]
        self.optimizer = _make_optimizer(opt_fn, groups, rates)
        device = self._parameters[0].device
        dtype = compute_dtype(device)
        self.precision = str(dtype).removeprefix("torch.")
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
        if device.type == "cuda" and not self._scaler.is_enabled():  # a scaler waits after each step anyway
            self.chunk = _IN_A_ROW
        self._epoch: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._batches: Iterator[tuple[Tensor, Tensor, list[int] | None]] = iter(())
        self._head = head_of(objective.module)
        on_gpu, net = device.type == "cuda", objective.module
        self._depthwise = on_gpu and isinstance(net, Net) and has_depthwise(net)
        self.step = self._skipped = 0

    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Begin epoch ``epoch`` of the loader's order, after its first ``done`` batches."""
        if ranks.size() == 1:
            self._epoch = self.loader.batches(epoch)
            self._batches = ((x, y, None) for x, y in islice(self._epoch, done, None))
            return
        self.loader.note_bad_together()
        # Batches that are over are not read; where images of theirs are bad, that is known by now.
        chunks, slices = self.loader.chunks(epoch)[done:], self.loader.slices(epoch)[done:]
        self._epoch = self.loader.batches_of(epoch, slices, least=0)
        self._batches = self._shared(self._epoch, chunks)

    def _shared(
        self, slices: Iterator[tuple[Tensor, Tensor]], chunks: Sequence[RowNumbers]
    ) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Yield this process's slice of each batch, and how many rows of it each process has."""
        for (x, y), rows in zip(slices, chunks, strict=True):
            counts = rank_tensors.counts(len(y))
            if sum(counts) < len(rows):
                self.loader.note_bad_together()
            if sum(counts) > self.loader.drop_single:
                yield x, y, counts

    def end_epoch(self) -> None:
        """Give back what the loader uses for an epoch, at once also when the epoch was left early."""
        close = getattr(self._epoch, "close", None)
        if close is not None:
            close()

    def run(self, n: int) -> list[float]:
        """Train on the epoch's next ``n`` batches, or those that there still are, and return their losses."""
        losses = [self._one(*batch) for batch in islice(self._batches, n)]
        return [float(loss) for loss in losses]

    def _one(self, x: Tensor, y: Tensor, counts: Sequence[int] | None) -> Tensor:
        """Make a step and return its loss, which a GPU may still be computing."""
        if not isinstance(self.optimizer, SGDR):
            _set_rates(self.optimizer, self.rates, self.step)
        if self._head is not None:
            self._head.counter.step = self.step
        with self._convolutions():
            scores, y = self._scores(x, y, counts)
            minimised, loss = self.objective.training_loss(scores, y)
            self._scaler.scale(minimised).backward()  # type: ignore[no-untyped-call]
        if counts is not None:
            rank_tensors.add_up([p.grad for p in self._parameters if p.grad is not None])
        if self.rates.clip is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self.rates.clip)
        self._update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _convolutions(self) -> AbstractContextManager[object]:
        """Keep cuDNN from compiling depthwise convolutions for seconds before it is worth them."""
        early = self._depthwise and self.step * self.loader.bs < _WORTH_COMPILING
        return DepthwiseOutsideCudnn() if early else nullcontext()

    def _scores(self, x: Tensor, y: Tensor, counts: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """Compute the scores of a batch, and return them with its targets; in several processes those of all rows."""
        if counts is None:
            return self.objective.scores(x), y
        if self._head is not None:
            self._head.counter.first = sum(counts[: ranks.rank()])
        try:
            with WholeBatchNorm():
                scores = self.objective.scores(x)
        finally:
            if self._head is not None:
                self._head.counter.first = 0
        return rank_tensors.rows(scores, counts), rank_tensors.rows(y, counts)

    def _update(self) -> None:
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        if self._scaler.get_scale() >= scale:
            self.step, self._skipped = self.step + 1, 0
            return
        self._skipped += 1
        if self._skipped == _MANY_SKIPPED:
            warn(
                f"fit: the gradients of {_MANY_SKIPPED} steps in a row overflowed in fp16 and were left out; the scale "
                f"of the loss is down to {self._scaler.get_scale():g}. Train with a lower rate."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return momenta and counters, for a fit that goes on later."""
        return {"step": self.step, "optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self.step = state["step"]
        optimizer = state["optimizer"]
        momenta, groups = {int(key): value for key, value in optimizer["state"].items()}, optimizer["param_groups"]
        if isinstance(self.optimizer, SGDR):
            groups = self.optimizer.state_dict()["param_groups"]  # all that changes in them is the number of steps
            for group in groups:
                group["steps"] = self.step
            self._check_state(momenta)
        self.optimizer.load_state_dict({"state": momenta, "param_groups": groups})
        self._scaler.load_state_dict(state["scaler"])

    def _check_state(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Native code takes the shapes of momenta and averages for granted."""
        parameters = [(p, group["ema"]) for group in self.optimizer.param_groups for p in group["params"]]
        for number, state in states.items():
            parameter, ema = parameters[number]
            names = {MOMENTUM, AVERAGE} if ema else {MOMENTUM}
            if state.keys() != names or any(kept.shape != parameter.shape for kept in state.values()):
                raise ValueError(f"what the optimizer keeps of parameter {number} is not shaped as the parameter")


def _make_optimizer(opt_fn: OptFn, groups: LayerGroups, rates: Rates) -> Optimizer:
    param_groups: list[dict[str, Any]] = []
    for index, parameters in groups.trainable():
        lr = float(rates.lrs[index])
        group = {"params": parameters, "lr": lr, "top_lr": lr}
        if rates.wds is not None:
            group["weight_decay"] = float(rates.wds[index])
        param_groups.append(group)
    if not param_groups:
        raise ValueError("fit: no group has trainable parameters; call unfreeze() or freeze_to(n) first")
    optimizer = _called(opt_fn, param_groups, float(rates.lrs[-1]))
    if rates.wds is not None and rates.wds.any() and "weight_decay" not in optimizer.defaults:
        raise ValueError(f"wds: {type(optimizer).__name__} has no weight decay; leave wds out or change opt_fn")
    for group in optimizer.param_groups:
        if isinstance(optimizer, SGDR):
            group |= {"schedule": rates.schedule, "decoupled": rates.decoupled}
        elif rates.decoupled:
            group |= {"weight_decay": 0.0, "decoupled_wd": group.get("weight_decay", 0.0)}
    if rates.decoupled and not isinstance(optimizer, SGDR):
        optimizer.register_step_pre_hook(_decay)
    return optimizer


def _called(opt_fn: OptFn, param_groups: list[dict[str, Any]], lr: float) -> Optimizer:
    try:
        optimizer = opt_fn(param_groups, lr=lr)
    except TypeError as error:
        raise ValueError(
            f"opt_fn must take (param_groups, lr=...), such as torch.optim.Adam, got {opt_fn!r}, which fails: {error}"
        ) from error
    if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "opt_fn must make an optimizer that takes one gradient per step, such as torch.optim.Adam, "
            f"got {type(optimizer).__name__}"
        )
    return optimizer


def _set_rates(optimizer: Optimizer, rates: Rates, step: int) -> None:
    """Set every group's rate, and momentum where the schedule has one, for batch ``step``."""
    factor, momentum = rate(rates.schedule, step)
    for group in optimizer.param_groups:
        group["lr"] = group["top_lr"] * factor
        if momentum is None:
            continue
        if "momentum" in group:
            group["momentum"] = momentum
        elif "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            raise ValueError(f"fit: {type(optimizer).__name__} has no momentum that a schedule could set")


@torch.no_grad()
def _decay(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        if group["decoupled_wd"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decoupled_wd"])
