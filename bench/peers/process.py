"""A peer in a process of its own: built once, then asked for one round at a time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class PeerProcess:
    """Runs `module.make(setting)` in a child and times its rounds there.

    A round's time is taken inside the child, around the work alone.

    Attributes:
        peak_memory_mb: the child's largest resident set so far.
    """

    peak_memory_mb: float = 0.0

    def __init__(self, module: str, setting: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(module, setting, theirs), daemon=True)
        self._process.start()
        self._receive()

    def round(self, work: Any) -> tuple[float, Any]:
        """Seconds, and what the peer returned (losses)."""
        self._connection.send(work)
        seconds, result, self.peak_memory_mb = self._receive()
        return seconds, result

    def close(self) -> None:
        """Ends the child."""
        self._connection.send(None)
        self._process.join(20)

    def _receive(self) -> Any:
        while not self._connection.poll(1):
            if not self._process.is_alive():
                raise RuntimeError("the peer's process has ended; its message is above")
        return self._connection.recv()


@contextmanager
def peer_processes(modules: Mapping[str, str], setting: Any) -> Iterator[dict[str, PeerProcess]]:
    """A process for each of `modules` (name -> module of bench.peers), ended together."""
    processes: dict[str, PeerProcess] = {}
    try:
        for name, module in modules.items():
            processes[name] = PeerProcess(f"bench.peers.{module}", setting)
        yield processes
    finally:
        for process in processes.values():
            process.close()


def peak_memory_mb() -> float:
    """The largest resident set of this process so far, libraries and mapped files included."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def _serve(module: str, setting: Any, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    run = importlib.import_module(module).make(setting)
    connection.send("ready")
    while (work := connection.recv()) is not None:
        start = time.perf_counter()
        result = run(work)
        seconds = time.perf_counter() - start
        connection.send((seconds, result, peak_memory_mb()))
