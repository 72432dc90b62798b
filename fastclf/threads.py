"""How many threads this process may run."""

from __future__ import annotations

import os

from fastclf import ranks

_MOST = 8


def available_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def available_threads() -> int:
    """Count the processors this process may use, at most 8; those that train together share a machine's."""
    return min(max(1, available_processors() // ranks.on_this_machine()), _MOST)
