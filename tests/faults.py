"""Makes calls that change what is on disk fail, or end the process, at the one seam that all of them pass."""

import os
import shutil
import signal
from collections.abc import Callable

from fastclf import files

real = files.on_disk


class NthCall:
    """Counts calls; at the ``n``-th, does ``then(call, arguments)`` before it."""

    def __init__(self, monkeypatch, n: int, then: Callable) -> None:
        self.n, self.then, self.calls = n, then, 0
        monkeypatch.setattr(files, "on_disk", self)

    def __call__(self, call, *args, **kwargs):
        self.calls += 1
        if self.calls == self.n:
            self.then(call, args)
        return real(call, *args, **kwargs)


def replaced(monkeypatch, name: str, action: Callable) -> None:
    """Makes every call of a function or method ``name`` an ``action(call, *args, **kwargs)``."""

    def on_disk(call, *args, **kwargs):
        return action(call, *args, **kwargs) if call.__name__ == name else real(call, *args, **kwargs)

    monkeypatch.setattr(files, "on_disk", on_disk)


def kill(call, args):
    """Ends the process as kill -9 would; a write, or the removal of a folder, is done by half."""
    if call is os.write:
        call(args[0], bytes(args[1])[: len(args[1]) // 2])
    elif call is shutil.rmtree and args[0].exists():
        next(args[0].iterdir()).unlink()
    os._exit(137)


def in_child(run: Callable[[], object], seconds: float = 300) -> int:
    """Runs in a forked child; its exit status: 0, 1 after an error, 137 when it killed itself."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(seconds))  # never a hang
            run()
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
