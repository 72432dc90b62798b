"""Which of several implementations is fastest on this machine: measured once and cached, so that it never flips."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastclf.files import temporary_sibling, write_new
from fastclf.paths import user_cache

_ROUNDS, _SECONDS = 3, 1.5


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def cached(situation: Mapping[str, Any]) -> str | None:
    """Return the choice that was made in this situation, or None."""
    return _choice_in(_file(situation))


def _choice_in(file: Path) -> str | None:
    try:
        choice = json.loads(file.read_text())["choice"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if isinstance(choice, str) else None


def autotune(situation: Mapping[str, Any], candidates: Mapping[str, Callable[[], object]], default: str) -> str:
    """Return the name of the fastest candidate, and cache it, in a file of its own in the user's cache.

    Where another process has cached one meanwhile, that is returned. Where nothing can be cached, ``default`` is: a
    choice by measurement could be another one the next time, and results would change in their last bits.
    """
    seconds = measure(candidates)
    choice = min(seconds, key=lambda name: seconds[name])
    try:
        _cache(_file(situation), json.dumps({**situation, "seconds": seconds, "choice": choice}, indent=1))
    except OSError:
        return default
    return cached(situation) or default


def _cache(file: Path, text: str) -> None:
    """Put ``text`` in place in one step, unless a file that can be read is there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(file)
    try:
        write_new(temporary, text.encode())
        os.link(temporary, file)
    except FileExistsError:
        if _choice_in(file) is None:  # damaged
            temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def measure(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the shortest of up to three interleaved runs each, in seconds; all have run before."""
    best = dict.fromkeys(candidates, float("inf"))
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, run in candidates.items():
            before = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - before)
        if time.perf_counter() - start > _SECONDS:
            break
    return best


def _file(situation: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(situation, sort_keys=True).encode()).hexdigest()
    return user_cache() / "runtimes" / f"{key[:32]}.json"
