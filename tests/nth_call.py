"""Makes the N-th call to the operating system fail, or end the process."""

import os
import signal
from collections.abc import Callable

CALLS = [
    (os, name)
    for name in (
        "open",
        "write",
        "pread",
        "fsync",
        "posix_fallocate",
        "ftruncate",
        "lseek",
        "mkdir",
        "rename",
        "unlink",
        "rmdir",
        "scandir",
        "close",
    )
]


class NthCall:
    """Counts calls; at the ``n``-th, does ``then(call, arguments)`` in its place."""

    def __init__(self, monkeypatch, n: int, then: Callable, without=()) -> None:
        self.n, self.then, self.calls = n, then, 0
        for module, name in CALLS:
            if name not in without:
                monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name, call):
        def counted(*args, **kwargs):
            self.calls += 1
            if self.calls == self.n:
                self.then(name, call, args)
            return call(*args, **kwargs)

        return counted


def in_child(run: Callable[[], object], seconds: float = 60) -> int:
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


def kill(name, call, args):
    """Ends the process as kill -9 would; a write is done by half."""
    if name == "write":
        call(args[0], bytes(args[1])[: len(args[1]) // 2])
    os._exit(137)
