"""Processes, memory, threads and lines of output: none of them grows, and none is left over."""

import gc
import io
import os
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import image_data, row_data, three_colours, tiny_learner
from processes import PATIENCE, wait_until

from fastclf import Callback, HeadLearner
from fastclf.report import LINE_SECONDS, Progress


def resident():
    """Bytes of this process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def children():
    """Processes that this one has started; its threads come and go meanwhile."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += (task / "children").read_text().split()
    return found


def shared():
    return re.findall(r"/dev/shm/\S+", Path("/proc/self/maps").read_text())


class Watch(Callback):
    """What the process holds at the end of every epoch."""

    def __init__(self):
        self.resident, self.children, self.shared = [], [], []

    def on_epoch_end(self, metrics):
        gc.collect()
        self.resident.append(resident())
        self.children += children()
        self.shared += shared()


@pytest.mark.parametrize("kind", ["images", "cached", "rows"])
def test_epochs_take_no_more_memory_and_no_other_process(tmp_path, rng, kind):
    """Threads do the work: no process that could be killed, nothing in /dev/shm that could be full."""
    if kind == "rows":
        learn = HeadLearner(row_data(tmp_path, rng, n=2000, n_valid=500, f=64), xtra_fc=[32])
    else:
        learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=kind == "cached")
        if kind == "images":
            learn.unfreeze()
    learn.data.scan()  # starts the process that decodes for the scan alone
    before, shared_before, watch = children(), shared(), Watch()  # other tests have locks of multiprocessing
    learn.fit(0.01, 20, callbacks=[watch])
    steps = np.diff(watch.resident[4:])
    # A pool may have to grow when two batches meet for the first time; a leak takes something every time.
    assert np.median(steps) < 250e3
    assert max(steps) < 64e6
    assert set(watch.children) <= set(before)
    assert set(watch.shared) <= set(shared_before)


def test_what_a_learner_held_is_given_back(tmp_path):
    """Threads of the decoder, maps of cached activations, and memory."""

    def once():
        data = image_data(three_colours(tmp_path / "data"))
        learn = tiny_learner(data, precompute=True)
        learn.fit(0.01, 1)
        learn.precompute = False
        learn.fit(0.01, 1)
        learn.predict()

    def held():
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count(str(tmp_path))
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir())), maps

    once()
    threads, files, _ = held()
    start = resident()
    for _ in range(4):
        once()
    wait_until(lambda: held() == (threads, files, 0))
    assert held() == (threads, files, 0)
    assert resident() < start + 20e6


def test_a_log_gets_few_lines_and_no_carriage_return(monkeypatch):
    """Where there is no terminal: one line in ten seconds, none for short work."""
    log, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Progress(100_000, "scan", "images") as progress:
        for _ in range(800):
            clock[0] += 0.125
            progress.advance(125)
    lines = log.getvalue().splitlines()
    assert len(lines) == 100 / LINE_SECONDS - 1
    assert lines[0] == "scan: 10000/100000 (10%), 1e+03 images/s, 90 s left"
    assert "\r" not in log.getvalue()


def test_a_fit_without_a_terminal_writes_one_line_per_epoch(tmp_path, rng, capsys):
    HeadLearner(row_data(tmp_path, rng), xtra_fc=[4]).fit(0.01, 5)
    printed = capsys.readouterr()
    epochs = [line.split()[0] for line in printed.out.splitlines()]
    assert epochs[:6] == ["epoch", *"01234"]
    assert len(epochs) < 8  # one more where the model has learned nothing
    assert printed.err == ""
    assert "\r" not in printed.out


def test_without_dali_the_install_line_is_named(tmp_path):
    three_colours(tmp_path)
    run = (
        "import sys; sys.modules['nvidia.dali'] = None; from helpers import image_data\n"
        "data = image_data(sys.argv[1])\n"
        "try: next(iter(data.val_dl))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", run, tmp_path], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert re.match("BackendError .*DALI cannot be imported.*pip install nvidia-dali-cuda", done.stdout), done.stderr
