"""Many heads on the rows of one data set: `train_heads` with all at once against one after another."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

from bench.heads_setting import BATCH, HeadsSetting, checksums
from bench.peers.process import peer_processes
from bench.race import race, ratios, summary
from fastclf.losses import NLL
from fastclf.training.head_runs import HeadTraining, train_heads

ALONE = "one after another"


@pytest.mark.parametrize("hidden", [0, 64, 512])
@pytest.mark.parametrize("columns", [512, 1280, 2560])
def bench_heads(benchmark: Any, threads: int, quick: bool, columns: int, hidden: int) -> None:
    if quick:
        pytest.skip("not in the quick run")
    setting = HeadsSetting(columns, hidden, threads)
    ds = setting.dataset()

    def ours(number: int) -> list[int]:
        return checksums(train_heads(ds, setting.runs(number), HeadTraining(NLL(), BATCH)))

    with peer_processes({ALONE: "heads_alone"}, setting) as processes:
        result = race(benchmark, ours, processes, threads)
    rows = setting.rows_per_epoch * setting.epochs
    benchmark.extra_info |= {
        "columns": columns,
        "hidden": hidden,
        "heads": setting.heads,
        "epochs": setting.epochs,
        "rows_per_second": {name: rows / median(seconds) for name, seconds in result["seconds"].items()},
        "ratios": {ALONE: summary(ratios(result["seconds"], ALONE))},
        "limits": result["limits"],
        "disturbed_rounds": result["disturbed"],
        "seconds": result["seconds"],
    }
    assert result["losses"]["ours"] == result["losses"][ALONE], "a head depends on those that train beside it"
