"""What the scan costs: the first one against decoding the same files and nothing else, and one that knows them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from bench.images_setting import MEAN, N_IMAGES, STD
from bench.photographs import many
from bench.race import ROUNDS, summary
from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode.graphs import DecodePipeline, GraphInput

_BATCH = 64


def bench_scan(
    benchmark: Any, data_folder: Path, threads: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any
) -> None:
    folder = data_folder / f"images_{N_IMAGES}"
    if not folder.is_dir():
        many(folder, N_IMAGES)
    data = ImageClassifierData.from_paths(folder, _BATCH, tfms_from_stats((MEAN, STD), 224), num_workers=threads)
    files = [os.fsencode(folder / name) for ds in (data.trn_ds, data.val_ds) for name in ds.fnames]
    seconds: dict[str, list[float]] = {"decode": [], "first scan": [], "second scan": []}

    def decode_first() -> tuple[tuple[()], dict[str, Any]]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))  # where scans are remembered
        start = time.perf_counter()
        decode(files, threads)
        seconds["decode"].append(time.perf_counter() - start)
        return (), {}

    def then_scan() -> None:
        for name in ("first scan", "second scan"):
            start = time.perf_counter()
            report = data.scan()
            seconds[name].append(time.perf_counter() - start)
            assert (report.n, report.decoded) == (len(files), len(files) if name == "first scan" else 0)

    benchmark.pedantic(then_scan, setup=decode_first, rounds=ROUNDS, warmup_rounds=1)
    kept = {name: taken[1:] for name, taken in seconds.items()}
    benchmark.extra_info |= {
        "images": len(files),
        "times_decode": summary([a / b for a, b in zip(kept["first scan"], kept["decode"], strict=True)]),
        "second_scan_times_decode": summary([a / b for a, b in zip(kept["second scan"], kept["decode"], strict=True)]),
        "images_per_second": {name: len(files) / median(taken) for name, taken in kept.items()},
        "seconds": kept,
    }


def decode(files: list[bytes], threads: int) -> None:
    """Decodes every file, one batch ahead of the one that is waited for."""
    pipe = DecodePipeline(GraphInput(), _BATCH, torch.device("cpu"), threads)
    names = [np.frombuffer(file, np.uint8) for file in files]
    batches = [names[start : start + _BATCH] for start in range(0, len(names), _BATCH)]
    pipe.feed(batches[0])
    for batch in batches[1:]:
        pipe.feed(batch)
        pipe.take()
    pipe.take()
