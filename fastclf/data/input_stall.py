"""Which side of a pass over pictures waited for the other, in one line with what would help."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

_SHORT = 5.0  # seconds: a shorter pass is mostly its start
_READY = 1e-3  # seconds: a batch that comes sooner was ready before it was asked for
_MUCH = 0.3  # share of the pass that is worth a line
_MOST = 0.8


def available_processors() -> int:
    """Counts the processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class Waiting:
    """Times of one pass over the pictures.

    Attributes:
        num_threads: threads that decode.
        pictures: seconds that the consumer waited for pictures.
        consumer: seconds that the consumer worked while its next batch lay ready, so that the pictures waited for it.
        total: seconds of the pass, up to the last batch that was asked for.
    """

    num_threads: int = 0
    pictures: float = 0.0
    consumer: float = 0.0
    total: float = 0.0
    _given: float | None = None
    _asked: float = 0.0

    def asked(self) -> None:
        """Notes that the consumer asks for a batch."""
        self._asked = time.perf_counter()

    def ready(self) -> None:
        """Notes that this batch is there, and given to the consumer."""
        now = time.perf_counter()
        wait, work = now - self._asked, 0.0 if self._given is None else self._asked - self._given
        self.pictures += wait
        self.consumer += work if wait < _READY else 0.0
        self.total += wait + work
        self._given = now

    def line(self, what: str) -> str | None:
        """Says in one line which side waited and what would help; None when the pass was short or balanced.

        Args:
            what: name of the pass, which begins the line.
        """
        if self.total < _SHORT:
            return None
        if self.pictures >= _MUCH * self.total:
            threads = "more decoding threads (num_workers=) or " if self.num_threads < available_processors() else ""
            return (
                f"{what}: the pictures were waited for {self.pictures / self.total:.0%} of the time; "
                f"{threads}smaller pictures (data.resize) would help"
            )
        if self.consumer >= _MOST * self.total:
            return (
                f"{what}: the pictures waited for the network {self.consumer / self.total:.0%} of the time; "
                "a smaller network, smaller pictures (sz) or a GPU would help, more decoding threads would not"
            )
        return None
