"""Which side of a pass over images stalls on the other, in one line with what would help."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from fastclf.threads import available_processors

_SHORT = 5.0  # seconds: a shorter pass is mostly its start
_READY = 1e-3  # seconds: a batch that comes sooner was ready before it was asked for
_MUCH = 0.3  # share of the pass that is worth a line
_MOST = 0.8


class Marks(Protocol):
    """Marks moments of the consumer's work."""

    def now(self) -> Any:
        """Mark the moment at which the consumer has done all that it was given by now."""

    def is_past(self, mark: Any) -> bool:
        """Return whether the consumer has got there."""

    def wait(self, mark: Any) -> None:
        """Wait until the consumer has got there."""

    def seconds(self, first: Any, last: Any) -> float:
        """Return the time between two marks that are past."""


class HostMarks:
    """Times of this thread, which does the consumer's work itself."""

    def now(self) -> float:
        """See `Marks`."""
        return time.perf_counter()

    def is_past(self, mark: float) -> bool:
        """See `Marks`."""
        return True

    def wait(self, mark: float) -> None:
        """See `Marks`."""

    def seconds(self, first: float, last: float) -> float:
        """See `Marks`."""
        return last - first


class GpuMarks:
    """Times of a GPU, for which this thread only launches work: by its clock, it is done with a batch at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def now(self) -> torch.cuda.Event:
        """See `Marks`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def is_past(self, mark: torch.cuda.Event) -> bool:
        """See `Marks`."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def wait(self, mark: torch.cuda.Event) -> None:
        """See `Marks`."""
        mark.synchronize()

    def seconds(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """See `Marks`."""
        return float(first.elapsed_time(last)) / 1e3  # from milliseconds


def marks_on(device: torch.device) -> Marks:
    """Return the marks of a consumer that works on a device."""
    return GpuMarks(device) if device.type == "cuda" else HostMarks()


@dataclass
class InputStall:
    """Times of one pass over images.

    Attributes:
        num_threads: threads that decode.
        marks: of the consumer.
        stalled: seconds that the consumer waited for images.
        idle: seconds that the consumer worked while its next batch lay ready, so that the images waited for it.
        total: seconds of the pass, up to the last batch that was asked for.
    """

    num_threads: int = 0
    marks: Marks = field(default_factory=HostMarks, compare=False)
    stalled: float = 0.0
    idle: float = 0.0
    total: float = 0.0
    _given: Any = None
    _asked: Any = None
    _open: deque[tuple[Any, Any, Any]] = field(default_factory=deque)  # batch before given, batch asked for, and given

    def asked(self) -> None:
        """Note that the consumer asks for a batch."""
        self._asked = self.marks.now()

    def given(self) -> None:
        """Note that this batch is there, and given to the consumer."""
        now = self.marks.now()
        self._open.append((self._given, self._asked, now))
        self._given = now
        while self._open and all(mark is None or self.marks.is_past(mark) for mark in self._open[0]):
            self._add(*self._open.popleft())

    def _add(self, before: Any, asked: Any, given: Any) -> None:
        wait = self.marks.seconds(asked, given)
        work = 0.0 if before is None else self.marks.seconds(before, asked)
        self.stalled += wait
        self.idle += work if wait < _READY else 0.0
        self.total += wait + work

    def _settle(self) -> None:
        for before, asked, given in self._open:
            self.marks.wait(given)
            self._add(before, asked, given)
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles have: a GPU's marks cannot be copied."""
        return self.__dict__ | {"_given": None, "_asked": None, "_open": deque()}

    def line(self, what: str) -> str | None:
        """Return one line about which side waited and what would help; None when the pass was short or balanced.

        Args:
            what: name of the pass, which begins the line.
        """
        self._settle()
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
