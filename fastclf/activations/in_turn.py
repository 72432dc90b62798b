"""Calls one after another, on a thread of their own while their caller goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

from fastclf.calls import starts_threads

P = ParamSpec("P")


class InTurn:
    """Makes calls in the order in which they come.

    At the end of a ``with`` block all of them have returned. An error that one of them raises is raised by a later
    `call` or by the end of the block, unless the block ends with an error of its own; calls after it are made all the
    same.

    Args:
        most: calls that may be under way, or wait; 0 makes each at once, on the caller's thread.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[object]] = deque()

    def call(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Make a call after those before it; wait while too many are under way."""
        if not self._most:
            function(*args, **kwargs)
            return
        if self._pool is None:
            starts_threads("write")
            self._pool = ThreadPoolExecutor(1)
        while len(self._under_way) >= self._most:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(function, *args, **kwargs))

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        while kind is None and self._under_way:
            self._under_way.popleft().result()
