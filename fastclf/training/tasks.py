"""Tasks on threads of their own, which an interrupt or an error ends together."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from threading import Event
from typing import Any, Protocol

from fastclf.interrupts import Interrupts
from fastclf.report import Progress

_SECONDS_TO_SIGNALS = 0.1


class StoppedError(Exception):
    """Ends a task whose event is set; `run_all` raises what set it."""


def go_on(stop: Event) -> None:
    """Raise `StoppedError` once the event is set."""
    if stop.is_set():
        raise StoppedError


class Task(Protocol):
    """What `run_all` runs."""

    @property
    def work(self) -> Sequence[Any]:
        """The heads that it trains."""

    def __call__(self, stop: Event) -> None:
        """Train them; ask `go_on` often."""


def run_all(tasks: Sequence[Task], workers: int) -> None:
    """Run tasks on threads of their own; an interrupt or an error ends all, and none begins after it."""
    stop = Event()
    with (
        Interrupts() as interrupts,
        Progress(sum(len(task.work) for task in tasks), "train", "heads") as progress,
        ThreadPoolExecutor(workers, "fastclf-head") as pool,
        interrupts.released(),
    ):
        try:
            sizes = {pool.submit(task, stop): len(task.work) for task in tasks}
            left = set(sizes)
            while left:
                done, left = wait(left, timeout=_SECONDS_TO_SIGNALS, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    progress.advance(sizes[future])
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
