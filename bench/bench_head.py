"""Training the head on a mapped file of float16 rows: rows per second against the peers and the product's rate."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pytest
import torch

from bench.peers.process import peer_processes
from bench.race import race, ratios, summary
from bench.setting import DROPOUT, HIDDEN, LR, MOMENTUM, HeadSetting
from fastclf.losses import NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.schedules import Constant

PEERS = {"jax scan": "jax_scan", "torch fused": "torch_fused", "torch DataLoader": "torch_loader"}
COMPILED = {"torch compile": "torch_compiled"}
MAIN = [(1024, 2, batch) for batch in (16, 64, 256, 1024)]
GRID = [(d, c, b) for d in (512, 1024, 2560, 4096) for c in (2, 10, 120, 1000) for b in (16, 64, 256, 1024)]


def our_engine(setting: HeadSetting, rows: np.ndarray) -> HeadEngine:
    head = Head(setting.columns, setting.classes, ps=DROPOUT, xtra_fc=[HIDDEN])
    spec = HeadSpec.from_layers(head.layers)
    assert spec is not None
    rates = HeadRates(LR, Constant(), momentum=MOMENTUM)
    targets = torch.from_numpy(setting.targets())
    return HeadEngine(spec, rows, targets, loss=NLL(), rates=rates, max_batch=setting.batch)


def run_setting(benchmark: Any, setting: HeadSetting, peers: dict[str, str]) -> None:
    setting.prepare()
    engine, step = our_engine(setting, setting.rows()), 0

    def ours(number: int) -> list[float]:
        nonlocal step
        losses: list[float] = engine.train(setting.order(number), setting.batch, step).tolist()
        step += setting.steps
        return losses

    with peer_processes(peers, setting) as processes:
        result = race(benchmark, ours, processes, setting.threads, setting.order)
    flop = setting.flop_per_row * setting.steps * setting.batch
    shares = [
        flop / taken / limit["gemm_flops"]
        for taken, limit in zip(result["seconds"]["ours"], result["limits"], strict=True)
    ]
    benchmark.extra_info |= {
        "columns": setting.columns,
        "classes": setting.classes,
        "batch": setting.batch,
        "rows_per_second": {n: setting.steps * setting.batch / median(s) for n, s in result["seconds"].items()},
        "ratios": {name: summary(ratios(result["seconds"], name)) for name in peers},
        "share_of_gemm": summary(shares),
        "gemm_gflops": median(limit["gemm_flops"] for limit in result["limits"]) / 1e9,
        "loss": {name: mean(losses) for name, losses in result["losses"].items()},
        "disturbed_rounds": result["disturbed"],
        "peak_memory_mb": result["peak_memory_mb"],
        "seconds": result["seconds"],
    }
    check_losses(benchmark.extra_info["loss"])


def check_losses(loss: dict[str, float]) -> None:
    """All have learnt the same after the same rows: dropout samples other masks, so only nearly."""
    ours = loss["ours"]
    for name, theirs in loss.items():
        assert np.isfinite(theirs), f"{name} gives {theirs}"
        assert abs(ours - theirs) < 0.05 + 0.25 * theirs, f"ours ends at loss {ours}, {name} at {theirs}"


@pytest.mark.parametrize(("columns", "classes", "batch"), MAIN)
def bench_head_main(
    benchmark: Any, data_folder: Path, threads: int, quick: bool, columns: int, classes: int, batch: int
) -> None:
    peers = PEERS if quick else PEERS | COMPILED
    run_setting(
        benchmark, HeadSetting(columns, classes, batch, data_folder, threads, 20_000 if quick else 50_000), peers
    )


@pytest.mark.parametrize(("columns", "classes", "batch"), GRID)
def bench_head_grid(
    benchmark: Any, data_folder: Path, threads: int, quick: bool, columns: int, classes: int, batch: int
) -> None:
    if quick:
        pytest.skip("not in the quick run")
    run_setting(benchmark, HeadSetting(columns, classes, batch, data_folder, threads, 10_000, 5e9), PEERS)
