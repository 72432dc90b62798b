"""From files to normalised batches on the processor: images per second against the loaders that people use, and
against decoding alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from bench.images_setting import MAX_ZOOM, MEAN, N_IMAGES, STD, ImagesSetting, sampled_mean
from bench.peers.process import peer_processes
from bench.photographs import many
from bench.race import race, ratios, summary
from fastclf import tfms_from_stats, transforms_side_on
from fastclf.data.classifier_data import ImageClassifierData

_ROUNDS = 13  # short ones, on a machine that others disturb
PREFETCHED = 0.5  # seconds: DALI decodes batches of the next round as soon as one ends
PEERS = {"torchvision Pillow": "images_pillow", "torchvision v2": "images_v2", "DALI": "images_dali"}
LIMITS = {"decode": "images_decode"} | ({"decode simplejpeg": "images_simplejpeg"} if find_spec("simplejpeg") else {})
# Of the mean; a deviation is 1. Where an image is turned, the peers fill the corners with black, ours mirrors it.
TOLERANCE = {False: 0.003, True: 0.2}


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
def bench_images(benchmark: Any, data_folder: Path, threads: int, augment: bool) -> None:
    folder = data_folder / f"images_{N_IMAGES}"
    setting = ImagesSetting(folder if folder.is_dir() else many(folder, N_IMAGES), threads, augment)
    tfms = tfms_from_stats((MEAN, STD), setting.sz, transforms_side_on, MAX_ZOOM)
    data = ImageClassifierData.from_paths(setting.folder, setting.batch, tfms, num_workers=threads, device="cpu")
    loader = data.trn_dl if augment else data.fix_dl

    def ours(epoch: int) -> list[float]:
        torch.set_num_threads(1)  # as in the peers' processes: the mean's threads would spin while others decode
        return sampled_mean(x for x, _ in loader.batches(epoch))

    with peer_processes(PEERS | LIMITS, setting) as processes:
        result = race(benchmark, ours, processes, threads, pause=PREFETCHED, rounds=_ROUNDS)
    images, seconds = len(data.trn_ds), result["seconds"]
    number = dict.fromkeys(seconds, images) | {name: result["losses"][name][0] for name in LIMITS}
    rates = {name: [number[name] / each for each in taken] for name, taken in seconds.items()}
    decode = [max(each) for each in zip(*(rates[name] for name in LIMITS), strict=True)]
    benchmark.extra_info |= {
        "augment": augment,
        "images": images,
        "kilobytes_per_image": setting.bytes() / images / 1e3,
        "images_per_second": {name: median(each) for name, each in rates.items()},
        "megabytes_per_second": {name: setting.bytes() / images * median(each) / 1e6 for name, each in rates.items()},
        "ratios": {name: summary(ratios(seconds, name)) for name in PEERS},
        "share_of_decode": summary([ours / limit for ours, limit in zip(rates["ours"], decode, strict=True)]),
        "seconds": seconds,
        "disturbed_rounds": result["disturbed"],
        "peak_memory_mb": result["peak_memory_mb"],
    }
    check_answers({name: result["losses"][name] for name in ("ours", *PEERS)}, images, TOLERANCE[augment])


def check_answers(found: dict[str, list[float]], images: int, tolerance: float) -> None:
    """All have served every image, and nearly the same pixels."""
    for name, (n, mean) in found.items():
        assert n == images, f"{name} serves {n} of {images} images"
        assert abs(mean - found["ours"][1]) < tolerance, f"{name}'s mean is {mean}, ours {found['ours'][1]}"
