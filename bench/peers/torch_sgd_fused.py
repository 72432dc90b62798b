"""torch.optim.SGD(fused=True) with a cosine scheduler."""

from __future__ import annotations

from collections.abc import Callable

from bench.bench_optimizer import OptimizerSetting, peer


def make(setting: OptimizerSetting) -> Callable[[int], list[float]]:
    return peer(setting, fused=True)
