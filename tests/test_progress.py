import io
import sys

import pytest

from fastclf import progress
from fastclf.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""

    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_work_that_goes_on_counts_what_was_done_before_but_not_in_the_rate(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(100, "train", "batches", done=50) as bar:
        clock.now += 20
        bar.advance(20)
    assert sys.stderr.getvalue() == "train: 70/100 (70%), 1 batches/s, 30 s left\n"


def test_a_terminal_gets_a_bar_that_is_removed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track(iter([1, 2]), 2, "train", "batches")) == [1, 2]
    assert "\n" not in terminal.getvalue()
