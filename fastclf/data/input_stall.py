"""Which side of a pass over images stalls on the other, in one line with what would help."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

_SHORT = 5.0  # seconds: a shorter pass is mostly its start
_READY = 1e-3  # seconds: a batch that comes sooner was ready before it was asked for
_MUCH = 0.3  # share of the pass that is worth a line
_MOST = 0.8


def available_processors() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0))


@dataclass
class InputStall:
    """Times of one pass over images.

    Attributes:
        num_threads: threads that decode.
        stalled: seconds that the consumer waited for images.
        idle: seconds that the consumer worked while its next batch lay ready, so that the images waited for it.
        total: seconds of the pass, up to the last batch that was asked for.
    """

    num_threads: int = 0
    stalled: float = 0.0
    idle: float = 0.0
    total: float = 0.0
    _given: float | None = None
    _asked: float = 0.0

    def asked(self) -> None:
        """Note that the consumer asks for a batch."""
        self._asked = time.perf_counter()

    def given(self) -> None:
        """Note that this batch is there, and given to the consumer."""
        now = time.perf_counter()
        wait, work = now - self._asked, 0.0 if self._given is None else self._asked - self._given
        self.stalled += wait
        self.idle += work if wait < _READY else 0.0
        self.total += wait + work
        self._given = now

    def line(self, what: str) -> str | None:
        """Return one line about which side waited and what would help; None when the pass was short or balanced.

        Args:
            what: name of the pass, which begins the line.
        """
        if self.total < _SHORT:
            return None
        if self.stalled >= _MUCH * self.total:
            threads = "more decoding threads (num_workers=) or " if self.num_threads < available_processors() else ""
            return (
                f"{what}: {self.stalled / self.total:.0%} of the time was spent waiting for images; "
                f"{threads}smaller images (data.resize) would help"
            )
        if self.idle >= _MOST * self.total:
            return (
                f"{what}: images were ready before the network for {self.idle / self.total:.0%} of the time; "
                "a smaller network, smaller images (sz) or a GPU would help, more decoding threads would not"
            )
        return None
