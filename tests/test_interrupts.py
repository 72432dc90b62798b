"""Ctrl-C and SIGTERM, at any moment: consistent, nothing left over, handlers put back."""

import ast
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from devices import on_both_devices
from helpers import assert_same, image_data, row_data, state_of, three_colours, tiny_learner
from processes import PATIENCE, has_ended, start

import fastclf
from fastclf import Callback, HeadLearner
from fastclf.interrupts import Interrupts, postponed
from fastclf.training import snapshot


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def _handlers_are_put_back():
    before = handlers()
    yield
    assert handlers() == before


class Send(Callback):
    def __init__(self, *numbers, at=3):
        self.numbers, self.at, self.seen = numbers, at, 0

    def on_batch_end(self, loss):
        self.seen += 1
        if self.seen == self.at:
            for number in self.numbers:
                signal.raise_signal(number)


class Stop(Callback):
    def __init__(self, at):
        self.at, self.seen = at, 0

    def on_batch_end(self, loss):
        self.seen += 1
        return self.seen == self.at


@on_both_devices
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_fit_ends_after_the_step(tmp_path, rng, number, error):
    data = row_data(tmp_path, rng)
    learn, other = HeadLearner(data, xtra_fc=[8]), HeadLearner(data, xtra_fc=[8])
    with pytest.raises(error) as caught:
        learn.fit(0.1, 3, callbacks=[Send(number)])
    assert error is not SystemExit or caught.value.code == 143
    assert len(learn.sched.lrs) == len(learn.sched.losses) == 3
    other.fit(0.1, 3, callbacks=[Stop(3)])
    assert_same(state_of(learn), state_of(other))
    learn.fit(0.1, 1)
    assert list(tmp_path.iterdir()) == []


def test_at_any_moment(tmp_path, rng):
    """Ctrl-C at randomly chosen calls of Python functions, from the first line of fit to the last."""
    data = row_data(tmp_path, rng)
    plan = {"cycle_len": 1, "state_name": "run", "best_save_name": "best"}

    def fit(profile=None, **kwargs):
        learn = HeadLearner(data, xtra_fc=[8])
        sys.setprofile(profile)
        try:
            learn.fit(0.1, 3, **plan, **kwargs)
        finally:
            sys.setprofile(None)
        return learn

    class Calls:
        def __init__(self, stop_at=None):
            self.n, self.stop_at = 0, stop_at

        def __call__(self, frame, event, arg):
            if event == "call" and "fastclf" in frame.f_code.co_filename:
                self.n += 1
                if self.n == self.stop_at:
                    signal.raise_signal(signal.SIGINT)

    calls = Calls()
    expected = state_of(fit(calls))
    for stop_at in rng.integers(1, calls.n + 1, 15).tolist():
        shutil.rmtree(tmp_path / "models")
        try:
            last = fit(Calls(stop_at))
        except KeyboardInterrupt:
            last = fit(resume=True)
        assert_same(expected, state_of(last))
        assert len(last.sched.lrs) == len(last.sched.losses) == 3 * len(data.trn_dl)
        assert handlers()[0] is signal.default_int_handler
        assert not [p for p in (tmp_path / "models").iterdir() if ".tmp-" in p.name]


