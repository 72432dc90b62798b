"""The store of activations: opening many rows, and an epoch of the head on them, against one plain mapped file."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from bench.race import ROUNDS, summary, timed
from fastclf.activations import segment
from fastclf.activations.segment import KEY, ROWS, Kind, SegmentWriter
from fastclf.activations.store import Store
from fastclf.losses import NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.schedules import Cosine

WIDTH, BLOCK, BATCH, TRAINED = 1280, 32, 256, 60_000
ASKED = 1.0  # seconds, for a million rows


def bench_store(benchmark: Any, tmp_path: Path, threads: int, quick: bool) -> None:
    torch.set_num_threads(threads)
    n, rng, kind = 100_000 if quick else 1_000_000, np.random.default_rng(0), Kind("bench", WIDTH, "float16")
    keys, rows = np.frombuffer(rng.bytes(n * KEY.itemsize), KEY), rng.standard_normal((BLOCK, WIDTH)).astype("f2")
    with SegmentWriter(tmp_path / kind.name, kind) as writer:
        for first in range(0, n, BLOCK):
            writer.write(keys[first : first + BLOCK], rows[: n - first])
        place = writer.finish()
    some, index = n // 5, rng.permutation(n)
    orders = {
        "plain": np.memmap(place / ROWS, "f2", "r", shape=(n, WIDTH))[:some],
        "in order": Store([tmp_path / kind.name], kind).open(keys[:some]),
        "scattered": Store([tmp_path / kind.name], kind).open(keys[index[:some]]),
    }
    epoch = torch.from_numpy(rng.permutation(some)[:TRAINED])
    seconds: dict[str, list[float]] = {name: [] for name in ("opened first", "opened again", *orders)}

    def round_() -> None:
        segment._checked.clear()  # as in another process
        for name in ("opened first", "opened again"):
            seconds[name].append(timed(lambda: Store([tmp_path / kind.name], kind).open(keys[index]))[0])
        for name, of_order in orders.items():
            spec = HeadSpec.from_layers(Head(WIDTH, 2, ps=[0.25, 0.5], xtra_fc=[512], seed=0).layers)
            assert spec is not None
            rates, targets = HeadRates(1e-3, Cosine(1000, 1)), torch.arange(some) % 2
            engine = HeadEngine(spec, of_order, targets, loss=NLL(), rates=rates, max_batch=BATCH)  # type: ignore[arg-type]
            seconds[name].append(timed(lambda engine=engine: engine.train(epoch, BATCH, 0))[0])

    benchmark.pedantic(round_, rounds=ROUNDS, warmup_rounds=1)
    seconds = {name: taken[1:] for name, taken in seconds.items()}
    benchmark.extra_info |= {
        "rows": n,
        "seconds_to_open": {name: median(seconds[name]) for name in ("opened first", "opened again")},
        "rows_per_second": {name: len(epoch) / median(seconds[name]) for name in orders},
        "times_plain": {
            name: summary([a / b for a, b in zip(seconds["plain"], seconds[name], strict=True)])
            for name in ("in order", "scattered")
        },
        "asked": ASKED,
        "seconds": seconds,
    }
