"""A fill that is stopped at any call that changes what is on disk: nothing lost, nothing half-written read."""

import errno
import os
import shutil
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
from faults import NthCall, in_child, kill, status_of

from fastclf.activations.manifest import read_manifest
from fastclf.activations.store import MANIFEST, header_of, open_activations
from fastclf.activations.writer import ActivationWriter

N, STEP = 23, 5


@pytest.fixture
def rows(rng):
    return rng.standard_normal((N, 3)).astype(np.float32)


def fill(folder, rows, upto=N):
    with ActivationWriter(folder, "k", rows.shape, "float32") as writer:
        while writer.rows_done < upto:
            writer.write(rows[writer.rows_done : writer.rows_done + STEP])
        if upto == N:
            writer.finish()


def finished(folder, rows):
    """Rows of blocks that are in a manifest."""
    header = header_of("k", rows.shape, "float32")
    blocks = [read_manifest(file, header) or [] for file in folder.glob(f"k*/{MANIFEST}")]
    return max((sum(block.rows for block in found) for found in blocks), default=0)


def check_survivors(folder, rows, at_least=0):
    """What a stopped fill has left is right, and the next fill goes on from it and leaves the file alone."""
    there = finished(folder, rows)
    assert there >= at_least
    known = open_activations(folder, "k", rows.shape, "float32")
    if known is None:
        with ActivationWriter(folder, "k", rows.shape, "float32") as writer:
            assert writer.rows_done == there
            np.testing.assert_array_equal(writer.rows_so_far(), rows[:there])
        fill(folder, rows)
        known = open_activations(folder, "k", rows.shape, "float32")
    np.testing.assert_array_equal(known, rows)
    fill(folder, rows)  # the next process tidies up
    assert [place.name for place in folder.iterdir()] == ["k"]


@pytest.fixture(params=["new", "going on"])
def begin(request, tmp_path, rows):
    """Makes the folder before a fill, empty or with what a killed process has left; returns the rows that it holds."""
    if request.param == "new":
        return lambda folder: 0
    left = tmp_path / "left"
    assert status_of(in_child(lambda: fill_and_die(left, rows))) == 137
    assert finished(left, rows) == 2 * STEP

    def copy(folder):
        shutil.copytree(left, folder)
        return 2 * STEP

    return copy


def fill_and_die(folder, rows):
    with ActivationWriter(folder, "k", rows.shape, "float32") as writer:
        for first in (0, STEP):
            writer.write(rows[first : first + STEP])
        os._exit(137)


def test_kill_at_every_call(tmp_path, rows, monkeypatch, begin):
    points = 0
    for n in count(1):
        folder = tmp_path / str(n)
        before = begin(folder)

        def child(n=n, folder=folder):
            NthCall(monkeypatch, n, kill)
            fill(folder, rows)

        status = status_of(in_child(child))
        if status == 0:
            break
        assert status == 137
        points += 1
        if folder.exists():
            check_survivors(folder, rows, before)
    print(f"killed at {points} calls")
    assert points > 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: OSError(errno.EIO, "I/O error")])
def test_an_error_at_every_call(tmp_path, rows, monkeypatch, begin, error):
    def fail(call, args):
        raise error()

    for n in count(1):
        folder = tmp_path / str(n)
        before = begin(folder)

        def child(n=n, folder=folder):  # what a second error keeps from being tidied up is its process's until it ends
            calls = NthCall(monkeypatch, n, fail)
            with suppress(KeyboardInterrupt, OSError):
                fill(folder, rows)
            os._exit(0 if calls.calls < n else 2)

        status = status_of(in_child(child))
        if status == 0:
            break
        assert status == 2
        if folder.exists():
            check_survivors(folder, rows, before)
    assert n > 20