def test_twice_ends_at_once_and_keeps_no_half_step(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(0.1, 3, callbacks=[Send(signal.SIGINT, signal.SIGINT)], state_name="run")
    assert not (tmp_path / "models").exists()


def test_other_threads_and_ignored_signals_are_left_alone(tmp_path, rng):
    data = row_data(tmp_path, rng)
    seen = []

    class Look(Callback):
        def on_epoch_end(self, metrics):
            seen.append(handlers())

    before = handlers()
    thread = threading.Thread(target=HeadLearner(data).fit, args=(0.1, 1), kwargs={"callbacks": [Look()]})
    thread.start()
    thread.join()
    assert seen == [before]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        HeadLearner(data).fit(0.1, 1, callbacks=[Look(), Send(signal.SIGINT)])
    finally:
        signal.signal(signal.SIGINT, before[0])
    assert seen[1][0] == signal.SIG_IGN


def test_a_handler_of_ones_own_is_called_after_the_step(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(len(learn.sched.losses)))
    try:
        learn.fit(0.1, 2, callbacks=[Send(signal.SIGTERM)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [3]
    assert len(learn.sched.losses) == 2 * len(learn.data.trn_dl)


def test_handlers_are_put_back_after_an_error(tmp_path, rng):
    class Broken(Callback):
        def on_epoch_end(self, metrics):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        HeadLearner(row_data(tmp_path, rng)).fit(0.1, 1, callbacks=[Broken()])


def test_a_signal_at_the_end_is_not_lost():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, Interrupts() as interrupts:
        with interrupts.released():
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError("was not let through")
    assert caught.value.code == 143


@pytest.mark.parametrize("precompute", [True, False])
@pytest.mark.parametrize("moment", ["a step", "putting back"])
def test_lr_find_leaves_no_trace(tmp_path, monkeypatch, precompute, moment):
    folder = three_colours(tmp_path / "data")
    learn = tiny_learner(image_data(folder), precompute=precompute)
    learn.unfreeze() if not precompute else None
    learn.fit(0.01, 1)
    before, generator = state_of(learn), torch.get_rng_state()
    files = sorted(folder.rglob("*"))
    calls = 0
    original = snapshot._tensors if moment == "putting back" else type(learn.sched).batch

    def interrupting(*args):
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    if moment == "putting back":
        monkeypatch.setattr(snapshot, "_tensors", interrupting)
    else:
        monkeypatch.setattr(type(learn.sched), "batch", interrupting)
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find()
    assert calls >= 2
    assert_same(before, state_of(learn))
    assert torch.equal(generator, torch.get_rng_state())
    assert files == sorted(folder.rglob("*"))


def test_a_model_is_loaded_whole_or_not_at_all(tmp_path, rng, monkeypatch):
    learn = HeadLearner(row_data(tmp_path, rng), xtra_fc=[8])
    learn.save("one")
    learn.fit(0.1, 1)
    learn.save("two")
    learn.load("one")

    def copy(self, *args, **kwargs):
        if self is learn.head.layers[2]:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    original = torch.nn.Module._load_from_state_dict
    monkeypatch.setattr(torch.nn.Module, "_load_from_state_dict", copy)
    with pytest.raises(KeyboardInterrupt):
        learn.load("two")
    two = state_of(learn)
    monkeypatch.undo()
    learn.load("two")
    assert_same(two, state_of(learn))


SCRIPT = """
import sys
from pathlib import Path
import fastclf
from helpers import image_data, three_colours, tiny_learner
path = Path(sys.argv[1])
learn = tiny_learner(image_data(path), precompute=sys.argv[2] == "rows")
learn.unfreeze() if sys.argv[2] != "rows" else None

class SendAtEnd(fastclf.Callback):  # the same callbacks in both processes
    pass

learn.fit(0.01, 100_000, state_name="run", resume=True, callbacks=[SendAtEnd()])
"""


class SendAtEnd(Callback):
    def on_epoch_end(self, metrics):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("number", "on"), [(signal.SIGTERM, "images"), (signal.SIGINT, "rows")])
def test_a_process_that_gets_sigterm(tmp_path, number, on):
    pytest.importorskip("nvidia.dali")
    folder = three_colours(tmp_path / "data")
    process = start(SCRIPT, folder, on)
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["2"]:
            break
    time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert len(children) == 1  # the one that decodes
    assert has_ended(int(children[0]))
    if number == signal.SIGTERM:
        assert (process.returncode, errors) == (143, "")
    else:
        assert "KeyboardInterrupt" in errors
    names = sorted(p.name for p in folder.rglob("*"))
    assert not [name for name in names if ".tmp-" in name]
    learn = tiny_learner(image_data(folder), precompute=on == "rows")
    learn.unfreeze() if on != "rows" else None
    with pytest.raises(KeyboardInterrupt):
        learn.fit(0.01, 100_000, state_name="run", resume=True, callbacks=[SendAtEnd()])
    assert len(learn.sched.val_losses) >= 4


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_in_a_finaliser_is_not_lost(number, error):
    """Python prints what is raised in ``__del__``, and goes on."""
    ended = []

    class Held:
        def __del__(self):
            with postponed():
                signal.raise_signal(number)
            time.sleep(0.05)
            ended.append(True)

    with pytest.raises(error), Interrupts() as interrupts:
        held = Held()
        del held
        assert ended
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            interrupts.check()


def test_every_finaliser_lets_signals_wait():
    """And does nothing at the interpreter's end: all are made by `finaliser`."""
    made, own = [], []
    for file in Path(fastclf.__file__).parent.rglob("*.py"):
        for cls in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)):
            own += [node.name for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__del__"]
            made += [
                node for node in cls.body if isinstance(node, ast.Assign) and ast.unparse(node.targets) == "__del__"
            ]
    assert not own
    assert len(made) >= 4
    assert all(ast.unparse(node.value).startswith("finaliser(") for node in made)


def test_a_decoder_graph_that_is_dropped_loses_no_signal(monkeypatch):
    graphs = pytest.importorskip("fastclf.data.decode.graphs")

    came = []

    def interrupted(pipe, shut_down=graphs.Pipeline._shutdown):
        if not came:
            came.append(signal.raise_signal(signal.SIGINT))
        shut_down(pipe)

    pipeline = graphs.DecodePipeline(graphs.GraphInput(), 2, torch.device("cpu"), 1)
    monkeypatch.setattr(graphs.Pipeline, "_shutdown", interrupted)
    with pytest.raises(KeyboardInterrupt):
        del pipeline
        time.sleep(60)
