"""What this GPU can do at most: copies, products, launches."""

from __future__ import annotations

import torch

from bench.gpu.timing import Bench


def measure(bench: Bench) -> dict[str, float]:
    """Bytes and operations per second, and seconds per launch."""
    return {
        "copy_bytes_per_second": copy_rate(bench),
        "float32_flop_per_second": product_rate(bench, torch.float32, tf32=False),
        "tf32_flop_per_second": product_rate(bench, torch.float32, tf32=True),
        "bfloat16_flop_per_second": product_rate(bench, torch.bfloat16, tf32=False),
        "launch_seconds": launch_cost(bench),
    }


def copy_rate(bench: Bench) -> float:
    """Bytes read and written per second, by a copy that no cache holds."""
    source = torch.ones((1 << 16) if bench.small else (1 << 28), device=bench.device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / bench.fastest(lambda: target.copy_(source))


def product_rate(bench: Bench, dtype: torch.dtype, *, tf32: bool) -> float:
    """Operations per second of a large square product."""
    n = 128 if bench.small else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return 2 * n**3 / bench.fastest(lambda: torch.mm(a, b))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def launch_cost(bench: Bench) -> float:
    """Seconds per kernel that does next to nothing, in a row."""
    x, n = torch.zeros(1, device=bench.device), 20 if bench.small else 2000

    def work() -> None:
        for _ in range(n):
            x.add_(1)

    return bench.fastest(work) / n
