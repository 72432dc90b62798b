"""Tasks on threads of their own, which an interrupt or an error ends together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, Protocol

from fastclf.interrupts import Interrupts
from fastclf.report import Progress

_SECONDS_TO_SIGNALS = 0.1


class Task(Protocol):
    """What `run_all` runs."""

    @property
    def work(self) -> Sequence[Any]:
        """The heads that it trains."""

    def __call__(self, stop: Event) -> None:
        """Train them; return early once the event is set."""


def run_all(tasks: Sequence[Task], workers: int) -> None:
    """Run tasks, which end early once the event is set, on threads of their own; an interrupt or an error sets it."""
    stop = Event()
    with (
        Interrupts() as interrupts,
        Progress(sum(len(task.work) for task in tasks), "train", "heads") as progress,
        ThreadPoolExecutor(workers, "fastclf-head") as pool,
        interrupts.released(),
    ):
        sizes = {pool.submit(task, stop): len(task.work) for task in tasks}
        left = set(sizes)
        try:
            while left:
                done, left = wait(left, timeout=_SECONDS_TO_SIGNALS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    progress.advance(sizes[future])
        finally:
            stop.set()
