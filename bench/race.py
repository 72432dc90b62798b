"""Interleaved rounds: everybody runs once, then everybody again; figures are medians of paired ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import median
from typing import Any

from bench import limits

Runner = Callable[[int], tuple[float, list[float]]]  # round number -> seconds, losses
ROUNDS = 7
PAUSE = 0.05  # seconds between runners: their threads go to sleep


def race(
    benchmark: Any, ours: Callable[[int], list[float]], peers: Mapping[str, Runner], threads: int
) -> dict[str, Any]:
    """Times `ours` with pytest-benchmark; before each of its rounds every peer runs its own, and limits are measured.

    Returns:
        Seconds of every round of everybody, losses of the last round, limits of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    losses: dict[str, list[float]] = {}
    found: list[dict[str, float]] = []
    number = 0

    def others() -> tuple[tuple[int], dict[str, Any]]:
        nonlocal number
        for name, peer in peers.items():
            taken, losses[name] = peer(number)
            seconds[name].append(taken)
            time.sleep(PAUSE)
        found.append(asdict(limits.measure(threads)))
        time.sleep(PAUSE)
        number += 1
        return (number - 1,), {}

    def timed(round_number: int) -> None:
        start = time.perf_counter()
        losses["ours"] = ours(round_number)
        seconds["ours"].append(time.perf_counter() - start)

    benchmark.pedantic(timed, setup=others, rounds=ROUNDS, warmup_rounds=1)
    warm = {name: taken[1:] for name, taken in seconds.items()}
    return {"seconds": warm, "losses": losses, "limits": found[1:]}


def ratios(seconds: Mapping[str, list[float]], peer: str) -> list[float]:
    """How many times as long the peer takes, round by round."""
    return [theirs / ours for theirs, ours in zip(seconds[peer], seconds["ours"], strict=True)]


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": median(values), "lowest": min(values), "highest": max(values)}
