"""Long calls: one line says what Ctrl-C leaves, and a forked process works or raises."""

import re
import signal
import traceback

import pytest
from helpers import image_data, row_data, three_colours, tiny_learner
from processes import PATIENCE, lines_of, start

from fastclf import Callback, ConvLearner, HeadLearner, calls, efficientnet_lite0, resnet18
from fastclf.activations import precompute, segment
from fastclf.data import data_loaders, resize
from fastclf.data.validation import scan_cache
from fastclf.training import forward, loop


class At:
    """Presses Ctrl-C at the ``n``-th call of a function."""

    def __init__(self, monkeypatch, owner, name, n):
        self.n, self.calls, self.original = n, 0, getattr(owner, name)
        monkeypatch.setattr(owner, name, self._call_of(self.original))

    def _call_of(self, original):
        def call(*args, **kwargs):
            self.calls += 1
            if self.calls == self.n:
                signal.raise_signal(signal.SIGINT)
            return original(*args, **kwargs)

        return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return three_colours(tmp_path / "data")


def fit(learn):
    learn.fit(0.01, 2)


def cached(learn):
    learn.precompute = True


CALLS = {
    "fit": (fit, loop.TrainLoop, "_note", 3, r"fit was stopped after 0 epoch\(s\) and 3 of 5 batches; the model holds"),
    "fit with a state": (
        lambda learn: learn.fit(0.01, 2, state_name="run"),
        loop.TrainLoop,
        "_note",
        7,
        r"after 1 epoch\(s\) and 2 of 5 batches; .* The same call with resume=True goes on\.$",
    ),
    "scan of a fit": (fit, scan_cache.ScanCache, "put", 3, r"scan was stopped: what was decoded is kept"),
    "scan": (lambda learn: learn._data.scan(), scan_cache.ScanCache, "put", 3, "scan was stopped: .*again to go on"),
    "check": (lambda learn: learn._data.check(), data_loaders, "check_sets", 1, "check was stopped: "),
    "lr_find": (lambda learn: learn.lr_find(), loop.TrainLoop, "_note", 2, "lr_find was stopped: the model is as it w"),
    "predict": (lambda learn: learn.predict(), forward, "_at_their_places", 1, "predict_with_targs was stopped: not"),
    "TTA": (lambda learn: learn.TTA(), forward, "_at_their_places", 3, "TTA was stopped: nothing was changed"),
    "resize": (lambda learn: learn._data.resize(20), resize, "_write", 2, "resize was stopped: the copies that were"),
    "precompute": (
        cached,
        precompute,
        "_give_back",
        3,
        r"activations of train were stopped: \d+ of 36 rows are kept in .*/tmp/activations; do it again to go on\.$",
    ),
    "precompute, writing": (cached, segment.SegmentWriter, "write", 3, "were stopped: .* rows are kept in"),
}


@pytest.mark.parametrize(("run", "owner", "name", "n", "line"), CALLS.values(), ids=CALLS)
def test_ctrl_c_ends_with_one_line_and_without_the_frames_inside(folder, monkeypatch, run, owner, name, n, line):
    learn = tiny_learner(image_data(folder))
    with pytest.MonkeyPatch.context() as patch:
        at = At(patch, owner, name, n)
        with pytest.raises(KeyboardInterrupt, match=line) as caught:
            run(learn)
        assert at.calls >= n
    assert "\n" not in str(caught.value)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert [frame.filename for frame in frames if "fastclf/" in frame.filename and "tests" not in frame.filename] in (
        [calls.__file__],
        [precompute.__file__.replace("activations/precompute", "conv_learner"), calls.__file__],
    )
    assert caught.value.__context__ is None  # nothing holds what was computed
    run(learn)  # all is consistent


def test_a_second_ctrl_c_says_that_a_step_was_cut(tmp_path, rng):
    class Twice(Callback):
        def on_batch_end(self, loss):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    learn = HeadLearner(row_data(tmp_path, rng))
    with pytest.raises(KeyboardInterrupt, match="in the middle of a step: load a saved model"):
        learn.fit(0.1, 1, callbacks=[Twice()])


def test_an_interrupt_of_ones_own_keeps_its_words(tmp_path, rng):
    @calls.long_call("nothing")
    def stops(*args):
        raise KeyboardInterrupt(*args)

    with pytest.raises(KeyboardInterrupt, match=r"^mine$"):
        stops("mine")
    with pytest.raises(KeyboardInterrupt, match=r"^stops was stopped: nothing$"):
        stops()


