"""Who waited for whom, told from the times at which batches are asked for and given."""

import pickle
import time

import pytest

from fastclf import tfms_from_stats
from fastclf.data import input_stall
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.input_stall import InputStall


class Card:
    """Events of a GPU that works on what it was given in turn; an event is past when the GPU has got there."""

    def __init__(self, clock):
        self.clock, self.done = clock, clock[0]  # when it has done all that it was given

    def launch(self, seconds):
        self.done = max(self.done, self.clock[0]) + seconds

    def now(self):
        return max(self.done, self.clock[0])

    def is_past(self, mark):
        return mark <= self.clock[0]

    def wait(self, mark):
        self.clock[0] = max(self.clock[0], mark)

    def seconds(self, first, last):
        assert self.is_past(first)
        assert self.is_past(last)
        return last - first


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves."""
    now = [100.0]
    monkeypatch.setattr(input_stall.time, "perf_counter", lambda: now[0])
    return now


def a_pass(clock, wait, work, batches=10, threads=1):
    """The consumer waits for each of the batches and works on each but the last."""
    times = InputStall(threads)
    for i in range(batches):
        times.asked()
        clock[0] += wait
        times.given()
        clock[0] += work * (i < batches - 1)
    return times


def test_times_add_up(clock):
    times = a_pass(clock, 0.5, 0.25, batches=5)
    assert times.stalled == pytest.approx(2.5)
    assert times.idle == 0
    assert times.total == pytest.approx(3.5)
    times = a_pass(clock, 0.0, 0.25, batches=5)
    assert times.stalled == 0
    assert times.idle == times.total == pytest.approx(1.0)


def test_a_slow_image_side_is_named(clock, monkeypatch):
    monkeypatch.setattr(input_stall, "available_processors", lambda: 2)
    line = a_pass(clock, 0.71, 0.29, batches=1000).line("train")
    assert line.startswith("train: 71% of the time was spent waiting for images; more decoding threads (num_workers=)")
    line = a_pass(clock, 0.71, 0.29, batches=1000, threads=2).line("train")
    assert "threads" not in line  # there is no processor left for them
    assert "data.resize" in line


def test_a_slow_network_is_named(clock):
    line = a_pass(clock, 1e-5, 1.0).line("valid")
    assert line.startswith("valid: images were ready before the network for 100% of the time")
    assert "num_workers" not in line


@pytest.mark.parametrize(("images", "network", "wait", "idle"), [(0.5, 0.2, 0.3, 0.0), (0.1, 0.6, 0.0, 0.6)])
def test_a_gpu_that_is_only_launched_is_timed_by_itself(clock, images, network, wait, idle):
    """The host is done with a batch at once and waits for the next one, while the GPU works on."""
    card = Card(clock)
    times, n = InputStall(1, card), 20
    for _ in range(n):
        times.asked()
        clock[0] += images
        times.given()
        card.launch(network)
    assert times.line("train") is not None
    assert times.stalled == pytest.approx((n - 1) * wait + images)
    assert times.idle == pytest.approx((n - 1) * idle)
    assert times.total == pytest.approx((n - 1) * max(images, network) + images)
    assert ("waiting for images" in times.line("train")) == (wait > 0)


def test_copies_have_no_marks(clock):
    card = Card(clock)
    times = InputStall(1, card)
    times.asked()
    card.launch(9.0)
    times.given()
    assert times.total == 0  # the GPU has not got there
    copied = pickle.loads(pickle.dumps(times))
    assert not copied._open
    assert copied == InputStall(1)


@pytest.mark.parametrize(("wait", "work", "batches"), [(0.1, 0.9, 20), (0.4, 0.1, 5), (0, 0.4, 5), (0, 0, 0)])
def test_nothing_is_logged_of_a_balanced_or_short_pass(clock, wait, work, batches):
    assert a_pass(clock, wait, work, batches).line("train") is None


def test_a_loader_times_each_pass_afresh(folders):
    data = ImageClassifierData.from_paths(folders, 4, tfms_from_stats(([0.5] * 3, [0.5] * 3), 16))
    for _ in range(2):
        began = time.perf_counter()
        for _ in data.fix_dl.batches(0):
            time.sleep(0.05)
        taken, times = time.perf_counter() - began, data.fix_dl.input_stall
        assert 0 < times.stalled < times.total <= taken
        assert times.total >= 0.1  # two of three batches were worked on before the next was asked for
        assert times.stalled + times.idle <= times.total + 1e-9
    assert data.val_dl.input_stall == InputStall()
