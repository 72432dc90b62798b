"""The body without gradients: images per second against torch's ways and the runtimes used by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.peers.process import peer_processes
from bench.race import race, ratios, summary
from fastclf.models.archs import as_arch, build_body
from fastclf.models.body import Body
from fastclf.models.net import Net

PEERS = {
    "torch channels_last": "body_channels_last",
    "torch": "body_eager",
    "ONNX Runtime": "body_onnxruntime",
    "OpenVINO": "body_openvino",
}
COMPILED = {"torch compile": "body_compiled"}
ARCHS = ("fastclf:efficientnet_lite0", "torchvision:resnet34", "torchvision:resnet50")
AGREE = 1e-4


@dataclass(frozen=True)
class BodySetting:
    """Which body, and the batch that every implementation runs it on."""

    arch: str
    threads: int
    size: int = 224
    batch: int = 32

    def network(self) -> Body:
        """Body and pool, the same random weights for all."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        return build_body(as_arch(self.arch), pretrained=False)

    def images(self) -> Tensor:
        """``[batch, 3, size, size]``."""
        return torch.randn(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(1))

    def flop(self) -> int:
        """Two per multiply-add of the whole batch."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.network()(self.images()[:1])
        return int(counter.get_total_flops()) * self.batch


def torch_peer(setting: BodySetting, prepare: Callable[[nn.Module], Any]) -> Callable[[int], np.ndarray]:
    """The network after ``prepare``, called as a function."""
    network, x = prepare(setting.network()), setting.images()

    def run(_: int) -> np.ndarray:
        with torch.no_grad():
            return network(x).numpy()

    run(0)
    return run


@pytest.mark.parametrize("arch", ARCHS)
def bench_body(benchmark: Any, threads: int, quick: bool, arch: str) -> None:
    if quick and arch != ARCHS[0]:
        pytest.skip("not in the quick run")
    setting = BodySetting(arch, threads)
    peers = PEERS if quick else PEERS | COMPILED
    flop = setting.flop()
    net, x = Net(setting.network().to(memory_format=torch.channels_last), nn.Identity()), setting.images()

    def ours(_: int) -> np.ndarray:
        with torch.inference_mode():
            return net.features(x).numpy()

    ours(0)
    with peer_processes(peers, setting) as processes:
        result = race(benchmark, ours, processes, threads)
    pairs = zip(result["seconds"]["ours"], result["limits"], strict=True)
    features = result["losses"]
    benchmark.extra_info |= {
        "arch": arch,
        "size": setting.size,
        "batch": setting.batch,
        "images_per_second": {name: setting.batch / median(taken) for name, taken in result["seconds"].items()},
        "ratios": {name: summary(ratios(result["seconds"], name)) for name in peers},
        "share_of_gemm": summary([flop / taken / limit["gemm_flops"] for taken, limit in pairs]),
        "gemm_gflops": median(limit["gemm_flops"] for limit in result["limits"]) / 1e9,
        "gflop_per_image": flop / setting.batch / 1e9,
        "difference": {name: difference(found, features["torch"]) for name, found in features.items()},
        "seconds": result["seconds"],
        "disturbed_rounds": result["disturbed"],
        "peak_memory_mb": result["peak_memory_mb"],
    }
    for name, found in benchmark.extra_info["difference"].items():
        assert found < AGREE, f"{name} computes other features"


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, of a feature or of the mean feature where that is larger."""
    scale = np.maximum(np.abs(expected), np.abs(expected).mean())
    return float((np.abs(found - expected) / scale).max())
