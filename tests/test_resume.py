"""A fit that was stopped and goes on ends where one ends that was not, bit for bit."""

import json
import signal
from functools import partial

import numpy as np
import pytest
import torch
from devices import on_both_devices
from helpers import image_data, row_data, three_colours, tiny_learner
from processes import lines_of
from torch import nn

from fastclf import SGDR, Callback, CheckpointError, HeadLearner, ImageClassifierData, Learner
from fastclf.checkpoint import load_checkpoint, save_checkpoint
from fastclf.training.resume import describe_function, packed, unpacked


class StopAt(Callback):
    """Sends a signal after so many batches of a run."""

    def __init__(self, batches=None, number=signal.SIGINT):
        self.batches, self.number, self.seen = batches, number, 0

    def on_batch_end(self, loss):
        self.seen += 1
        if self.seen == self.batches:
            signal.raise_signal(self.number)


def everything(learn):
    return {
        **{name: tensor.clone() for name, tensor in learn.model.state_dict().items()},
        **{name: torch.tensor(getattr(learn.sched, name)) for name in ("lrs", "losses", "momentums", "val_losses")},
        "metrics": torch.tensor(learn.sched.rec_metrics),
    }


def same(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def check(make, fit, stops):
    """``make`` gives new learners, ``fit`` trains one, ``stops`` says after how many batches runs are stopped."""
    through = make()
    expected = fit(through, callbacks=[StopAt()])
    for batches in stops:
        with pytest.raises(KeyboardInterrupt):
            fit(make(), callbacks=[StopAt(batches)], state_name="run", resume=True)
    last = make()
    assert fit(last, callbacks=[StopAt()], state_name="run", resume=True) == expected
    same(everything(through), everything(last))
    np.testing.assert_array_equal(through.predict(), last.predict())
    assert torch.equal(torch.get_rng_state(), torch.get_rng_state())
    # The fit after it begins with the same order of rows and the same masks.
    through.fit(0.01, 1)
    last.fit(0.01, 1)
    same(everything(through), everything(last))


FITS = {
    "constant rate": {"n_cycle": 5},
    "cycles": {"n_cycle": 2, "cycle_len": 1, "cycle_mult": 2},
    "decay and a triangle": {"n_cycle": 2, "wds": 1e-2, "cycle_len": 2, "use_clr": (8, 3)},
    "a function of the step": {"n_cycle": 5, "schedule": lambda step: (0.9**step, 0.8)},
    "decoupled decay and 1cycle": {
        "n_cycle": 1,
        "wds": 1e-2,
        "cycle_len": 4,
        "use_clr_beta": (10, 20, 0.95, 0.85),
        "use_wd_sched": True,
    },
}


@on_both_devices
@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("how", FITS)
def test_rows(tmp_path, rng, how, clip):
    data = row_data(tmp_path, rng)

    def make():
        learn = HeadLearner(data, xtra_fc=[70])
        learn.clip = clip
        return learn

    check(make, lambda learn, **kwargs: learn.fit(0.05, **FITS[how], **kwargs), [1, 5, 4])


@pytest.mark.parametrize(
    "opt_fn",
    [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.RMSprop, partial(SGDR, ema=0.9)],
)
def test_rows_through_autograd_with_any_optimizer(tmp_path, rng, opt_fn):
    data = row_data(tmp_path, rng)
    make = partial(HeadLearner, data, xtra_fc=[12], opt_fn=opt_fn)
    check(make, lambda learn, **kwargs: learn.fit(0.01, 2, cycle_len=2, **kwargs), [6, 3])


def test_a_wide_last_layer(tmp_path, rng):
    """More than 64 classes: the engine keeps this layer's momentum the other way round."""
    data = row_data(tmp_path, rng, n=150, n_valid=75, f=80, c=75)
    check(lambda: HeadLearner(data), lambda learn, **kwargs: learn.fit(0.05, 3, **kwargs), [2, 12])


def test_layers_that_sample_from_torch(tmp_path, rng):
    data = row_data(tmp_path, rng)
    head = [nn.Linear(10, 8), nn.Dropout(0.5), nn.Linear(8, 3), nn.LogSoftmax(1)]
    weights = nn.Sequential(*head).state_dict()

    def make():
        model = nn.Sequential(*head)
        model.load_state_dict(weights)
        return Learner.from_model_data(nn.Sequential(*map(copy_of, model)), data)

    check(make, lambda learn, **kwargs: learn.fit(0.01, 3, **kwargs), [5])


def copy_of(layer):
    import copy

    return copy.deepcopy(layer)


@pytest.mark.parametrize(("precompute", "pretrained"), [(True, False), (False, False), (False, True)])
def test_images(tmp_path, precompute, pretrained):
    folder = three_colours(tmp_path / "data")

    def make():
        learn = tiny_learner(image_data(folder), precompute=precompute, pretrained=pretrained)
        if not precompute:
            learn.unfreeze()
        return learn

    rates = 0.05 if precompute else [1e-3, 1e-2, 0.05]
    check(make, lambda learn, **kwargs: learn.fit(rates, 2, cycle_len=1, **kwargs), [3, 4])


def test_a_body_that_an_earlier_fit_has_trained(tmp_path):
    """The activations are those of the body in the state, not of the one that the new learner began with."""
    folder = three_colours(tmp_path / "data")

    def run(**kwargs):
        learn = tiny_learner(image_data(folder))
        learn.unfreeze()
        learn.fit(0.05, 1, state_name="body", resume=True)
        learn.freeze()
        learn.precompute = True
        learn.fit(0.05, 3, state_name="head", resume=True, **kwargs)
        return learn

    with pytest.raises(KeyboardInterrupt):
        run(callbacks=[StopAt(7)])
    other = tiny_learner(image_data(folder), precompute=True)
    other.fit(0.05, 3, state_name="head", resume=True, callbacks=[StopAt()])
    folder_of_states = folder / "models"
    for file in folder_of_states.iterdir():
        file.unlink()
    same(everything(run(callbacks=[StopAt()])), everything(other))


def test_a_new_learner_keeps_the_statistics_that_the_fit_kept(tmp_path):
    """An earlier fit gave the head statistics, so the fit keeps them; a new learner's head has none."""
    folder = three_colours(tmp_path / "data")

    def make(fits):
        learn = tiny_learner(image_data(folder), pretrained=True, seed=5)
        for _ in range(fits):
            learn.fit(0.05, 1)
        learn.unfreeze()
        return learn

    def run(learn, **kwargs):
        learn.fit([1e-3, 1e-2, 0.05], 2, state_name="run", resume=True, **kwargs)
        return everything(learn)

    through = run(make(1), callbacks=[StopAt()])
    for file in (folder / "models").iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        run(make(1), callbacks=[StopAt(4)])
    same(through, run(make(0), callbacks=[StopAt()]))


def test_a_script_may_be_run_again_and_again(tmp_path, rng, capsys):
    data = row_data(tmp_path, rng)

    def script(stops=(None, None)):
        learn = HeadLearner(data, xtra_fc=[8])
        learn.fit(0.05, 2, state_name="one", resume=True, callbacks=[StopAt(stops[0])])
        learn.fit(0.02, 2, cycle_len=1, state_name="two", resume=True, callbacks=[StopAt(stops[1])])
        return learn

    for stops in ((3, None), (None, 2), (None, 4)):
        with pytest.raises(KeyboardInterrupt):
            script(stops)
    capsys.readouterr()
    last = script()
    assert "fit: 'one' is over" in capsys.readouterr().out
    again = script()
    same(everything(last), everything(again))
    for file in (tmp_path / "models").iterdir():
        file.unlink()
    same(everything(script()), everything(last))


def test_best_and_cycles_go_on(tmp_path, rng):
    data = row_data(tmp_path, rng)
    plan = {"cycle_len": 1, "cycle_save_name": "c", "best_save_name": "best"}

    def models():
        infos = {
            p.name: json.loads(p.read_text()) for p in (tmp_path / "models").glob("*.json") if p.name != "run.json"
        }
        return {name: info | dict.fromkeys(("weights", "check")) for name, info in infos.items()}  # sha256 stays

    HeadLearner(data, xtra_fc=[8]).fit(0.5, 4, callbacks=[StopAt()], **plan)
    expected = models()
    for file in (tmp_path / "models").iterdir():
        file.unlink()
    with pytest.raises(KeyboardInterrupt):
        HeadLearner(data, xtra_fc=[8]).fit(0.5, 4, callbacks=[StopAt(10)], state_name="run", **plan)
    HeadLearner(data, xtra_fc=[8]).fit(0.5, 4, callbacks=[StopAt()], state_name="run", resume=True, **plan)
    assert models() == expected


def test_stopped_while_validating(tmp_path, rng):
    data = row_data(tmp_path, rng)
    calls = []

    def metric(preds, targs):
        calls.append(None)
        if len(calls) == interrupt_at:
            signal.raise_signal(signal.SIGINT)
        return 0.5

    def make():
        return HeadLearner(data, xtra_fc=[8], metrics=[metric])

    interrupt_at = 0
    through = make()
    through.fit(0.05, 3, cycle_len=1)
    calls.clear()
    interrupt_at = 2
    learn = make()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(0.05, 3, cycle_len=1, state_name="run")
    assert len(learn.sched.losses) == 2 * len(data.trn_dl)
    assert len(learn.sched.val_losses) == 1
    last = make()
    last.fit(0.05, 3, cycle_len=1, state_name="run", resume=True)
    same(everything(through), everything(last))


def test_a_callbacks_own_state_goes_on(tmp_path, rng):
    class Count(Callback):
        def __init__(self):
            self.epochs = 0

        def on_epoch_end(self, metrics):
            self.epochs += 1

        def state_dict(self):
            return {"epochs": self.epochs, "seen": torch.ones(2), "pair": (1, [None, "a"])}

        def load_state_dict(self, state):
            assert state["pair"] == (1, [None, "a"])
            assert torch.equal(state["seen"], torch.ones(2))
            self.epochs = state["epochs"]

    data = row_data(tmp_path, rng)
    with pytest.raises(KeyboardInterrupt):
        HeadLearner(data).fit(0.05, 3, callbacks=[Count(), StopAt(9)], state_name="run")
    count = Count()
    HeadLearner(data).fit(0.05, 3, callbacks=[count, StopAt()], state_name="run", resume=True)
    assert count.epochs == 3


def any_state(rng, depth=3):
    """Anything that a callback may keep: Python's and numpy's numbers, arrays, tensors, and containers of them."""
    kind = int(rng.integers(16 if depth else 12))
    dtype = np.dtype(rng.choice(["f2", "f4", "f8", ">f4", "i1", "i8", "u2", "?"]))
    leaves = [None, True, 2**70, 0.1, "text", float("inf"), dtype.type(rng.integers(2)), np.float32(0.1)]
    arrays = [rng.integers(0, 9, (2, 3)).astype(dtype), np.zeros((0, 2), dtype), rng.random((4, 3))[::-2, 1:]]
    if kind < 12:
        return [*leaves, *arrays, torch.ones(2, 3)][kind]
    parts = [any_state(rng, depth - 1) for _ in range(rng.integers(4))]
    keys = [["a", "a/b", "b"], [0, "0", 0.5]][kind == 15]
    return [parts, tuple(parts), dict(zip(keys, parts, strict=False)), dict(zip(keys, parts, strict=False))][kind - 12]


def assert_equal_state(a, b):
    a = a.item() if isinstance(a, np.generic) else a
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = list(a.values()), list(b.values())
    if isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_equal_state(one, other)
    elif isinstance(a, np.ndarray | torch.Tensor):
        assert a.shape == b.shape
        assert a.dtype == b.dtype or a.dtype.newbyteorder("=") == b.dtype
        assert (a == b).all()
    else:
        assert a == b


def test_whatever_a_callback_keeps_comes_back(tmp_path, rng):
    states = [any_state(rng) for _ in range(200)] + [{"a/b": np.float32(0.5), "a": {"b": np.ones(1)}}]
    states += [{"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}}]
    tensors = {}
    tree = packed(states, "fit", tensors)
    save_checkpoint(tmp_path / "state", tensors, {"fit": tree})
    loaded, info = load_checkpoint(tmp_path / "state")
    assert_equal_state(states, unpacked(info["fit"], loaded))
    for wrong in (
        object(),
        {1, 2},
        np.array(["a"]),
        np.array([None]),
        np.datetime64(1, "s"),
        1j,
        np.ones(1, np.longdouble),
        np.longdouble(1),
    ):
        with pytest.raises(CheckpointError, match="which a file cannot hold"):
            packed([wrong], "fit", {})


def test_numbers_of_numpy_as_arguments(tmp_path, rng):
    data = row_data(tmp_path, rng)

    def fit(clip, n, **kwargs):
        learn = HeadLearner(data, clip=clip, seed=np.uint8(3))
        return learn.fit(np.float32(0.05), n, wds=np.array([0.1]), cycle_len=n, state_name="run", **kwargs)

    assert fit(np.float32(5), np.int64(2)) == fit(5.0, 2, resume=True)


def smooth(preds, targs, how, scale=1.0):
    return how(preds, targs) * scale


ADDRESSES = """
import sys
from functools import partial
import torch
from fastclf.training.resume import describe_function
from test_resume import smooth
padding = [object() for _ in range(int(sys.argv[1]))]
class Own:
    def __call__(self, preds, targs): return preds.mean()
nll = torch.nn.functional.nll_loss
for how in (smooth, Own(), lambda p, t: p, [Own(), {"how": nll}], partial(smooth, how=nll), Own().__call__):
    print(describe_function(partial(smooth, how=how)))
"""


def test_a_loss_that_holds_a_function_is_the_same_in_another_process():
    one, other = lines_of(ADDRESSES, 1), lines_of(ADDRESSES, 100_000)
    assert one == other
    assert len({*one}) == 6
    assert "smooth" in one[0]
    assert describe_function(partial(torch.optim.Adam, betas=(0.9, 0.99))) == "Adam(('betas', (0.9, 0.99)),)"


def test_a_fit_that_a_callback_has_stopped_is_over(tmp_path, rng):
    class Enough(Callback):
        def on_batch_end(self, loss):
            return True

    data = row_data(tmp_path, rng)
    values = HeadLearner(data).fit(0.05, 3, callbacks=[Enough()], state_name="run")
    again = HeadLearner(data)
    assert again.fit(0.05, 3, callbacks=[Enough()], state_name="run", resume=True) == values
    assert len(again.sched.losses) == 1


def test_the_state_is_a_model_that_can_be_loaded(tmp_path, rng):
    data = row_data(tmp_path, rng)
    learn = HeadLearner(data, xtra_fc=[8])
    learn.fit(0.05, 2, state_name="run")
    before = learn.predict()
    other = HeadLearner(data, xtra_fc=[8], seed=5)
    other.load("run")
    np.testing.assert_array_equal(other.predict(), before)
    assert len(list((tmp_path / "models").iterdir())) == 2


DIFFERENT = {
    "epochs: 4 there, 5 here": {"n_cycle": 5},
    "lrs: [0.05] there, [0.06] here": {"lrs": 0.06},
    "schedule:": {"cycle_len": 1},
    "wds: None there, [0.1] here": {"wds": 0.1},
    "best_save_name: None there, best here": {"best_save_name": "best"},
    "use_wd_sched: False there, True here": {"use_wd_sched": True},
}


@pytest.mark.parametrize("message", DIFFERENT)
def test_another_plan_is_refused(tmp_path, rng, message):
    data = row_data(tmp_path, rng)
    HeadLearner(data).fit(0.05, 4, state_name="run")
    learn = HeadLearner(data)
    before = everything(learn)
    with pytest.raises(CheckpointError, match="cannot go on, as these differ: ") as caught:
        learn.fit(**{"lrs": 0.05, "n_cycle": 4} | DIFFERENT[message], state_name="run", resume=True)
    assert message in str(caught.value)
    same(before, everything(learn))


def test_another_learner_is_refused(tmp_path, rng):
    x, y = rng.standard_normal((60, 5)).astype(np.float32), np.arange(60) % 3

    def data(x=x, y=y, classes=("ant", "bee", "cat"), **kwargs):
        return ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=list(classes), **{"bs": 16} | kwargs)

    def refused(message, learn):
        with pytest.raises(CheckpointError, match=message):
            learn.fit(0.05, 2, state_name="run", resume=True)

    HeadLearner(data()).fit(0.05, 2, state_name="run")
    refused("training set: 60 rows", HeadLearner(data(x=x + 1)))
    refused("training set: 60 rows", HeadLearner(data(y=(y + 1) % 3)))
    refused("classes: .*'cat'.* there, .*'dog'.* here", HeadLearner(data(classes=("ant", "bee", "dog"))))
    refused("bs: 16 there, 20 here", HeadLearner(data(bs=20)))
    refused("data's seed: 42 there, 7 here", HeadLearner(data(seed=7), seed=42))
    refused("; seed: 42 there, 7 here|: seed: 42 there, 7 here", HeadLearner(data(), seed=7))
    refused("head: ", HeadLearner(data(), xtra_fc=[9]))
    refused("crit: NLL.weight=None.* there, NLL.weight=.1.0, 2.0", HeadLearner(data(), class_weights=[1, 2, 3]))
    refused("opt_fn: SGDR there, Adam here", HeadLearner(data(), opt_fn=torch.optim.Adam))
    refused("metrics: ", HeadLearner(data(), metrics=[]))
    learn = HeadLearner(data())
    learn.bn_freeze(True)
    refused("bn_freeze: None there, True here", learn)


def test_frozen_otherwise_is_refused(tmp_path):
    data = image_data(three_colours(tmp_path / "data"))
    tiny_learner(data, precompute=True).fit(0.05, 1, state_name="run")
    for precompute, message in ((False, "trains on: 36 rows of activations there, pictures here"),):
        with pytest.raises(CheckpointError, match=message):
            tiny_learner(data, precompute=precompute).fit(0.05, 1, state_name="run", resume=True)


def test_misuse(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    with pytest.raises(ValueError, match="resume needs state_name"):
        learn.fit(0.1, 1, resume=True)
    with pytest.raises(ValueError, match="must differ"):
        learn.fit(0.1, 1, state_name="a", best_save_name="a")
    learn.save("model")
    with pytest.raises(CheckpointError, match="holds a model, not the state of a fit"):
        learn.fit(0.1, 1, state_name="model", resume=True)


def test_a_damaged_state_is_refused(tmp_path, rng):
    data = row_data(tmp_path, rng)
    HeadLearner(data).fit(0.1, 1, state_name="run")
    manifest = tmp_path / "models" / "run.json"
    good = manifest.read_text()
    manifest.write_text(good.replace('"finished": true', '"finished": false'))
    assert manifest.read_text() != good
    with pytest.raises(CheckpointError, match="is damaged, or was changed by hand"):
        HeadLearner(data).fit(0.1, 1, state_name="run", resume=True)
    (weights,) = (tmp_path / "models").glob("run.*.safetensors")
    manifest.write_text(good)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its sha256"):
        HeadLearner(data).fit(0.1, 1, state_name="run", resume=True)


def test_without_resume_a_fit_begins_anew(tmp_path, rng):
    data = row_data(tmp_path, rng)
    with pytest.raises(KeyboardInterrupt):
        HeadLearner(data).fit(0.1, 2, state_name="run", callbacks=[StopAt(3)])
    learn = HeadLearner(data)
    learn.fit(0.1, 2, state_name="run")
    assert len(learn.sched.losses) == 2 * len(data.trn_dl)
    assert json.loads((tmp_path / "models" / "run.json").read_text())["fit"]["setting"]["epochs"] == 2


def test_what_cannot_be_kept_is_reported_and_training_goes_on(tmp_path, rng):
    class Odd(Callback):
        def state_dict(self):
            return {"when": object()}

    learn = HeadLearner(row_data(tmp_path, rng))
    with pytest.warns(UserWarning, match=r"the state of the fit could not be written .*when is a object"):
        learn.fit(0.1, 2, state_name="run", callbacks=[Odd()])
    assert len(learn.sched.val_losses) == 2
