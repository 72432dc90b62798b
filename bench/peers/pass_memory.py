"""One whole precompute in a process of its own, for its peak memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bench.bench_precompute import PassSetting, data_in
from fastclf import ConvLearner


def make(setting: PassSetting) -> Callable[[str], int]:
    torch.set_num_threads(setting.threads)

    def run(folder: str) -> int:
        learn = ConvLearner.pretrained(setting.arch, data_in(Path(folder), setting), precompute=True)
        return len(learn.data.trn_ds)

    return run
