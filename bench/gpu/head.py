"""Training the head on rows that lie on the GPU: rows per second against torch and JAX."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.gpu.timing import Bench, Work, ratio
from bench.peers.torch_common import make_model
from bench.setting import DROPOUT, HIDDEN, LR, MOMENTUM, HeadSetting
from fastclf.losses import NLL
from fastclf.models.head import Head
from fastclf.ops import HeadEngine, HeadRates, HeadSpec
from fastclf.schedules import Constant

BATCHES = (64, 256, 1024, 4096)
STEPS = 100  # of a round
WARM_ROUNDS = 11  # after 1,024 steps many go into one graph
LONG = 2_000  # steps, to see the time of one
PRECISIONS = {
    "float32": "float32_flop_per_second",
    "tf32": "tf32_flop_per_second",
    "bf16": "bfloat16_flop_per_second",
}


class Lesson:
    """The rows on the device, and the order of a round."""

    def __init__(self, bench: Bench, setting: HeadSetting) -> None:
        self.bench, self.setting = bench, setting
        self.steps = 2 if bench.small else STEPS
        n = self.steps * setting.batch
        self.order = torch.from_numpy(np.random.default_rng(0).integers(0, setting.n, n))
        self.rows = torch.from_numpy(setting.rows().copy())
        self.targets = torch.from_numpy(setting.targets())
        self.on_device = tuple(t.to(bench.device) for t in (self.rows, self.targets, self.order))


def engine_of(lesson: Lesson, precision: str) -> HeadEngine:
    setting = lesson.setting
    head = Head(setting.columns, setting.classes, ps=DROPOUT, xtra_fc=[HIDDEN]).to(lesson.bench.device)
    spec = HeadSpec.from_layers(head.layers)
    assert spec is not None
    return HeadEngine(
        spec,
        lesson.rows,
        lesson.targets,
        loss=NLL(),
        rates=HeadRates(LR, Constant(), momentum=MOMENTUM),
        max_batch=setting.batch,
        precision=precision,  # type: ignore[arg-type]
    )


def ours(lesson: Lesson, engine: HeadEngine) -> Callable[[], Tensor]:
    step = 0

    def run() -> Tensor:
        nonlocal step
        losses = engine.train(lesson.order, lesson.setting.batch, step)
        step += lesson.steps
        return losses

    for _ in range(1 if lesson.bench.small else WARM_ROUNDS):
        run()
    return run


def microseconds(lesson: Lesson, engine: HeadEngine) -> float:
    """A step's time in one long call, without what every call takes."""
    steps = 2 if lesson.bench.small else LONG
    order = torch.randint(lesson.setting.n, (steps * lesson.setting.batch,))
    return lesson.bench.fastest(lambda: engine.train(order, lesson.setting.batch, 0)) / steps * 1e6


def kernels(lesson: Lesson, run: Work) -> dict[str, list[float]]:
    """What the device runs: launches per step, and the microseconds of one."""
    on_gpu = lesson.bench.device.type == "cuda"
    kind = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as found:
        run()
        lesson.bench.wait()
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = ((e.key, e.count, getattr(e, name)) for e in found.key_averages())
    return {key: [count / lesson.steps, time / count] for key, count, time in events if time > 0}


def torch_step(lesson: Lesson) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """One step of torch, as fast as it is eagerly: index_select and the fused optimizer."""
    rows, targets, _ = lesson.on_device
    model = make_model(lesson.setting).to(lesson.bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, fused=True)

    def step(index: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(rows.index_select(0, index).float()), targets.index_select(0, index))
        loss.backward()
        optimizer.step()
        return loss.detach()

    return model, step


def torch_eager(lesson: Lesson) -> Work:
    _, step = torch_step(lesson)
    return lambda: torch.stack([step(index) for index in lesson.on_device[2].split(lesson.setting.batch)])


def torch_compiled(lesson: Lesson) -> Work:
    _, step = torch_step(lesson)
    compiled = torch.compile(step)
    return lambda: torch.stack([compiled(index) for index in lesson.on_device[2].split(lesson.setting.batch)])


def torch_graph(lesson: Lesson) -> Work:
    """The eager step as a CUDA graph, the batch's index copied into its place before each replay."""
    _, step = torch_step(lesson)
    parts = lesson.on_device[2].split(lesson.setting.batch)
    index, side = parts[0].clone(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(index)

    def run(_keeps: object = step) -> Tensor:
        """Holds the step, too: with its model, gradients and optimizer goes the memory that the graph works on."""
        losses = []
        for part in parts:
            index.copy_(part)
            graph.replay()
            losses.append(loss.clone())
        return torch.stack(losses)

    return run


def jax_scan(lesson: Lesson) -> Work:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    jax.devices("gpu")  # before the peer's module asks for the CPU
    from bench.peers.jax_scan import make

    run, order = make(lesson.setting), lesson.order.numpy()
    return lambda: run(order)


PEERS = {"torch eager": torch_eager, "torch graph": torch_graph, "torch compile": torch_compiled, "jax scan": jax_scan}


def race(batch: int, bench: Bench, limits: dict[str, float], folder: Path) -> dict[str, Any]:
    """One batch size; peers that do not run here are skipped by name, with the reason."""
    setting = HeadSetting(64 if bench.small else 1024, 10, batch, folder, threads=1, n=500 if bench.small else 50_000)
    setting.prepare()
    lesson, skipped, runners = Lesson(bench, setting), {}, {}
    precisions = ["float32"] if bench.small else list(PRECISIONS)
    engines = {name: engine_of(lesson, name) for name in precisions}
    runners |= {f"ours {name}": ours(lesson, engine) for name, engine in engines.items()}
    for name, make in PEERS.items():
        try:
            if bench.small and make is not torch_eager:
                raise RuntimeError("not rehearsed: it needs a GPU, or a minute to compile")
            work = make(lesson)
            work()
            runners[name] = work
        except Exception as error:  # a peer that is missing or does not run must not stop the others
            skipped[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    seconds = bench.interleaved(runners)
    launches = {}
    try:
        launches = {name: kernels(lesson, runners[f"ours {name}"]) for name in precisions}
    except Exception as error:  # a machine may not let its counters be read
        skipped["launches"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    rows = lesson.steps * batch
    flop = setting.flop_per_row * rows
    return {
        "batch": batch,
        "columns": setting.columns,
        "classes": setting.classes,
        "rows_per_second": {name: rows / median(taken) for name, taken in seconds.items()},
        "share_of_products": {
            o: flop / median(seconds[f"ours {o}"]) / limits[PRECISIONS[o]] for o in precisions if limits
        },
        "microseconds_per_step": {name: microseconds(lesson, engine) for name, engine in engines.items()},
        "kernels": launches,
        "ratios": {name: ratio(seconds["ours float32"], seconds[name]) for name in PEERS if name in seconds},
        "skipped": skipped,
        "seconds": seconds,
    }
