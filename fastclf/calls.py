"""What all calls that compute for long have in common: how they meet Ctrl-C, and a process that was forked."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from fastclf.errors import BackendError

NOTHING_CHANGED = "nothing was changed; call it again."

P = ParamSpec("P")
R = TypeVar("R")

T = TypeVar("T")

_with_threads: WeakSet[Any] = WeakSet()
_process: int | None = None  # whose threads (decoders, runtimes, torch's) have been started


def starts_threads(what: str) -> None:
    """Notes that this process is about to start threads, or to use them.

    Raises:
        BackendError: they were started in the process that this one was forked from, and did not come along: whoever
            waits for them waits for ever.
    """
    global _process
    if is_forked():
        raise BackendError(
            f"{what}: this process was forked from one that had started threads, which do not come along into it. "
            "Start processes with multiprocessing.get_context('spawn'), or fork before fastclf computes anything."
        )
    _process = os.getpid()


def is_forked() -> bool:
    """Whether this process was forked from one that had started threads."""
    return _process not in (None, os.getpid())


def outlives_fork(thing: T) -> T:
    """Keeps an object with threads of its own from ever being destroyed in a forked process.

    Its destructor would end threads that are not there: it waits for ever, or crashes. The memory is the parent's, and
    shared until somebody writes to it.
    """
    _with_threads.add(thing)
    return thing


def _keep_all() -> None:
    for thing in _with_threads:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_keep_all)


def long_call(kept: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function refuse to run in a forked process, and end with one line after Ctrl-C.

    KeyboardInterrupt is raised anew where the function was called, with a message and without the frames that it has
    passed: a traceback shows the caller's lines, one of this module, and the message. In a notebook control returns.

    Args:
        kept: what is there after Ctrl-C, and how to go on; for interrupts that say nothing themselves.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            starts_threads(function.__name__)
            try:
                return function(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                told = interrupt.args or (f"{function.__name__} was stopped: {kept}",)
            # Outside of `except`: as its context, the first one would hold the frames, and they all that was computed.
            raise KeyboardInterrupt(*told)

        return call

    return decorated
