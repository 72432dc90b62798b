"""What is refused or stopped leaves the learner as it was, or such that the next call goes on."""

import copy
import re

import numpy as np
import pytest
import torch
from helpers import Watches, assert_same, image_data, row_data, state_of, three_colours, tiny_learner
from test_calls import At
from torch import nn

from fastclf import (
    NLL,
    Callback,
    CheckpointError,
    CropType,
    DivergedError,
    HeadLearner,
    ImageClassifierData,
    Learner,
    compare,
    resnet18,
)
from fastclf.activations import precompute
from fastclf.decision import Decision
from fastclf.learners import comparing
from fastclf.training.head_runs import HeadSetting
from fastclf.training.linear_heads import LinearSetting

LINEAR = LinearSetting(1.0, "common")
TUNED = Decision(temperature=2.0)


class Raises(Callback):
    def on_train_end(self):
        raise RuntimeError("a user's own")


@pytest.fixture
def trained(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng), xtra_fc=[16])
    learn.fit(0.05, 2)
    learn.decision = TUNED
    return learn


@pytest.mark.parametrize(
    ("setting", "callbacks", "error", "message"),
    [
        (HeadSetting(), ["x"], ValueError, "fine_tune: callbacks must be a list of Callback objects"),
        (LINEAR, ["x"], ValueError, "fine_tune: callbacks must be a list of Callback objects"),
        (LINEAR, [Raises()], RuntimeError, "a user's own"),
        (HeadSetting(epochs=1), [Raises()], RuntimeError, "a user's own"),
        (HeadSetting(lr=1e12), [], DivergedError, r"HeadSetting\(.* does not end with finite weights; the head is as"),
        ({"lr": 1}, [], ValueError, "setting must be a HeadSetting or LinearSetting"),
    ],
)
def test_a_fine_tune_that_fails_leaves_the_head(trained, setting, callbacks, error, message):
    before, widths, predictions = state_of(trained), trained.head.widths, trained.predict()
    with pytest.raises(error, match=message):
        trained.fine_tune(setting, callbacks)
    assert trained.head.widths == widths
    assert_same(before, state_of(trained))
    np.testing.assert_array_equal(trained.predict(), predictions)


@pytest.mark.parametrize("state_name", [None, "run"])
def test_a_fit_that_is_refused_keeps_what_was_tuned(trained, capsys, state_name):
    sched = trained.sched
    if state_name is None:
        trained.opt_fn = lambda groups, lr: torch.optim.LBFGS(groups, lr)
        with pytest.raises(ValueError, match="LBFGS"):
            trained.fit(0.1, 1)
    else:
        trained.fit(0.1, 1, state_name=state_name)
        trained.decision, sched = TUNED, trained.sched
        with pytest.raises(CheckpointError):
            trained.fit(0.2, 1, state_name=state_name, resume=True)
    assert (trained.decision, trained.sched) == (TUNED, sched)
    assert capsys.readouterr().out.count("forgotten") == (state_name is not None)


