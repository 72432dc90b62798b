"""torch.compile around forward and loss, rows by index_select, fused SGD."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.peers.torch_common import load_rows, make_model
from bench.setting import LR, MOMENTUM, HeadSetting


def make(setting: HeadSetting) -> Callable[[np.ndarray], list[float]]:
    model, (rows, targets) = make_model(setting), load_rows(setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    @torch.compile
    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x.float()), y)

    def run(order: np.ndarray) -> list[float]:
        losses = []
        for index in torch.from_numpy(order).split(setting.batch):
            loss = loss_of(rows.index_select(0, index), targets.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    return run
