"""What people write: DataLoader over a TensorDataset, default SGD, a scheduler stepped per batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from bench.peers.torch_common import load_rows, make_model
from bench.setting import LR, MOMENTUM, HeadSetting


def make(setting: HeadSetting) -> Callable[[np.ndarray], list[float]]:
    model, (rows, targets) = make_model(setting), load_rows(setting)
    dataset = TensorDataset(rows, targets)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)

    def run(order: np.ndarray) -> list[float]:
        losses = []
        for x, y in DataLoader(dataset, batch_size=setting.batch, sampler=SubsetRandomSampler(order.tolist())):
            loss = F.cross_entropy(model(x.float()), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        return losses

    return run