SCRIPT = """
import signal, sys
from pathlib import Path
from helpers import image_data, three_colours, tiny_learner
from fastclf.activations import precompute
def give_back():
    signal.raise_signal(signal.SIGINT)
precompute._give_back = give_back
learn = tiny_learner(image_data(three_colours(Path(sys.argv[1]))))
learn.precompute = True
"""


def test_a_script_ends_with_a_short_traceback(tmp_path):
    process = start(SCRIPT, tmp_path)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGINT
    lines = errors.splitlines()
    assert len([line for line in lines if line.startswith("  File")]) == 2, errors
    assert re.match(r"KeyboardInterrupt: activations of train were stopped: \d+ of 36 rows are kept in", lines[-1])


FORKED = """
import multiprocessing, os, signal, sys
from pathlib import Path
import numpy as np
from fastclf import BackendError, HeadLearner, ImageClassifierData, open_image
from helpers import image_data, row_data, three_colours, tiny_learner

folder = three_colours(Path(sys.argv[1]))
data = image_data(folder)
file = folder / data.val_ds.fnames[0]

def everything():
    learn = tiny_learner(image_data(folder), precompute=True)
    learn.fit(.01, 1)
    return learn

def fits_rows():
    HeadLearner(row_data(folder, np.random.default_rng(0))).fit(.01, 1)

def in_child(run):
    pid = os.fork()
    if pid == 0:
        signal.alarm(300)  # never a hang
        try:
            run()
            print("works", flush=True)
        except BackendError as error:
            print(error, flush=True)
        finally:
            os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

in_child(everything)  # nothing was computed before
learn = everything()
x = np.zeros((16, 3, 16, 16), np.float32)
for run in (
    everything, fits_rows, lambda: next(iter(learn.data.val_dl)), lambda: next(iter(data.val_dl)),
    lambda: open_image(file), lambda: data.tfms[1](np.zeros((20, 20, 3), np.uint8)), lambda: learn.predict(),
    lambda: learn.predict_array(x), lambda: learn.TTA(), lambda: learn.lr_find(), lambda: learn.summary(),
    lambda: data.scan(), lambda: data.check(), lambda: data.resize(20), lambda: learn.export("m"),
    lambda: setattr(learn, "precompute", True), lambda: learn.model.features(__import__("torch").zeros(1, 3, 16, 16)),
):
    in_child(run)
print(learn.predict().shape, flush=True)
if os.fork() == 0:  # it ends in the usual way, with all that it has
    signal.alarm(300)
    learn._data.val_dl.close()
    learn.model._frozen.release()
    raise SystemExit
print("ended", os.wait()[1])
"""


def test_a_forked_process_works_or_is_refused(tmp_path):
    """It would wait for ever for threads that only its parent has."""
    pytest.importorskip("nvidia.dali")
    lines = lines_of(FORKED, tmp_path / "data")
    first, *others, parent = [line for line in lines if line == "works" or "'spawn'" in line or line[:1] == "("]
    assert first == "works"
    told = [line for line in others if re.search("forked .* had started threads.*'spawn'", line)]
    assert len(others) == 17
    assert [line for line in others if line not in told] == ["works"]  # cached rows need no thread
    assert parent == "(18, 3)"
    assert lines[-1] == "ended 0"


SERVES = """
import os, signal, sys
os.environ["OMP_NUM_THREADS"] = "2"
import fastclf
clf = fastclf.load(sys.argv[1], device="cpu")  # as a server does before it starts its workers
for _ in range(2):
    if os.fork() == 0:
        signal.alarm(300)
        print(clf.predict(sys.argv[2]).labels, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("network", [resnet18, efficientnet_lite0])
def test_a_process_that_has_loaded_a_model_may_be_forked(tmp_path, network):
    """Whatever torch computed while the network was built."""
    data = image_data(three_colours(tmp_path), sz=32)
    learn = ConvLearner.pretrained(network, data, pretrained=network is efficientnet_lite0)
    learn.save("m")
    labels = [data.classes[i] for i in learn.predict(is_test=True).argmax(1)]
    lines = lines_of(SERVES, tmp_path / "models" / "m", tmp_path / "test")
    assert [line for line in lines if line.startswith("[")] == [str(labels)] * 2
