"""The child process that decodes what nobody has decoded before: started once, and anew when a file has killed it."""

from __future__ import annotations

import atexit
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from fastclf.errors import BackendError
from fastclf.interrupts import finaliser
from fastclf.report import log_once

CRASHED = "the decoder crashed on it"
HUNG = "the decoder did not end"
_PROGRAM = Path(__file__).with_name("worker.py")
_HANGS = 120.0  # seconds without an answer, of which one tells each group of images
_STARTS = 4  # in vain, one after another
_FILES_AT_ONCE = 4096  # of a request
_NO_DALI = (
    "predict: Pillow decodes the images, which takes longer: NVIDIA DALI is not installed (pip install "
    "nvidia-dali-cuda130)"
)
_WITHOUT_DOCSTRINGS = "PYTHONOPTIMIZE"  # under which DALI cannot be imported
_PREFIXES = (sys.prefix, sys.base_prefix)
_BUFFERS = 2  # of pixels: one is read while the other is filled


class Decoded(NamedTuple):
    """What came of one file.

    Attributes:
        height: in pixels, orientation applied; 0 where there is no header.
        width: in pixels.
        channels: that the file holds; 3 for a palette.
        renamed: 1 where the extension names another format.
        copied: True when Pillow decoded it, and its copy is written; False when DALI did; None when nobody did.
        why: why it cannot be decoded; empty where it can, and where it has too many pixels.
        pixels: `[H, W, 3]`, of `Child.pixels` alone.
    """

    height: int = 0
    width: int = 0
    channels: int = 0
    renamed: int = 0
    copied: bool | None = None
    why: str = ""
    pixels: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Task:
    """How files are decoded.

    Attributes:
        files: each file, and where its copy goes if it needs one and pixels are not handed over.
        max_pixels: of a file with more, only the header is read.
        num_threads: that decode.
        pillow: whether Pillow decodes everything.
    """

    files: Sequence[tuple[str, str]]
    max_pixels: int
    num_threads: int
    pillow: bool = False


def decode(task: Task, note: Callable[[int, Decoded], None]) -> None:
    """Decode files in the child process that all share, and note what came of each, in no order.

    A file that crashes the process when it is alone, with DALI and with Pillow, is bad.

    Raises:
        OSError: a copy cannot be written; says which file's.
        BackendError: the process cannot be started.
    """
    with _lock, closing(_Run(_shared, task, hands_over=False).groups()) as groups:
        for group in groups:
            for row, decoded in group:
                note(row, decoded)


DecodedParts: TypeAlias = Generator[list[tuple[int, Decoded]], None, None]
"""What came of files, some at a time: the number of each in its task, and what it is. To be closed."""


