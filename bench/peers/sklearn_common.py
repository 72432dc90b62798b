"""scikit-learn's MLPClassifier: a hidden layer of the same width, float32 rows in memory; no BatchNorm, no dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

from bench.bench_accuracy import MOST_EPOCHS, TARGET, AccuracySetting, epoch_order
from bench.digits import CLASSES, LEARNT, digit_rows
from bench.setting import HIDDEN


def run_with(setting: AccuracySetting, **options: Any) -> Callable[[int], list[float]]:
    """Trains a new classifier until the held-out rows are right often enough."""
    mapped, targets = digit_rows(setting.folder)
    rows, held_out = np.asarray(mapped, np.float32), np.arange(LEARNT, len(targets))

    def run(number: int) -> list[float]:
        model = MLPClassifier((HIDDEN,), random_state=number, **options)
        accuracy = 0.0
        for epoch in range(MOST_EPOCHS):
            order = epoch_order(number, epoch)
            model.partial_fit(rows[order], targets[order], classes=np.arange(CLASSES))
            accuracy = float((model.predict(rows[held_out]) == targets[held_out]).mean())
            if accuracy >= TARGET:
                return [accuracy, epoch + 1]
        return [accuracy, MOST_EPOCHS]

    def limited(number: int) -> list[float]:
        with threadpool_limits(setting.threads):
            return run(number)

    return limited
