"""A file of two million rows (4 GB): the rate against a small file's, and the memory that it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.bench_head import our_engine
from bench.race import ROUNDS, ratios, summary
from bench.setting import HeadSetting

LARGE = 2_000_000
PER_ROUND = 100_000  # rows: long enough that processor and memory run as they do in an epoch


def anonymous_bytes() -> int:
    """Memory of this process that is no file's (RssAnon)."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def tile_up(large: HeadSetting, small: HeadSetting) -> None:
    """Writes the large file as copies of the small one, each shifted by some columns."""
    if large.rows_file.exists():
        return
    rows, block = np.lib.format.open_memmap(large.rows_file, "w+", np.float16, (large.n, large.columns)), small.rows()
    for number, first in enumerate(range(0, large.n, small.n)):
        rows[first : first + small.n] = np.roll(block, number, axis=1)[: large.n - first]
    np.save(large.targets_file, np.tile(small.targets(), -(-large.n // small.n))[: large.n])


def bench_large_file(benchmark: Any, data_folder: Path, threads: int, quick: bool) -> None:
    if quick:
        pytest.skip("not in the quick run")
    small = HeadSetting(1024, 2, 64, data_folder, threads)
    large = replace(small, n=LARGE)
    small.prepare()
    tile_up(large, small)
    rows = large.rows()
    for first in range(0, LARGE, 100_000):  # every page is mapped, as after an epoch
        rows[first : first + 100_000].max()
    before = anonymous_bytes()
    run_large, run_small = timed(large, rows), timed(small, small.rows())
    seconds: dict[str, list[float]] = {"ours": [], "small file": []}

    def small_first() -> tuple[tuple[int], dict[str, Any]]:
        number = len(seconds["small file"])
        seconds["small file"].append(run_small(number))
        return (number,), {}

    def then_large(number: int) -> None:
        seconds["ours"].append(run_large(number))

    benchmark.pedantic(then_large, setup=small_first, rounds=ROUNDS, warmup_rounds=1)
    used = anonymous_bytes() - before
    benchmark.extra_info |= {
        "rows": LARGE,
        "file_gb": large.rows_file.stat().st_size / 1e9,
        "rate_of_small_file": summary(ratios({name: taken[1:] for name, taken in seconds.items()}, "small file")),
        "anonymous_mb": used / 1e6,
        "seconds": seconds,
    }
    assert used < 2e9


def timed(setting: HeadSetting, rows: np.ndarray) -> Callable[[int], float]:
    engine = our_engine(setting, rows)

    def run(number: int) -> float:
        order = np.random.default_rng(number).integers(0, setting.n, PER_ROUND)
        start = time.perf_counter()
        engine.train(order, setting.batch, 0)
        return time.perf_counter() - start

    return run
