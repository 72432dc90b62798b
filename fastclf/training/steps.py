"""Training steps through autograd: any module, any loss, any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from fastclf.models.freezing import LayerGroups
from fastclf.models.net import head_of
from fastclf.models.precision import compute_dtype
from fastclf.training.evaluate import Objective
from fastclf.training.optimizer import SGDR
from fastclf.training.schedule import Schedule

OptFn = Callable[..., Optimizer]


@dataclass(frozen=True)
class Rates:
    """What every group is trained with; arrays hold one value per layer group, frozen ones included."""

    lrs: NDArray[np.float64]
    schedule: Schedule
    wds: NDArray[np.float64] | None = None
    decoupled: bool = False
    clip: float | None = None


class AutogradSteps:
    """Forward, backward and update, one batch at a time.

    Attributes:
        chunk: how many batches the loop asks for at once when nothing needs to happen between them.
    """

    chunk = 1

    def __init__(self, objective: Objective, groups: LayerGroups, loader: Any, opt_fn: OptFn, rates: Rates) -> None:
        self.objective, self.loader, self.rates = objective, loader, rates
        self._parameters = [p for _, parameters in groups.trainable() for p in parameters]
        self.optimizer = _make_optimizer(opt_fn, groups, rates)
        device = self._parameters[0].device
        self._scaler = torch.amp.GradScaler(device.type, enabled=compute_dtype(device) is torch.float16)
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._head = head_of(objective.module)
        self._step = 0

    def start_epoch(self, epoch: int) -> None:
        """Begins epoch ``epoch`` of the loader's order."""
        self._batches = self.loader.batches(epoch)

    def run(self, n: int) -> list[float]:
        """Trains on the epoch's next ``n`` batches and returns their losses."""
        return [self._one(*next(self._batches)) for _ in range(n)]

    def _one(self, x: Tensor, y: Tensor) -> float:
        if not isinstance(self.optimizer, SGDR):
            _set_rates(self.optimizer, self.rates, self._step)
        if self._head is not None:
            self._head.clock.step = self._step
        loss = self.objective.loss(self.objective.scores(x), y)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.rates.clip is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self.rates.clip)
        if self.rates.decoupled and not isinstance(self.optimizer, SGDR):
            _decay(self.optimizer)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self._step += 1
        return float(loss.detach())


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
    optimizer = opt_fn(param_groups, lr=float(rates.lrs[-1]))
    if rates.wds is not None and rates.wds.any() and "weight_decay" not in optimizer.defaults:
        raise ValueError(f"wds: {type(optimizer).__name__} has no weight decay; leave wds out or change opt_fn")
    for group in optimizer.param_groups:
        if isinstance(optimizer, SGDR):
            group |= {"schedule": rates.schedule.table().tolist(), "decoupled": rates.decoupled}
        elif rates.decoupled:
            group |= {"weight_decay": 0.0, "decoupled_wd": group.get("weight_decay", 0.0)}
    return optimizer


def _set_rates(optimizer: Optimizer, rates: Rates, step: int) -> None:
    """Sets every group's rate, and momentum where the schedule has one, for batch ``step``."""
    factor, momentum = rates.schedule.factor(step), rates.schedule.momentum(step)
    for group in optimizer.param_groups:
        group["lr"] = group["top_lr"] * factor
        if momentum is None:
            continue
        if "momentum" in group:
            group["momentum"] = momentum
        elif "betas" in group:
            group["betas"] = (momentum, *group["betas"][1:])
        else:
            raise ValueError(f"use_clr_beta: {type(optimizer).__name__} has no momentum to mirror")


@torch.no_grad()
def _decay(optimizer: Optimizer) -> None:
    for group in optimizer.param_groups:
        if group["decoupled_wd"]:
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["decoupled_wd"])
