"""What long calls have in common: how they end after Ctrl-C, that none runs in a forked process, or under settings."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

from fastclf.errors import BackendError
from fastclf.settings import own_settings

NOTHING_CHANGED = "nothing was changed; call it again."

P = ParamSpec("P")
R = TypeVar("R")

T = TypeVar("T")

_with_threads: WeakSet[Any] = WeakSet()
_process: int | None = None  # whose threads (decoders, runtimes, torch's) have been started


def starts_threads(what: str) -> None:
    """Note that this process is about to start threads, or to use them.

    Raises:
        BackendError: they were started in the process that this one was forked from. They do not exist here, and a
            call that waits for them would wait for ever.
    """
    global _process
    if is_forked():
        raise BackendError(
            f"{what}: this process was forked from one that had started threads, which do not come along into it. "
            "Start processes with multiprocessing.get_context('spawn'), or fork before fastclf computes anything."
        )
    _process = os.getpid()


def is_forked() -> bool:
    """Return whether this process was forked from one that had started threads."""
    return _process not in (None, os.getpid())


def outlives_fork(thing: T) -> T:
    """Keep an object with threads of its own from being destroyed in a forked process, and return it.

    Its destructor would wait for threads that do not exist there: for ever, or until it crashes. Its memory is shared
    with the parent until one of them writes to it.
    """
    _with_threads.add(thing)
    return thing


def _keep_all() -> None:
    for thing in _with_threads:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


os.register_at_fork(after_in_child=_keep_all)


def long_call(kept: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function refuse to run in a forked process, end with one line after Ctrl-C, and compute in `own_settings`.

    KeyboardInterrupt is raised anew where the function was called, with a message and without the frames that it has
    passed: a traceback shows the caller's lines, one of this module, and the message.

    Args:
        kept: what Ctrl-C leaves, and how to go on; for interrupts that have no message.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__.lstrip("_")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            starts_threads(name)
            try:
                with own_settings():
                    return function(*args, **kwargs)
            except KeyboardInterrupt as interrupt:
                message = interrupt.args or (f"{name} was stopped: {kept}",)
            # Outside of `except`: as its context, the first one would hold the frames, and they all that was computed.
            raise KeyboardInterrupt(*message)

        return call

    return decorated
