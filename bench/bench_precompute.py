"""The whole pass over the images, against what decoding alone and the body alone allow together; its peak memory."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from bench import photographs
from bench.peers.process import PeerProcess
from bench.race import PAUSE, ROUNDS, summary, timed
from fastclf import ConvLearner, ImageClassifierData, tfms_from_model
from fastclf.activations.precompute import activations
from fastclf.models.net import Net

ASKED = 0.85


@dataclass(frozen=True)
class PassSetting:
    """What the body is, and on how many threads it runs."""

    threads: int
    arch: str = "fastclf:efficientnet_lite0"
    sz: int = 224
    bs: int = 64


def data_in(folder: Path, setting: PassSetting) -> ImageClassifierData:
    tfms = tfms_from_model(setting.arch, setting.sz)
    return ImageClassifierData.from_paths(
        folder, setting.bs, tfms, test_name=None, device="cpu", num_workers=setting.threads
    )


class Pass:
    """The same images decoded alone, their batches run through the body alone, and both with the file."""

    def __init__(self, folder: Path, setting: PassSetting) -> None:
        torch.set_num_threads(setting.threads)
        self.data = data_in(folder, setting)
        learn = ConvLearner.pretrained(setting.arch, self.data)
        self.net: Net = learn.model
        self.loader, self.folder = self.data.fix_dl, folder
        self.x, _ = next(iter(self.loader))

    @property
    def n(self) -> int:
        return self.loader.n

    def decode(self) -> None:
        for _ in self.loader.batches(0):
            pass

    def body(self) -> None:
        self.net.eval()
        with torch.inference_mode():
            for first in range(0, self.n, len(self.x)):
                self.net.features(self.x[: self.n - first])

    def whole(self) -> np.ndarray:
        target = self.folder / "tmp" / "bench"
        shutil.rmtree(target, ignore_errors=True)
        return activations(self.net, self.loader, [target], dtype="float16", what="train")  # type: ignore[arg-type]


def bench_precompute(benchmark: Any, tmp_path: Path, threads: int, quick: bool) -> None:
    work = Pass(photographs.catsdogs(tmp_path / "photos", 60 if quick else None), PassSetting(threads))
    seconds: dict[str, list[float]] = {"decode": [], "body": [], "whole": []}

    def alone() -> tuple[tuple[()], dict[str, Any]]:
        for name in ("decode", "body"):
            seconds[name].append(timed(getattr(work, name))[0])
            time.sleep(PAUSE)
        return (), {}

    def whole() -> None:
        seconds["whole"].append(timed(work.whole)[0])

    benchmark.pedantic(whole, setup=alone, rounds=ROUNDS, warmup_rounds=1)
    seconds = {name: taken[1:] for name, taken in seconds.items()}
    # On the same processors, the work adds up: one image takes its time in decoding and its time in the body.
    shares = [
        (decode + body) / both
        for decode, body, both in zip(seconds["decode"], seconds["body"], seconds["whole"], strict=True)
    ]
    benchmark.extra_info |= {
        "images": work.n,
        "images_per_second": {name: work.n / median(taken) for name, taken in seconds.items()},
        "share_of_both_alone": summary(shares),
        "asked": ASKED,
        "seconds": seconds,
    }
    check_rows(work)


def check_rows(work: Pass) -> None:
    """The file holds what the body gives."""
    x, _ = next(work.loader.batches(0))
    with torch.inference_mode():
        expected = work.net.features(x)
    np.testing.assert_allclose(work.whole()[: len(x)], expected, rtol=2e-3, atol=2e-3)


def bench_precompute_memory(benchmark: Any, tmp_path: Path, threads: int, quick: bool) -> None:
    few, more = (100, 1_000) if quick else (500, 5_000)
    folders = {n: photographs.many(tmp_path / str(n), n) for n in (few, more)}
    peaks: dict[int, float] = {}

    def passes() -> None:
        for n, folder in folders.items():
            process = PeerProcess("bench.peers.pass_memory", PassSetting(threads))
            try:
                _, rows = process.round(str(folder))
            finally:
                process.close()
            assert rows == n
            peaks[n] = process.peak_memory_mb

    benchmark.pedantic(passes, rounds=1)
    benchmark.extra_info |= {"peak_memory_mb": peaks, "ratio": peaks[more] / peaks[few], "asked": 1.05}
    assert peaks[more] == pytest.approx(peaks[few], rel=0.05)
