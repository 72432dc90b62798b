"""Training all layers: images per second of steps on a batch that lies on the GPU, and of whole epochs from files.

The peer is the loop of timm's training script on the same batch: channels_last, autocast to bf16, torch's fused SGD,
gradients set to None, the loss read at the end, and `cudnn.benchmark`, which that script turns on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.gpu.photographs import written
from bench.gpu.timing import REHEARSED_ARCH, Bench, Work, ratio
from fastclf import ConvLearner, ImageClassifierData, quiet, tfms_from_model, transforms_side_on
from fastclf.models.precision import autocast
from fastclf.schedules import Constant
from fastclf.training.forward import Objective
from fastclf.training.optimizer import SGDR
from fastclf.training.steps import AutogradSteps, Rates

ARCHS = {"resnet50": "torchvision:resnet50", "lite0": "fastclf:efficientnet_lite0"}
BS, STEPS, IMAGES = 128, 20, 4096
ROUNDS = 5
LRS = [1e-5, 1e-4, 1e-3]


class _Resident:
    """A loader of one batch that lies on the device."""

    drop_single = False

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self._batch, self.bs = (x, y), len(x)

    def batches(self, _epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self._batch


class _Training:
    def __init__(self, bench: Bench, arch: str, folder: Path) -> None:
        self.bench, self.arch = bench, arch
        self.bs, self.steps = (4, 2) if bench.small else (BS, STEPS)
        tfms = tfms_from_model(arch, 64 if bench.small else 224, aug_tfms=transforms_side_on, max_zoom=1.1)
        self.data = ImageClassifierData.from_paths(
            folder, self.bs, tfms, test_name=None, device=bench.device, keep_decoded=False
        )
        x, y = next(iter(self.data.trn_dl.batches(0)))
        self.batch = x.clone(), y.clone()

    def learner(self) -> ConvLearner:
        learn = ConvLearner.pretrained(self.arch, self.data, pretrained=False)
        learn.unfreeze()
        learn.bn_freeze(False)
        return learn

    def epochs(self) -> Work:
        learn = self.learner()
        return lambda: learn.fit(LRS, 1, cycle_len=1)

    def our_steps(self) -> Work:
        learn = self.learner()
        rates = Rates(np.array(LRS), Constant(), clip=None)
        steps = AutogradSteps(Objective(learn.model, learn.crit), learn.groups, _Resident(*self.batch), SGDR, rates)
        steps.start_epoch(0)

        def run() -> None:
            learn.groups.set_modes()
            for first in range(0, self.steps, steps.chunk):
                steps.run(min(steps.chunk, self.steps - first))

        return run

    def timm_loop(self) -> Work:
        model = self.learner().model
        groups = [{"params": [*group.parameters()], "lr": lr} for group, lr in zip(model.groups, LRS, strict=True)]
        optimizer = torch.optim.SGD(groups, lr=LRS[-1], momentum=0.9, fused=True)
        x, y = self.batch

        def run() -> float:
            model.train()
            for _ in range(self.steps):
                with autocast(x.device):
                    loss = F.nll_loss(model(x).float(), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return run


@contextmanager
def _benchmark() -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _with_benchmark(work: Work) -> Work:
    def run() -> object:
        with _benchmark():
            return work()

    return run


def race(arch: str, bench: Bench, _limits: dict[str, float], folder: Path) -> dict[str, Any]:
    """Images per second of each way."""
    quiet()
    arch = REHEARSED_ARCH if bench.small else arch
    training = _Training(bench, arch, written(bench, folder, *((16, 8) if bench.small else (IMAGES, 512))))
    peer = "timm's loop"
    runners: dict[str, Work] = {
        "steps": training.our_steps(),
        "steps, cudnn.benchmark": _with_benchmark(training.our_steps()),
        peer: _with_benchmark(training.timm_loop()),
        "epochs from files, with validation": training.epochs(),
    }
    seconds = bench.interleaved(runners, rounds=2 if bench.small else ROUNDS)
    resident = training.steps * len(training.batch[0])
    images = dict.fromkeys(runners, resident) | {"epochs from files, with validation": training.data.trn_dl.n}
    return {
        "arch": arch,
        "batch": len(training.batch[0]),
        "images_per_second": {name: images[name] / median(taken) for name, taken in seconds.items()},
        "ratios": {name: ratio(seconds["steps"], seconds[name]) for name in (peer,)},
        "seconds": seconds,
    }
