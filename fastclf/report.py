"""The one channel for what the library prints: log lines, progress and warnings.

Lines go to the logger ``fastclf``, whose handler writes to stdout; progress goes to ``fastclf.progress``, on stderr.
`quiet`, or ``FASTCLF_QUIET=1`` in the environment, silences both; so do the usual means of ``logging``. Of processes
that train together, rank 0 alone prints. Warnings are Python warnings: filters silence them, and every process gives
its own, since they may be about that process alone.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

PROGRESS_AFTER = 2.0  # seconds: shorter work shows no bar
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal

_DISABLED = (
    "fastclf prints nothing: its logger is disabled, as logging.config does with all loggers that it finds. Pass "
    "disable_existing_loggers=False there; or call fastclf.quiet() if that is meant."
)
_PACKAGE = __name__.partition(".")[0]
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_CONTROL_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}  # those below 32 have them already
_lines = logging.getLogger(_PACKAGE)
_progress = logging.getLogger(f"{_PACKAGE}.progress")
_logged: set[Hashable] = set()
_is_command = False


class _Stream(logging.Handler):
    """Write each message as a line to what ``sys.stdout`` or ``sys.stderr`` is now, whatever its encoding."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.stream_name = name
        self.addFilter(lambda _record: _is_first_process())

    def emit(self, record: logging.LogRecord) -> None:
        _print(record.getMessage(), getattr(sys, self.stream_name))


for _logger, _name in ((_lines, "stdout"), (_progress, "stderr")):
    _logger.addHandler(_Stream(_name))
    _logger.propagate = False  # a handler of the program's own would print every line twice
if _lines.level == logging.NOTSET:
    _lines.setLevel(logging.WARNING if os.environ.get("FASTCLF_QUIET", "0") not in ("", "0") else logging.INFO)


def quiet(on: bool = True) -> None:
    """Silence everything that fastclf reports: tables of epochs, notes, progress. ``quiet(False)`` ends it.

    Warnings are not part of it: ``warnings.filterwarnings`` silences them. ``FASTCLF_QUIET=1`` in the environment does
    the same from the start.

    Args:
        on: whether to be silent.
    """
    _lines.setLevel(logging.WARNING if on else logging.INFO)


def log(text: str) -> None:
    """Report a line, at once."""
    if _lines.disabled and _lines.level <= logging.INFO and _DISABLED not in _logged:
        _logged.add(_DISABLED)
        warn(_DISABLED)
    _lines.info(text)


def log_once(text: str, key: Hashable = None) -> None:
    """Report a line unless one with the same ``key`` (by default the text) was reported in this process before."""
    key = text if key is None else key
    if key not in _logged:
        _logged.add(key)
        log(text)


