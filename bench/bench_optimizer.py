"""One optimizer step over all tensors of a network: against torch's SGD with a scheduler, and the copy bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

from bench.peers.process import peer_processes
from bench.race import race, ratios, summary
from fastclf import schedules
from fastclf.ops import rate
from fastclf.training.optimizer import SGDR

PEERS = {"torch fused": "torch_sgd_fused", "torch foreach": "torch_sgd_foreach"}
STEPS = 4  # per round
BYTES = 20  # per parameter: parameter, gradient and momentum read, parameter and momentum written
CYCLE = 1000  # batches of the cosine


@dataclass(frozen=True)
class OptimizerSetting:
    """Which network's tensors, in how many groups."""

    shapes: str
    groups: int
    threads: int

    def tensors(self) -> list[nn.Parameter]:
        """The network's parameters with gradients."""
        import torchvision

        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        with torch.device("meta"):
            network = torchvision.models.get_model(self.shapes)
        parameters = [nn.Parameter(torch.randn(p.shape)) for p in network.parameters()]
        for p in parameters:
            p.grad = torch.randn_like(p)
        return parameters

    def param_groups(self, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        """Consecutive tensors, with rates from 1e-4 to 1e-2."""
        size = -(-len(parameters) // self.groups)
        split = [parameters[first : first + size] for first in range(0, len(parameters), size)]
        return [{"params": ps, "lr": 1e-4 * 100 ** (i / max(1, len(split) - 1))} for i, ps in enumerate(split)]


def norm(parameters: list[nn.Parameter]) -> float:
    return float(torch.stack([p.detach().norm() for p in parameters]).norm())


def peer(setting: OptimizerSetting, **options: bool) -> Callable[[int], list[float]]:
    """torch.optim.SGD with `scheduler.step()` after every step."""
    parameters = setting.tensors()
    optimizer = torch.optim.SGD(setting.param_groups(parameters), momentum=0.9, weight_decay=1e-4, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(schedules.Cosine(CYCLE), step)[0])

    def run(_: int) -> list[float]:
        for _ in range(STEPS):
            optimizer.step()
            scheduler.step()
        return [norm(parameters)]

    return run


@pytest.mark.parametrize("groups", [1, 3, 52])
@pytest.mark.parametrize("shapes", ["resnet34", "vit_b_16"])
def bench_optimizer(benchmark: Any, threads: int, quick: bool, shapes: str, groups: int) -> None:
    if quick and shapes != "resnet34":
        pytest.skip("not in the quick run")
    setting = OptimizerSetting(shapes, groups, threads)
    parameters = setting.tensors()
    optimizer = SGDR(setting.param_groups(parameters), 0.1, weight_decay=1e-4, schedule=schedules.Cosine(CYCLE))

    def ours(_: int) -> list[float]:
        for _ in range(STEPS):
            optimizer.step()
        return []

    with peer_processes(PEERS, setting) as peers:
        result = race(benchmark, ours, peers, threads)
    moved = BYTES * STEPS * sum(p.numel() for p in parameters)
    pairs = zip(result["seconds"]["ours"], result["limits"], strict=True)
    benchmark.extra_info |= {
        "shapes": shapes,
        "groups": groups,
        "milliseconds": {name: 1e3 * median(taken) / STEPS for name, taken in result["seconds"].items()},
        "ratios": {name: summary(ratios(result["seconds"], name)) for name in PEERS},
        "share_of_copy": summary([moved / taken / limit["copy_bytes"] for taken, limit in pairs]),
        "copy_gb_per_second": median(limit["copy_bytes"] for limit in result["limits"]) / 1e9,
        "disturbed_rounds": result["disturbed"],
        "peak_memory_mb": result["peak_memory_mb"],
        "seconds": result["seconds"],
    }
    theirs = [found[0] for name, found in result["losses"].items() if name != "ours"]
    assert theirs == pytest.approx([norm(parameters)] * len(theirs), rel=1e-5)
