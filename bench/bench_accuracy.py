"""Time to 90 % accuracy on real activations, against scikit-learn's MLPClassifier with the same hidden layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.digits import CLASSES, COLUMNS, LEARNT, digit_rows
from bench.peers.process import peer_processes
from bench.race import race, ratios, summary
from bench.setting import DROPOUT, HIDDEN, LR, MOMENTUM
from fastclf import ops
from fastclf.losses import NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.schedules import Constant

PEERS = {"scikit-learn sgd": "sklearn_sgd", "scikit-learn adam": "sklearn_adam"}
TARGET = 0.9
BATCH = 64
MOST_EPOCHS = 40


@dataclass(frozen=True)
class AccuracySetting:
    """Where the rows are, and how many threads each implementation has."""

    folder: Path
    threads: int


def epoch_order(number: int, epoch: int) -> np.ndarray:
    """The training rows of one epoch of run `number`, `[LEARNT] int64`."""
    return np.random.default_rng((number, epoch)).permutation(LEARNT)


def our_run(rows: np.ndarray, targets: np.ndarray, number: int) -> list[float]:
    """Trains a new head until the held-out rows are right often enough: that accuracy, and the epochs it took."""
    spec = HeadSpec.from_layers(Head(COLUMNS, CLASSES, ps=DROPOUT, xtra_fc=[HIDDEN], seed=number).layers)
    assert spec is not None
    rates = HeadRates(LR, Constant(), momentum=MOMENTUM)
    engine = HeadEngine(spec, rows, torch.from_numpy(targets), loss=NLL(), rates=rates, max_batch=BATCH, seed=number)
    held_out = np.arange(LEARNT, len(rows))
    accuracy = 0.0
    for epoch in range(MOST_EPOCHS):
        engine.train(epoch_order(number, epoch), BATCH, epoch * -(-LEARNT // BATCH))
        accuracy = float((ops.predict(spec, rows, held_out).argmax(1).numpy() == targets[held_out]).mean())
        if accuracy >= TARGET:
            return [accuracy, epoch + 1]
    return [accuracy, MOST_EPOCHS]


def bench_accuracy(benchmark: Any, data_folder: Path, threads: int) -> None:
    rows, targets = digit_rows(data_folder)
    with peer_processes(PEERS, AccuracySetting(data_folder, threads)) as peers:
        result = race(benchmark, lambda number: our_run(rows, targets, number), peers, threads)
    for name, (accuracy, _) in result["losses"].items():
        assert accuracy >= TARGET, f"{name} reached only {accuracy}"
    benchmark.extra_info |= {
        "target": TARGET,
        "seconds_to_target": {name: median(taken) for name, taken in result["seconds"].items()},
        "epochs_to_target": {name: epochs for name, (_, epochs) in result["losses"].items()},
        "ratios": {name: summary(ratios(result["seconds"], name)) for name in PEERS},
        "disturbed_rounds": result["disturbed"],
        "peak_memory_mb": result["peak_memory_mb"],
        "seconds": result["seconds"],
    }