def silence_script() -> None:
    """Let what the script itself prints vanish: of processes that train together one prints."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


def show(text: str, stream: TextIO | None = None) -> None:
    """Print the answer to a call that asks for one, on stdout by default, also when quiet."""
    if stream is not None:
        _print(text, stream)
    elif _is_first_process():
        _print(text, sys.stdout)


def describe_seconds(seconds: float) -> str:
    """Return a duration as people say it, such as ``"45 s"``, ``"12 min"`` or ``"2.5 h"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(n: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun, such as "1 row" and "1,200 rows"; ``several`` is a plural not made with an s."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def listed(texts: Sequence[str], most: int = 5, form: Callable[[str], str] = str) -> str:
    """Return the first texts, each in a form such as `repr`, with commas between them, and how many more there are."""
    return ", ".join(map(form, texts[:most])) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def log_to_stderr() -> None:
    """Report lines on stderr from now on: for programs whose stdout another one reads."""
    for handler in _lines.handlers:
        if isinstance(handler, _Stream):
            handler.stream_name = "stderr"


@contextmanager
def command_line(*, options: bool = True) -> Iterator[None]:
    """Speak to who runs a command: warnings are plain lines on stderr, without a line of code.

    Args:
        options: whether remedies are options of commands, too.
    """
    global _is_command
    before = warnings.showwarning

    def line(message: Warning | str, *_: object) -> None:
        _print(f"warning: {message}", sys.stderr)

    warnings.showwarning = line  # type: ignore[assignment]
    _is_command = options
    try:
        yield
    finally:
        warnings.showwarning = before
        _is_command = False


def remedy(call: str, option: str) -> str:
    """Return what helps, in the words of a Python call, or of a command where that is what the user runs."""
    return option if _is_command else call


def warn(text: str) -> None:
    """Warn with the line of the user's code that called the library, not one inside it."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


def encodable(text: str, stream: TextIO | None = None) -> str:
    r"""Return ``text`` with escapes such as '\u56fe' for what a stream (stdout by default) cannot encode.

    Control characters have them too: names of files and classes are others' text, and may command a terminal.
    """
    encoding = encoding_of(stream)
    return text.translate(_CONTROL).encode(encoding, "backslashreplace").decode(encoding)


def encoding_of(stream: TextIO | None = None) -> str:
    """Return the encoding of a stream, stdout by default."""
    return getattr(stream or sys.stdout, "encoding", None) or "utf-8"


def json_text(value: Any, encoding: str = "utf-8", **how: Any) -> str:
    r"""Return JSON: readable where an encoding has all of it, else in ASCII, whose escapes are JSON's own.

    A name of a file that is no text has them in UTF-8 too: ``"\udce9"``, from which `json.loads` makes it again.

    Args:
        value: of plain Python types.
        encoding: of where it is written.
        how: see `json.dumps`.
    """
    text = json.dumps(value, ensure_ascii=False, **how)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, **how)
    return text.translate(_CONTROL_IN_JSON)


def _print(text: str, stream: TextIO | None) -> None:
    if stream is None or getattr(stream, "closed", False):
        return
    with suppress(OSError):  # the reader has gone, or its disk is full: no reason to end a fit
        stream.write(f"{encodable(text, stream)}\n")
        if hasattr(stream, "flush"):  # a stream of the program's own may do no more than write
            stream.flush()


def _is_first_process() -> bool:
    """Return whether this process is alone, or the one of rank 0."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") in ("", "0")


def shows_bars() -> bool:
    """Return whether progress is shown as a bar: on a terminal, unless silenced."""
    stream = sys.stderr
    terminal = hasattr(stream, "isatty") and not getattr(stream, "closed", False) and stream.isatty()
    return terminal and _progress.isEnabledFor(logging.INFO) and _is_first_process()


class Progress:
    """Progress of work that takes longer than two seconds: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: units of work.
        what: the work, such as ``"train"``.
        unit: the plural, such as ``"batches"``.
        done: units that were done before; they do not count in the rate.
    """

    def __init__(self, total: int, what: str, unit: str, *, done: int = 0) -> None:
        self.total, self.what, self.unit = total, what, unit
        self._start = self._last_line = time.monotonic()
        self._done = self._before = done
        self._bar: tqdm[None] | None = None
        if shows_bars():
            self._bar = tqdm(total=total, initial=done, desc=what, unit=f" {unit}", delay=PROGRESS_AFTER, leave=False)

    def advance(self, n: int) -> None:
        """Count ``n`` more units as done."""
        self._done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._done < self.total and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            self._log()

    def _log(self) -> None:
        rate = (self._done - self._before) / (time.monotonic() - self._start)
        left = f", {(self.total - self._done) / rate:.0f} s left" if rate else ""
        share = self._done / self.total
        _progress.info(f"{self.what}: {self._done}/{self.total} ({share:.0%}), {rate:.3g} {self.unit}/s{left}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """Yield ``items``, showing progress of one unit each."""
    with Progress(total, what, unit) as progress:
        for item in items:
            yield item
            progress.advance(1)
