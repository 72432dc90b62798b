"""Interleaved rounds: every implementation runs once, then again; figures are medians of paired ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any, TypeVar

from bench import limits
from bench.peers.process import PeerProcess, peak_memory_mb

T = TypeVar("T")

ROUNDS = 7
PAUSE = 0.05  # seconds between runners: their threads go to sleep
QUIET = 0.85  # a probe below this share of the best one: other work disturbed the round


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """Seconds of a call, and what it returns."""
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def race(
    benchmark: Any,
    ours: Callable[[int], Any],
    peers: Mapping[str, PeerProcess],
    threads: int,
    work_of: Callable[[int], Any] = lambda number: number,
    pause: float = PAUSE,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """Times `ours` with pytest-benchmark; before each of its rounds every peer runs its own.

    The machine's limits are probed before and after each round, which shows rounds that other work disturbed.

    Args:
        benchmark: pytest-benchmark's fixture.
        ours: round number -> losses, features, or whatever tells that the work was done.
        peers: name -> its process, which returns the same.
        threads: of the probes.
        work_of: round number -> what the peers' processes get.
        pause: seconds between runners; longer where a peer goes on with work of its next round.
        rounds: how many, beside one to warm up.

    Returns:
        ``seconds`` of every round of every implementation, ``losses`` of the last round, ``limits`` of each round
        (the better probe), how many rounds were ``disturbed``, and the ``peak_memory_mb`` of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    losses: dict[str, Any] = {}
    before: list[dict[str, float]] = []
    after: list[dict[str, float]] = []

    def others() -> tuple[tuple[int], dict[str, Any]]:
        number = len(before)
        before.append(_probe(threads))
        for name, peer in peers.items():
            taken, losses[name] = peer.round(work_of(number))
            seconds[name].append(taken)
            time.sleep(pause)
        return (number,), {}

    def our_round(number: int) -> None:
        taken, losses["ours"] = timed(lambda: ours(number))
        seconds["ours"].append(taken)

    benchmark.pedantic(
        our_round, setup=others, teardown=lambda _: after.append(_probe(threads)), rounds=rounds, warmup_rounds=1
    )
    probes = list(zip(before[1:], after[1:], strict=True))
    return {
        "seconds": {name: taken[1:] for name, taken in seconds.items()},
        "losses": losses,
        "limits": [{name: max(early[name], late[name]) for name in early} for early, late in probes],
        "disturbed": _disturbed(probes),
        "peak_memory_mb": {"ours": peak_memory_mb()} | {name: peer.peak_memory_mb for name, peer in peers.items()},
    }


def _probe(threads: int) -> dict[str, float]:
    found = asdict(limits.measure(threads))
    time.sleep(PAUSE)
    return found


def _disturbed(probes: list[tuple[dict[str, float], dict[str, float]]]) -> int:
    best = {name: max(probe[name] for pair in probes for probe in pair) for name in probes[0][0]}
    return sum(any(probe[name] < QUIET * best[name] for probe in pair for name in best) for pair in probes)


def ratios(seconds: Mapping[str, list[float]], peer: str) -> list[float]:
    """How many times as long the peer takes, round by round."""
    return [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}
