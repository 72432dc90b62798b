"""A peer in a process of its own: built once, then asked for one round at a time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any


class PeerProcess:
    """Runs `module.make(setting)` in a child and times its rounds there.

    A round's time is taken inside the child, around the work alone.
    """

    def __init__(self, module: str, setting: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(module, setting, theirs), daemon=True)
        self._process.start()
        self._receive()

    def round(self, work: Any) -> tuple[float, Any]:
        """Seconds, and what the peer returned (losses)."""
        self._connection.send(work)
        found: tuple[float, Any] = self._receive()
        return found

    def close(self) -> None:
        """Ends the child."""
        self._connection.send(None)
        self._process.join(20)

    def _receive(self) -> Any:
        while not self._connection.poll(1):
            if not self._process.is_alive():
                raise RuntimeError("the peer's process has ended; its message is above")
        return self._connection.recv()


def _serve(module: str, setting: Any, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = str(setting.threads)
    run = importlib.import_module(module).make(setting)
    connection.send("ready")
    while (work := connection.recv()) is not None:
        start = time.perf_counter()
        result = run(work)
        connection.send((time.perf_counter() - start, result))
