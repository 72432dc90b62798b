"""What the library prints: in one place, so that no name in a message can end the program that prints it."""

from __future__ import annotations

import sys
from typing import TextIO


def fitting(text: str, stream: TextIO | None = None) -> str:
    r"""Returns ``text`` with escapes such as '\u56fe' for what a stream (stdout by default) cannot encode."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line at once, whatever the stream's (stdout's) encoding."""
    print(fitting(text, stream), file=stream, flush=True)
