"""One step of SGDR over all tensors of a network: as a share of the copy rate, against torch's SGD."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from bench.gpu.timing import Bench, Work, ratio
from fastclf import schedules
from fastclf.ops import rate
from fastclf.training.optimizer import SGDR

SHAPES = ("resnet34", "vit_b_16")
GROUPS = (1, 3)
BYTES = 20  # per parameter: parameter, gradient and momentum read, parameter and momentum written
CYCLE = 1000
STEPS = 20  # of a round


def _parameters(bench: Bench, shapes: str) -> list[nn.Parameter]:
    if bench.small:
        sizes = [torch.Size((64, 3, 3, 3)), torch.Size((65,))]
    else:
        import torchvision

        with torch.device("meta"):
            sizes = [p.shape for p in torchvision.models.get_model(shapes).parameters()]
    parameters = [nn.Parameter(torch.randn(size, device=bench.device)) for size in sizes]
    for p in parameters:
        p.grad = torch.randn_like(p)
    return parameters


def _groups(parameters: list[nn.Parameter], groups: int) -> list[dict[str, Any]]:
    size = -(-len(parameters) // groups)
    return [{"params": parameters[i : i + size], "lr": 1e-3} for i in range(0, len(parameters), size)]


def _ours(bench: Bench, shapes: str, groups: int, *, moves: bool = False) -> Work:
    """Our step; ``moves``: with gradients that lie elsewhere in each, as after `zero_grad(set_to_none=True)`."""
    parameters = _parameters(bench, shapes)
    optimizer = SGDR(_groups(parameters, groups), 0.1, schedule=schedules.Cosine(CYCLE))
    gradients = [(p, p.grad, torch.randn_like(p)) for p in parameters]

    def run() -> None:
        for number in range(STEPS):
            if moves:
                for p, one, other in gradients:
                    p.grad = one if number % 2 else other
            optimizer.step()

    return run


def _peer(bench: Bench, shapes: str, groups: int, **options: bool) -> Work:
    optimizer = torch.optim.SGD(_groups(_parameters(bench, shapes), groups), momentum=0.9, **options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(schedules.Cosine(CYCLE), step)[0])

    def run() -> None:
        for _ in range(STEPS):
            optimizer.step()
            scheduler.step()

    return run


def race(bench: Bench, limits: dict[str, float], _folder: Path) -> list[dict[str, Any]]:
    """Every network and number of groups."""
    return [_one(bench, limits, shapes, groups) for shapes in SHAPES for groups in GROUPS]


def _one(bench: Bench, limits: dict[str, float], shapes: str, groups: int) -> dict[str, Any]:
    seconds = bench.interleaved(
        {
            "ours": _ours(bench, shapes, groups),
            "ours, gradients move": _ours(bench, shapes, groups, moves=True),
            "torch fused": _peer(bench, shapes, groups, fused=True),
            "torch foreach": _peer(bench, shapes, groups, foreach=True),
        }
    )
    moved = BYTES * STEPS * sum(p.numel() for p in _parameters(bench, shapes))
    rate = limits.get("copy_bytes_per_second", float("nan"))
    return {
        "shapes": shapes,
        "groups": groups,
        "microseconds": {name: 1e6 * median(taken) / STEPS for name, taken in seconds.items()},
        "share_of_copy": {name: moved / median(taken) / rate for name, taken in seconds.items()},
        "ratios": {name: ratio(seconds["ours"], taken) for name, taken in seconds.items() if name != "ours"},
        "seconds": seconds,
    }
