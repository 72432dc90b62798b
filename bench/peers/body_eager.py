"""torch as it comes: channels first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.bench_body import BodySetting, torch_peer


def make(setting: BodySetting) -> Callable[[int], np.ndarray]:
    return torch_peer(setting, lambda network: network)
