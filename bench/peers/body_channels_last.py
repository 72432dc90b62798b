"""torch with its weights channels last, its documented setting for processors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from bench.bench_body import BodySetting, torch_peer


def make(setting: BodySetting) -> Callable[[int], np.ndarray]:
    return torch_peer(setting, lambda network: network.to(memory_format=torch.channels_last))
