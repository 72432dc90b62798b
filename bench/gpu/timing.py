"""Rounds on a device; implementations are interleaved, round by round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

Work = Callable[[], object]
REHEARSED_ARCH = "timm:test_resnet"  # in place of each network


@dataclass(frozen=True)
class Bench:
    """Where to measure, and how much: `small` is the rehearsal on the CPU, whose figures mean nothing."""

    device: torch.device
    small: bool = False

    @property
    def rounds(self) -> int:
        return 2 if self.small else 9

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Work) -> float:
        """From an idle device to an idle device."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def interleaved(self, runners: Mapping[str, Work], rounds: int | None = None) -> dict[str, list[float]]:
        """Return the seconds of every round of each implementation, after one that warms up and compiles.

        Args:
            runners: the implementations, by name.
            rounds: of each; as many as `rounds` says by default.
        """
        for work in runners.values():
            self.seconds(work)
        found: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds or self.rounds):
            for name, work in runners.items():
                found[name].append(self.seconds(work))
        return found

    def fastest(self, work: Work) -> float:
        self.seconds(work)
        return min(self.seconds(work) for _ in range(self.rounds))


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times as fast ours is: the median of paired rounds, and the extremes."""
    pairs = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return {"median": median(pairs), "low": pairs[0], "high": pairs[-1]}
