"""Ctrl-C and SIGTERM that wait until nothing is half done."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], Any]

_SOON = 1e-3  # seconds


class Interrupts:
    """While the block runs, Ctrl-C and SIGTERM wait for `check`, for `released`, or for its end.

    Then they do what they did before: Ctrl-C raises KeyboardInterrupt, and SIGTERM, which would end the process at
    once, raises ``SystemExit(143)``, so that everything on the way is cleaned up. The second signal of a kind that
    comes while the first one waits is delivered at once. Handlers are restored on leaving. Outside the main thread, and
    for signals that are ignored, nothing changes.

    Attributes:
        at_rest: whether the signal that ends the block met it in `check` or in `released`, where all is consistent.
        waiting: the number of the signal that waits, or None.
    """

    def __init__(self) -> None:
        self.at_rest = False
        self._before: dict[int, _Handler | int] = {}
        self._waiting: int | None = None
        self._expected: int | None = None  # has come to another process before this one
        self._released = False

    def __enter__(self) -> Interrupts:
        self._before = _replace_handlers(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        _put_back(self._before)
        self.check()

    @property
    def waiting(self) -> int | None:
        """See above."""
        return self._waiting

    def check(self, other: int | None = None) -> None:
        """Deliver a signal that waits. To be called where nothing is half done.

        Args:
            other: a signal that has come to another process and concerns this one too.
        """
        if self._waiting is None:
            self._expected = other
        number = self._waiting if other is None else other
        if number is not None:
            self.at_rest = True
            self._deliver(number)
            self.at_rest = False

    @contextmanager
    def released(self) -> Iterator[None]:
        """Deliver signals at once in a block: nothing that counts can be half done in it."""
        self.check()
        self._released = self.at_rest = True
        try:
            yield
        finally:
            self._released = False
        self.at_rest = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == self._expected:
            self._expected = None
        elif self._released or self._waiting == number:
            self._deliver(number, frame)
        else:
            self._waiting = number

    def _deliver(self, number: int, frame: FrameType | None = None) -> None:
        self._waiting = None
        before = self._before.get(number, signal.getsignal(number))
        if not callable(before):
            raise SystemExit(128 + number)
        before(number, frame)


@contextmanager
def postponed() -> Iterator[None]:
    """Ctrl-C and SIGTERM in the block come just after it: for finalisers, in which an exception would be lost."""
    came: set[int] = set()
    before = _replace_handlers(lambda number, _: came.add(number))
    try:
        yield
    finally:
        for number in came:
            threading.Thread(target=_send_after, args=(_outermost(), number), daemon=True).start()
        _put_back(before)


def finaliser(let_go: Callable[[Any], object]) -> Callable[[Any], None]:
    """Return a ``__del__`` that lets go of what the object holds, and loses no signal.

    At the interpreter's end it does nothing: what it needs may be gone, and the system takes all back.
    """
    is_ending, waiting = sys.is_finalizing, postponed

    def __del__(self: Any) -> None:  # noqa: N807  # the name that `_outermost` looks for
        if not is_ending():
            with waiting():
                let_go(self)

    return __del__


def _outermost() -> FrameType:
    """Return the frame of the outermost finaliser that is running; of the caller where there is none."""
    found = frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        found = frame if frame.f_code.co_name == "__del__" else found
    return found


def _send_after(frame: FrameType, number: int) -> None:
    """Send a signal to the main thread once a frame of it has returned."""
    main = threading.main_thread().ident
    assert main is not None
    while any(one is frame for one, _ in traceback.walk_stack(sys._current_frames()[main])):
        time.sleep(_SOON)
    time.sleep(_SOON)  # this thread has just been let run because the main one waits: it may be about to, and oversleep
    signal.pthread_kill(main, number)


def _replace_handlers(handler: _Handler) -> dict[int, _Handler | int]:
    """Let a function handle Ctrl-C and SIGTERM, but for signals that are ignored; return the handlers before.

    Outside the main thread, where Python runs no handlers, nothing changes.
    """
    before: dict[int, _Handler | int] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            old = signal.getsignal(number)
            if old is not None and old != signal.SIG_IGN:  # None: not set from Python
                before[number] = old
                signal.signal(number, handler)
    return before


def _put_back(handlers: dict[int, _Handler | int]) -> None:
    for number, handler in reversed(handlers.items()):
        signal.signal(number, handler)
