"""The head in torch, as anybody would write it."""

from __future__ import annotations

import torch
from torch import nn

from bench.setting import DROPOUT, HIDDEN, HeadSetting


def make_model(setting: HeadSetting) -> nn.Sequential:
    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm1d(setting.columns),
        nn.Dropout(DROPOUT[0]),
        nn.Linear(setting.columns, HIDDEN),
        nn.ReLU(),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(DROPOUT[1]),
        nn.Linear(HIDDEN, setting.classes),
    )
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def load_rows(setting: HeadSetting) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole file in memory, `[n, columns] float16`, and targets: a mapped file would be no faster."""
    return torch.from_numpy(setting.rows().copy()), torch.from_numpy(setting.targets())
