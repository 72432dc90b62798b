"""Which of several ways is fastest on this machine: measured once, then remembered, so that it never flips."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastclf.files import temporary_sibling, user_cache, write_new

_ROUNDS, _SECONDS = 3, 1.5


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else os.uname().machine


def remembered(situation: Mapping[str, Any]) -> str | None:
    """The choice that was made in this situation, or None."""
    return _choice_in(_file(situation))


def _choice_in(file: Path) -> str | None:
    try:
        choice = json.loads(file.read_text())["choice"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return choice if isinstance(choice, str) else None


def choose(situation: Mapping[str, Any], ways: Mapping[str, Callable[[], object]], default: str) -> str:
    """Measures ``ways`` and remembers the fastest, in a file of its own in the user's cache.

    Another process that chose meanwhile has chosen for this one too. Where nothing can be remembered, ``default`` is
    taken: a choice by measurement could be another one the next time, and results would change in their last bits.
    """
    seconds = measure(ways)
    choice = min(seconds, key=lambda name: seconds[name])
    try:
        _remember(_file(situation), json.dumps({**situation, "seconds": seconds, "choice": choice}, indent=1))
    except OSError:
        return default
    return remembered(situation) or default


def _remember(file: Path, text: str) -> None:
    """Puts ``text`` in place in one step, unless a file that can be read is there."""
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


def measure(ways: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest of up to three interleaved runs each, in seconds; all have run before."""
    best = dict.fromkeys(ways, float("inf"))
    start = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, run in ways.items():
            before = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - before)
        if time.perf_counter() - start > _SECONDS:
            break
    return best


def _file(situation: Mapping[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(situation, sort_keys=True).encode()).hexdigest()
    return user_cache() / "runtimes" / f"{key[:32]}.json"
