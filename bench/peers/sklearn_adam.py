"""MLPClassifier as it comes: Adam at .001, batches of 200."""

from __future__ import annotations

from collections.abc import Callable

from bench.bench_accuracy import AccuracySetting
from bench.peers.sklearn_common import run_with


def make(setting: AccuracySetting) -> Callable[[int], list[float]]:
    return run_with(setting)
