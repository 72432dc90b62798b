"""MLPClassifier with the engine's batch size, rate and momentum."""

from __future__ import annotations

from collections.abc import Callable

from bench.bench_accuracy import BATCH, AccuracySetting
from bench.peers.sklearn_common import run_with
from bench.setting import LR, MOMENTUM


def make(setting: AccuracySetting) -> Callable[[int], list[float]]:
    return run_with(
        setting,
        solver="sgd",
        learning_rate_init=LR,
        momentum=MOMENTUM,
        nesterovs_momentum=False,
        alpha=0,
        batch_size=BATCH,
    )
