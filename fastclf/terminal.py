"""What the library prints: in one place, so that no name in a message can end the program that prints it."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress
from typing import TextIO

_PACKAGE = __name__.partition(".")[0]


def fitting(text: str, stream: TextIO | None = None) -> str:
    r"""Returns ``text`` with escapes such as '\u56fe' for what a stream (stdout by default) cannot encode."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line at once, whatever the stream's (stdout's) encoding."""
    with suppress(OSError):  # whoever read it has gone, or its disk is full: no reason to end a fit
        print(fitting(text, stream), file=stream, flush=True)


def warn(text: str) -> None:
    """Warns with the line of the user's code that called the library, not one inside it."""
    level = 1
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == _PACKAGE:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
