"""What this machine can do at most, measured in the same minutes as the rest."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Limits:
    """Rates of one moment."""

    gemm_flops: float  # floating-point operations per second of a product in torch's BLAS
    copy_bytes: float  # bytes read and written per second


def measure(threads: int) -> Limits:
    """Takes some tens of milliseconds."""
    torch.set_num_threads(threads)
    return Limits(_gemm(), _copy())


def _gemm() -> float:
    """The better of a small product, as in a step, and a larger one."""
    rates = []
    for rows in (64, 512):
        a, b, out = torch.ones(rows, 1024), torch.ones(1024, 512), torch.empty(rows, 512)
        rates.append(2 * rows * 1024 * 512 / _shortest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), 4))
    return max(rates)


def _copy() -> float:
    source = torch.ones(16 << 20)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _shortest(lambda: target.copy_(source), 3)


def _shortest(work, repeats: int) -> float:  # type: ignore[no-untyped-def]
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