def test_a_search_in_a_callback_changes_nothing_of_the_fit(tmp_path, rng):
    """A new BatchNorm has statistics after an epoch; the fit goes on teaching it."""
    data = row_data(tmp_path, rng)

    def fitted(search):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            old, new = nn.BatchNorm1d(10), nn.BatchNorm1d(8)
            body = nn.Sequential(old, nn.Linear(10, 8), new)
            for _ in range(3):
                old(torch.randn(16, 10))
            model = nn.Sequential(body, nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)))
        learn = Learner.from_model_data(model, data, [body, model[1]])
        learn.groups.pretrained, learn.groups._n_body = True, 1
        learn.fit(0.01, 2, callbacks=[Watches(lambda: learn.lr_find() if search else None)])
        return state_of(learn)

    assert_same(fitted(search=False), fitted(search=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return three_colours(tmp_path / "data")


def test_data_that_do_not_fit_are_not_taken(folder, tmp_path):
    data = image_data(folder)
    learn = tiny_learner(data, precompute=True, views=2)
    cached = learn.data
    with pytest.raises(ValueError, match="views=2 needs random transforms"):
        learn.set_data(image_data(folder, augs=(), crop_type=CropType.NO))
    assert learn._data is data
    assert learn.data is cached
    assert learn.precompute


def several_of(data):
    x, y = data.trn_ds.rows, np.eye(data.c, dtype=np.float32)[data.trn_y]
    return ImageClassifierData.from_arrays(data.path, (x, y), (x, y), bs=16, classes=data.classes)


def test_data_and_models_of_another_kind_are_refused(trained, tmp_path, rng):
    learn, data = trained, trained.data
    learn.save("one")
    several = several_of(data)
    images = image_data(three_colours(tmp_path / "images"))
    wrong = {
        r"labels of the learner's kind \(one\), got several": several,
        r"rows of \[10\] numbers, .* got rows of \[7\]": row_data(tmp_path, rng, f=7),
    }
    for message, other in wrong.items():
        with pytest.raises(ValueError, match=message):
            learn.set_data(other)
    images.classes[:] = data.classes
    with pytest.raises(ValueError, match="got images"):
        learn.set_data(images)
    assert learn.data is data
    other = HeadLearner(several, xtra_fc=[16])
    before = state_of(other)
    with pytest.raises(CheckpointError, match="labels of another kind: one there, several here"):
        other.load("one")
    assert_same(before, state_of(other))


CHANGES = {
    "load": lambda learn: learn.load("m"),
    "freeze_to": lambda learn: learn.freeze_to(1),
    "set_data": lambda learn: learn.set_data(image_data(learn._data.path, sz=20)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("again", [False, True])
def test_a_pass_that_was_stopped_goes_on_where_it_is_needed(folder, monkeypatch, change, again):
    """After Ctrl-C, and whether or not the call is made again, the head trains on the activations of what there is."""
    peer, learn = (tiny_learner(image_data(folder), precompute=True) for _ in range(2))
    tiny = tiny_learner(image_data(folder))
    with torch.no_grad():
        next(tiny.model.body.parameters()).mul_(2)
    tiny.save("m")
    with pytest.MonkeyPatch.context() as patch:
        At(patch, precompute, "_give_back", 3)
        with pytest.raises(KeyboardInterrupt):
            change(learn)
    assert learn.precompute
    assert re.search("precompute +on: ", repr(learn))
    if again or change is CHANGES["set_data"]:  # the others have changed the network already
        change(learn)
    change(peer)
    assert learn.precompute
    assert learn.fit(0.01, 1) == peer.fit(0.01, 1)
    np.testing.assert_array_equal(learn.data.trn_ds.rows, peer.data.trn_ds.rows)


class DerivedNLL(NLL):
    """What it computes is known only to itself."""


@pytest.mark.parametrize("crit", [lambda preds, y: preds.sum(), DerivedNLL()])
def test_fine_tune_refuses_before_it_computes(folder, crit):
    data = image_data(folder)
    learn = tiny_learner(data, crit=crit)
    learn.unfreeze()
    with pytest.raises(ValueError, match="the loss must be the default one"):
        learn.fine_tune()
    assert learn.groups.frozen_to == 0
    assert not learn.precompute


def test_a_trial_shares_images_and_rows(folder, monkeypatch):
    """They may be larger than memory."""
    learn = tiny_learner(image_data(folder), precompute=True)
    copied = []
    for kind in (type(learn._data), type(learn._stage)):
        monkeypatch.setattr(kind, "__deepcopy__", lambda self, memo: copied.append(self) or self, raising=False)
    learn.fine_tune(LINEAR)
    assert copied == []


@pytest.mark.parametrize("n_aug", [-1, 2.5, True])
def test_views_are_counted(folder, n_aug):
    for views in (1, 3):
        with pytest.raises(ValueError, match="TTA: n_aug must be"):
            tiny_learner(image_data(folder), precompute=True, views=views).TTA(n_aug)


def test_a_head_that_diverges_ends_a_comparison(folder, monkeypatch):
    real = comparing.choose_usual

    def diverged(*args, **how):
        found = copy.copy(real(*args, **how))
        found.logits[0][0] = np.nan
        return found

    monkeypatch.setattr(comparing, "choose_usual", diverged)
    with pytest.raises(DivergedError, match="compare: a head on torchvision:resnet18 does not end"):
        compare(image_data(folder), [resnet18], k=3, pretrained=False)
