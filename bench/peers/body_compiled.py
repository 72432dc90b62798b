"""torch.compile with freezing: weights are constants, BatchNorm is folded, layouts are chosen per convolution."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench.bench_body import BodySetting, torch_peer


def make(setting: BodySetting) -> Callable[[int], np.ndarray]:
    torch._inductor.config.freezing = True
    return torch_peer(setting, lambda network: torch.compile(network.to(memory_format=torch.channels_last)))