class Child:
    """A child process, which is started when it is needed."""

    def __init__(self) -> None:
        self.process: _Process | None = None
        self.last_words = ""
        _children.add(self)

    def pixels(self, task: Task) -> DecodedParts:
        """Decode files; yield what came of each, in groups, in the order of the files but for those that are bad.

        Decoding goes on while a group is used; there is memory for so many pixels ahead as a group may have.
        A group's pixels are valid until the next group is asked for. Errors and crashes as in `decode`.
        """
        return _Run(self, task, hands_over=True).groups()

    def started(self) -> _Process:
        """Return the running process."""
        self.process = self.process or _Process()
        return self.process

    def stop(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            stopped, self.process = self.process, None
            self.last_words = stopped.stop()

    def forget(self) -> None:
        """In a forked process: the process answers the one that started it."""
        if self.process is not None:
            self.process.forget()
            self.process = None

    __del__ = finaliser(stop)


class _Run:
    """One task: requests, and after the death of the process smaller ones for what it had in hand."""

    def __init__(self, child: Child, task: Task, *, hands_over: bool) -> None:
        self._child, self._task, self._hands_over = child, task, hands_over
        self._deaths: Counter[int] = Counter()  # of the process, with this file alone
        n = len(task.files)
        self._requests = deque([*range(i, min(i + _FILES_AT_ONCE, n))] for i in range(0, n, _FILES_AT_ONCE))
        self._in_vain = 0
        self._hung = False

    def groups(self) -> DecodedParts:
        """Yield what came of files, some at a time."""
        while self._requests:
            rows = self._requests.popleft()
            left, hand = dict.fromkeys(rows), set[int]()
            whole = False
            try:
                whole = yield from self._ask(rows, left, hand)
            finally:
                if not whole:
                    self._child.stop()
            if not whole:
                suspects = [row for row in left if row in hand]
                yield from self._after_death(suspects, [row for row in left if row not in hand])

    def _ask(
        self, rows: list[int], left: dict[int, None], hand: set[int]
    ) -> Generator[list[tuple[int, Decoded]], None, bool]:
        """Send a request and yield its answers; return False when the process died of it."""
        pillow = self._task.pillow or self._deaths[rows[0]] > 0
        request = {"max_pixels": self._task.max_pixels, "threads": self._task.num_threads, "pillow": pillow}
        files = [self._task.files[row] for row in rows]
        process = self._child.started()
        for answer in process.answers({"files": files, "pixels": self._hands_over, **request}):
            self._in_vain = 0
            if "end" in answer:
                return True
            if "hand" in answer:
                hand.update(rows[i] for i in answer["hand"])
                if self._hands_over and not answer["dali"]:
                    log_once(_NO_DALI)
            elif "rows" in answer:
                group = [rows[i] for i in answer["rows"]]
                for row in group:
                    del left[row]
                images = process.images(answer["buffer"], [shape[:2] for shape in answer["shapes"]])
                found = zip(group, answer["shapes"], images, strict=True)
                yield [(row, Decoded(*shape[:4])._replace(pixels=image)) for row, shape, image in found]
                process.send({"free": answer["buffer"]})
            else:
                row = rows[answer["row"]]
                if "unkept" in answer:
                    name, copy = self._task.files[row]
                    raise OSError(
                        f"the copy of {name} cannot be written to {Path(copy).parent}: {answer['unkept']}. Make room, "
                        "or set XDG_CACHE_HOME to another folder."
                    )
                del left[row]
                height, width, channels, renamed = answer.get("shape", (0, 0, 0, 0))
                decoded = Decoded(height, width, channels, renamed, answer.get("copied"), answer.get("why", ""))
                yield [(row, decoded)]
        self._hung = process.hung
        return False

    def _after_death(self, suspects: list[int], others: list[int]) -> DecodedParts:
        if others:
            self._requests.appendleft(others)
        if not suspects:
            self._in_vain += 1
            if self._in_vain == _STARTS:
                raise BackendError(f"the process that decodes images ends at once: {self._child.last_words}")
        elif len(suspects) == 1:
            row = suspects[0]
            self._deaths[row] += 1
            if self._hung or self._deaths[row] > 2:
                yield [(row, Decoded(why=HUNG if self._hung else CRASHED))]
            else:
                self._requests.appendleft([row])
        else:
            self._requests.extendleft([row] for row in reversed(suspects))


def _interpreter() -> tuple[str, str]:
    """Return the name of the interpreter, beside which it finds its packages, and the file to start.

    A program that embeds Python has its own name in ``sys.executable``, or none. Where no path may be searched, as
    after a change of user, what runs is started again.
    """
    beside = [f"{prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}" for prefix in _PREFIXES]
    for name in (sys.executable, *beside):
        if _is_python(name) and os.access(name, os.X_OK):
            return name, name
    if _is_python("/proc/self/exe"):
        return sys.executable or beside[0], "/proc/self/exe"
    raise BackendError(
        "images are decoded by a Python process of its own, and none is found: sys.executable is "
        f"{sys.executable!r}, and there is no {beside[0]}. Set sys.executable to the path of Python "
        f"{sys.version_info.major}.{sys.version_info.minor}."
    )


def _is_python(file: str | None) -> bool:
    return os.path.basename(os.path.realpath(file or "")).startswith(("python", "pypy"))  # noqa: PTH119  # may be empty


class _Process:
    """The running child.

    Attributes:
        hung: whether it was silent for too long.
    """

    def __init__(self) -> None:
        name, file = _interpreter()
        self.hung = False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._buffers = [os.memfd_create(f"fastclf-{i}") for i in range(_BUFFERS)]
        self._maps: dict[int, mmap.mmap] = {}
        answers, to_answer = os.pipe()  # not standard output, to which whatever starts with Python may print
        self._answers = os.fdopen(answers, "rb", buffering=0)
        handles = [to_answer, *self._buffers]
        try:
            self._child = subprocess.Popen(
                [name, "-P", str(_PROGRAM), os.pathsep.join(map(str, sys.path)), *map(str, handles)],
                pass_fds=handles,
                executable=file,
                stdin=subprocess.PIPE,
                stdout=self._errors,
                stderr=self._errors,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal is for the parent alone
                env={name: value for name, value in os.environ.items() if name != _WITHOUT_DOCSTRINGS},
            )
        finally:
            os.close(to_answer)

    def answers(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request; yield answers until the process dies or is silent for too long."""
        self.send(request)
        yield from map(json.loads, self._lines())

    def send(self, message: dict[str, Any]) -> None:
        """Send a line; a process that has died shows when its answers end."""
        assert self._child.stdin is not None
        with suppress(BrokenPipeError):
            left = memoryview(json.dumps(message).encode() + b"\n")
            while left:
                left = left[self._child.stdin.write(left) :]

    def images(self, buffer: int, shapes: Sequence[Sequence[int]]) -> list[npt.NDArray[np.uint8]]:
        """Return the images that the process has put into a buffer one after another, `[H, W, 3]` each."""
        sizes = [height * width * 3 for height, width in shapes]
        if buffer not in self._maps or len(self._maps[buffer]) < sum(sizes):
            self._maps[buffer] = mmap.mmap(self._buffers[buffer], 0, prot=mmap.PROT_READ)
        memory = np.frombuffer(self._maps[buffer], np.uint8)
        parts = np.split(memory[: sum(sizes)], np.cumsum(sizes)[:-1])
        return [part.reshape(*shape, 3) for part, shape in zip(parts, shapes, strict=True)]

    def _lines(self) -> Iterator[bytes]:
        poll, text = select.poll(), b""  # select knows no handle from 1024 on
        poll.register(self._answers, select.POLLIN)
        while poll.poll(1000 * _HANGS):
            piece = os.read(self._answers.fileno(), 1 << 16)
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
        for pipe in (self._child.stdin, self._answers, self._errors):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        for buffer in self._buffers:
            os.close(buffer)  # its memory lives as long as its maps


_children: WeakSet[Child] = WeakSet()
_lock = threading.Lock()
_shared = Child()


@atexit.register
def _stop() -> None:
    for child in list(_children):
        child.stop()


def _forget() -> None:
    global _lock
    _lock = threading.Lock()
    for child in list(_children):
        child.forget()


os.register_at_fork(after_in_child=_forget)
