"""How long work tells how far it is: a bar on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from fastclf.terminal import say

T = TypeVar("T")

SILENT_SECONDS = 2.0
LINE_SECONDS = 10.0


class Progress:
    """Counts ``total`` units of work; says nothing about work that is done within two seconds.

    ``done`` of them were done before, and do not count in the rate.
    """

    def __init__(self, total: int, what: str, unit: str, *, done: int = 0) -> None:
        self.total, self.what, self.unit = total, what, unit
        self._start = self._last_line = time.monotonic()
        self._done = self._before = done
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", delay=SILENT_SECONDS, leave=False)

    def advance(self, n: int) -> None:
        """Notes that ``n`` more units are done."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._done < self.total and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._line()

    def _line(self) -> None:
        rate = (self._done - self._before) / (time.monotonic() - self._start)
        left = (self.total - self._done) / rate
        share = self._done / self.total
        text = f"{self.what}: {self._done}/{self.total} ({share:.0%}), {rate:.3g} {self.unit}/s, {left:.0f} s left"
        say(text, sys.stderr)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yields ``items``, showing progress of one unit each."""
    with Progress(total, what, unit) as progress:
        for item in items:
            yield item
            progress.advance(1)
