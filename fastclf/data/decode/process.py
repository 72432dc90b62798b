"""The child process that decodes what nobody has decoded before: started once, and anew when a file has killed it."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastclf.errors import BackendError

CRASHED = "the decoder crashed on it"
HUNG = "the decoder did not end"
_PROGRAM = Path(__file__).with_name("worker.py")
_HANGS = 120.0  # seconds without an answer, of which one tells each group of images
_STARTS = 4  # in vain, one after another
_FILES_AT_ONCE = 4096  # of a request


class Decoded(NamedTuple):
    """What came of one file.

    Attributes:
        height: in pixels, orientation applied; 0 where there is no header.
        width: in pixels.
        channels: that the file holds; 3 for a palette.
        renamed: 1 where the extension names another format.
        copied: True when Pillow decoded it, and its copy is written; False when DALI did; None when nobody did.
        why: why it cannot be decoded; empty where it can, and where it has too many pixels.
    """

    height: int = 0
    width: int = 0
    channels: int = 0
    renamed: int = 0
    copied: bool | None = None
    why: str = ""


@dataclass(frozen=True)
class Task:
    """How files are decoded.

    Attributes:
        files: each file, and where its copy goes if it needs one.
        max_pixels: of a file with more, only the header is read.
        num_threads: that decode.
        pillow: whether Pillow decodes everything.
    """

    files: Sequence[tuple[str, str]]
    max_pixels: int
    num_threads: int
    pillow: bool = False


def decode(task: Task, note: Callable[[int, Decoded], None]) -> None:
    """Decode files in the child process, and note what came of each, in no order.

    A file that crashes the process when it is alone, with DALI and with Pillow, is bad.

    Raises:
        OSError: a copy cannot be written; says which file's.
        BackendError: the process cannot be started.
    """
    with _lock:
        _Run(task, note).run()


class _Run:
    """One task: requests, and after the death of the process smaller ones for what it had in hand."""

    def __init__(self, task: Task, note: Callable[[int, Decoded], None]) -> None:
        self._task, self._note = task, note
        self._deaths: Counter[int] = Counter()  # of the process, with this file alone
        n = len(task.files)
        self._requests = deque([*range(i, min(i + _FILES_AT_ONCE, n))] for i in range(0, n, _FILES_AT_ONCE))
        self._in_vain = 0
        self._hung = False

    def run(self) -> None:
        while self._requests:
            rows = self._requests.popleft()
            left, hand = dict.fromkeys(rows), set[int]()
            whole = False
            try:
                whole = self._ask(rows, left, hand)
            finally:
                if not whole:
                    _stop()
            if not whole:
                self._after_death([row for row in left if row in hand], [row for row in left if row not in hand])

    def _ask(self, rows: list[int], left: dict[int, None], hand: set[int]) -> bool:
        """Send a request and note its answers; False when the process died of it."""
        pillow = self._task.pillow or self._deaths[rows[0]] > 0
        files = [self._task.files[row] for row in rows]
        request = {"max_pixels": self._task.max_pixels, "threads": self._task.num_threads, "pillow": pillow}
        process = _started()
        for answer in process.answers({"files": files, **request}):
            self._in_vain = 0
            if "end" in answer:
                return True
            if "hand" in answer:
                hand.update(rows[i] for i in answer["hand"])
                continue
            row = rows[answer["row"]]
            if "unkept" in answer:
                name, copy = self._task.files[row]
                raise OSError(
                    f"the copy of {name} cannot be written to {Path(copy).parent}: {answer['unkept']}. Make room, or "
                    "set XDG_CACHE_HOME to another folder."
                )
            del left[row]
            height, width, channels, renamed = answer.get("shape", (0, 0, 0, 0))
            self._note(row, Decoded(height, width, channels, renamed, answer.get("copied"), answer.get("why", "")))
        self._hung = process.hung
        return False

    def _after_death(self, suspects: list[int], others: list[int]) -> None:
        if others:
            self._requests.appendleft(others)
        if not suspects:
            self._in_vain += 1
            if self._in_vain == _STARTS:
                raise BackendError(f"the process that decodes images ends at once: {_last_words}")
        elif len(suspects) == 1:
            row = suspects[0]
            self._deaths[row] += 1
            if self._hung or self._deaths[row] > 2:
                self._note(row, Decoded(why=HUNG if self._hung else CRASHED))
            else:
                self._requests.appendleft([row])
        else:
            self._requests.extendleft([row] for row in suspects)


def _interpreter() -> str:
    """The interpreter to start; the one that runs where its path may not be searched, as after a change of user."""
    return sys.executable if os.access(sys.executable, os.X_OK) else "/proc/self/exe"


class _Process:
    """The running child.

    Attributes:
        hung: whether it was silent for too long.
    """

    def __init__(self) -> None:
        self.hung = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            executable=_interpreter(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent alone
        )

    def answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request; yield answers until the process dies or is silent for too long."""
        assert self._child.stdin is not None
        try:
            left = memoryview(json.dumps(request).encode() + b"\n")
            while left:
                left = left[self._child.stdin.write(left) :]
        except BrokenPipeError:
            return
        yield from map(json.loads, self._lines())

    def _lines(self) -> Iterator[bytes]:
        assert self._child.stdout is not None
        handle, text = self._child.stdout.fileno(), b""
        while select.select([handle], [], [], _HANGS)[0]:
            piece = os.read(handle, 1 << 16)
            if not piece:
                return
            *lines, text = (text + piece).split(b"\n")
            yield from lines
        self.hung = True

    def stop(self) -> str:
        """End it, and return its last words."""
        self._child.kill()
        self._child.wait()
        size = os.fstat(self._errors.fileno()).st_size
        last = os.pread(self._errors.fileno(), 300, max(0, size - 300)).decode(errors="replace").strip()
        self.forget()
        return last

    def forget(self) -> None:
        """Close what leads to it."""
        self._child.returncode = self._child.returncode or 0  # of a forked process it is no child
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


_lock = threading.Lock()
_process: _Process | None = None
_last_words = ""


def _started() -> _Process:
    global _process
    _process = _process or _Process()
    return _process


def _stop() -> None:
    global _process, _last_words
    if _process is not None:
        stopped, _process = _process, None
        _last_words = stopped.stop()


def _forget() -> None:
    """In a forked process: the child answers the one that started it."""
    global _lock, _process
    _lock = threading.Lock()
    if _process is not None:
        _process.forget()
        _process = None


atexit.register(_stop)
os.register_at_fork(after_in_child=_forget)
