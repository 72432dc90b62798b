"""The heads one after another, each on all threads."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.heads_setting import BATCH, HeadsSetting, checksums
from fastclf.losses import NLL
from fastclf.training.head_runs import HeadTraining, train_heads


def make(setting: HeadsSetting) -> Callable[[int], list[int]]:
    torch.set_num_threads(setting.threads)
    ds = setting.dataset()

    def run(number: int) -> list[int]:
        heads = [train_heads(ds, [run], HeadTraining(NLL(), BATCH))[0] for run in setting.runs(number)]
        return checksums(heads)

    return run
