"""Writing that is stopped at any call that changes what is on disk: nothing half-written is read, and no block lost."""

import errno
import os
from contextlib import suppress
from itertools import count

import numpy as np
import pytest
from faults import NthCall, in_child, kill, status_of
from stores import ABOUT, KIND, keys_of, opened, written

from fastclf.activations import prune
from fastclf.activations.fill import Job, stored
from fastclf.activations.segment import SegmentWriter, segments_in
from fastclf.activations.store import Store, write_about

N, STEP = 23, 5
KEYS = keys_of(N)


@pytest.fixture
def rows(rng):
    return rng.standard_normal((N, 3)).astype(np.float32)


@pytest.fixture(params=["new", "going on"])
def begin(request, rows):
    """Makes the folder before a pass: empty, or with what two others have left, the second of them killed."""

    def left(folder):
        if request.param == "new":
            return 0
        store = folder / KIND.name
        written(store, KEYS[:2], rows[:2])
        assert status_of(in_child(lambda: die(store, rows))) == 137
        return 2 + STEP

    return left


def die(store, rows):
    with SegmentWriter(store, KIND) as writer:
        writer.write(KEYS[2 : 2 + STEP], rows[2 : 2 + STEP])
        os._exit(137)


def passes(folder, rows, told=lambda rows: None):
    def compute(numbers):
        for first in range(0, len(numbers), STEP):
            part = numbers[first : first + STEP]
            yield part, rows[part], first + len(part)
            told(first + len(part))  # by now it is written

    return stored(Job(KIND, ABOUT, KEYS.copy(), "train"), [folder], compute)


def check_survivors(folder, rows, at_least):
    """What is there is right, and the next pass computes the rest and tidies up."""
    store = Store([folder / KIND.name], KIND)
    missing = store.missing(KEYS)
    assert N - len(missing) >= at_least
    there = np.setdiff1d(np.arange(N), missing)
    np.testing.assert_array_equal(opened(folder / KIND.name, KEYS[there]), rows[there])
    computed = []

    def compute(numbers):
        computed.extend(numbers.tolist())
        yield numbers, rows[numbers], len(numbers)

    job = Job(KIND, ABOUT, KEYS.copy(), "train")
    np.testing.assert_array_equal(stored(job, [folder], compute), rows)
    assert computed == missing.tolist()
    np.testing.assert_array_equal(opened(folder / KIND.name, KEYS), rows)


def stop_at_every_call(tmp_path, begin, work, stop, status):
    """Runs ``work(folder)`` in children of which the n-th is stopped at its n-th call; yields what each has left."""
    for n in count(1):
        folder = tmp_path / str(n)
        before = begin(folder)
        told = tmp_path / f"{n}.told"

        def child(n=n, folder=folder, told=told):
            calls = stop(n)
            work(folder, told)
            os._exit(0 if calls is None or calls.calls < n else status)

        ended = status_of(in_child(child))
        if ended == 0:
            assert n > 20
            return
        assert ended == status
        yield folder, before, len(told.read_bytes()) if told.exists() else 0


def test_kill_at_every_call(tmp_path, rows, monkeypatch, begin):
    def work(folder, told):
        passes(folder, rows, lambda n: told.write_bytes(bytes(n)))

    def stop(n):
        NthCall(monkeypatch, n, kill)

    for folder, before, done in stop_at_every_call(tmp_path, begin, work, stop, 137):
        check_survivors(folder, rows, before + done)


@pytest.mark.parametrize("error", [KeyboardInterrupt, lambda: OSError(errno.EIO, "I/O error")])
@pytest.mark.filterwarnings("ignore:activations are not kept")
def test_an_error_at_every_call(tmp_path, rows, monkeypatch, begin, error):
    def fail(call, args):
        raise error()

    def work(folder, told):
        with suppress(KeyboardInterrupt):
            np.testing.assert_array_equal(passes(folder, rows), rows)  # in memory, when the disk fails

    for folder, before, _ in stop_at_every_call(tmp_path, begin, work, lambda n: NthCall(monkeypatch, n, fail), 2):
        check_survivors(folder, rows, before)


def test_kill_at_every_call_of_prune(tmp_path, rows, monkeypatch):
    """Of a store with old and new rows, and an older version's: new rows survive, and the next prune ends it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    used = np.where(np.arange(N) % 2, 1_000, 4_000_000_000).astype(np.uint32)

    def begin(folder):
        store = folder / "tmp" / "activations" / KIND.name
        written(store, KEYS, rows, 12, KIND, used)
        write_about(store, ABOUT)
        (store.parent / "older").mkdir()
        (store.parent / "older" / "manifest.jsonl").touch()
        return 0

    def stop(n):
        NthCall(monkeypatch, n, kill)

    for folder, *_ in stop_at_every_call(tmp_path, begin, lambda f, _: prune(f, older_than=1), stop, 137):
        store = folder / "tmp" / "activations" / KIND.name
        np.testing.assert_array_equal(opened(store, KEYS[::2]), rows[::2])
        prune(folder, older_than=1)
        np.testing.assert_array_equal(opened(store, KEYS[::2]), rows[::2])
        assert len(segments_in(store)) == 1
        assert [place.name for place in store.parent.iterdir()] == [KIND.name]
