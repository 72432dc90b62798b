"""What is read changes nothing: attributes, properties, texts, lengths and plots of all that a user holds."""

import random
from collections.abc import Sized
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, three_colours, tiny_body, tiny_learner
from torch import nn

from fastclf import ConvLearner, HeadLearner, ImageModelResults
from fastclf.models.net import Net


class OwnHead(nn.Module):
    """Frozen in part, and it draws random numbers even in evaluation mode."""

    def __init__(self, n_in, c):
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(n_in, 5), nn.Dropout(0.1), nn.Linear(5, c)
        self.first.requires_grad_(False)

    def forward(self, x):
        return torch.log_softmax(self.last(self.drop(self.first(x)) + 0 * torch.rand(5)), 1)


def state(learn, folder):
    modules = [*learn.model.modules()]
    loaders = [getattr(learn._data, name) for name in ("trn_dl", "fix_dl", "val_dl", "aug_dl", "test_dl")]
    return {
        "tensors": [tensor.detach().clone().numpy().tobytes() for tensor in learn.model.state_dict().values()],
        "gradients": [parameter.requires_grad for parameter in learn.model.parameters()],
        "modes": [module.training for module in modules],
        "hooks": [len(module._forward_hooks) for module in modules],
        "groups": (learn.groups.frozen_to, list(learn.groups.kept)),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "files": {path: path.stat().st_mtime_ns for path in folder.rglob("*")},
        "epochs": (learn._epochs, learn._fits, [dl.epoch for dl in loaders if dl is not None]),
        "recorded": (list(learn.sched.lrs), list(learn.sched.losses), list(learn.sched.val_losses)),
        "precompute": getattr(learn, "precompute", None),
        "threads": torch.get_num_threads(),
        "grad enabled": torch.is_grad_enabled(),
    }


def look_at(thing, depth=3, seen=None):
    """Reads all that is public, as a notebook's completion does; how much there was."""
    seen = set() if seen is None else seen
    if id(thing) in seen or depth < 0:
        return 0
    seen.add(id(thing))
    repr(thing), str(thing)
    if isinstance(thing, Sized):
        len(thing)
    for show in ("_repr_html_", "_repr_png_"):
        if hasattr(thing, show):
            getattr(thing, show)()
    names = [name for name in dir(thing) if not name.startswith("_")]
    values = [getattr(thing, name) for name in names]
    ours = [value for value in values if type(value).__module__.startswith("fastclf")]
    return len(names) + sum(look_at(value, depth - 1, seen) for value in ours)


def own_head(folder, precompute):
    data = image_data(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        learn = ConvLearner(data, Net(tiny_body(), OwnHead(12, 3)), seed=0)
    learn.precompute = precompute
    return learn


MAKERS = {
    "images": lambda folder: tiny_learner(image_data(folder)),
    "cached": lambda folder: tiny_learner(image_data(folder), precompute=True),
    "own head on images": lambda folder: own_head(folder, False),
    "own head, cached": lambda folder: own_head(folder, True),
    "rows": lambda folder: HeadLearner(row_data(folder, np.random.default_rng(0)), xtra_fc=[4]),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_looking_changes_nothing(tmp_path, make):
    learns = [make(three_colours(tmp_path / name)) for name in ("looked at", "not")]
    for turn in range(2):
        for learn in learns:
            learn.fit(0.05, 1)
        learn, folder = learns[0], tmp_path / "looked at"
        results = ImageModelResults(learn.data.val_ds, learn.predict())
        learn.head.train()  # one that evaluation has not left
        before = state(learn, folder)
        assert look_at(learn) + look_at(results) > 100
        assert learn.data.trn_ds.y is not None
        for plot in (learn.sched.plot, learn.sched.plot_lr, learn.sched.plot_loss):
            plot().figure.clear()
        learn.summary()
        after = state(learn, folder)
        assert {key for key in before if before[key] != after[key]} == set(), turn
    for mine, other in zip(*(learn.model.state_dict().values() for learn in learns), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    assert learns[0].sched.losses == learns[1].sched.losses


@pytest.mark.parametrize("precompute", [False, True])
def test_what_is_frozen_inside_a_head_stays_so(tmp_path, precompute):
    learn = own_head(three_colours(tmp_path), precompute)
    frozen = learn.model.head.first.weight.detach().clone()
    learn.fit(0.5, 2)
    learn.predict()
    assert torch.equal(learn.model.head.first.weight, frozen)
    learn.unfreeze()  # said in so many words
    learn.fit(0.5, 1)
    assert not torch.equal(learn.model.head.first.weight, frozen)


def test_what_is_frozen_inside_our_head_stays_so(tmp_path, rng):
    """The native engine trains a head whole, so it must not be asked to."""
    learn = HeadLearner(row_data(tmp_path, rng), xtra_fc=[8])
    layer = next(layer for layer in learn.head.layers if isinstance(layer, nn.Linear))
    layer.requires_grad_(False)
    before = [p.detach().clone() for p in learn.head.parameters()]
    learn.fit(0.5, 2)
    moved = [not torch.equal(a, b) for a, b in zip(before, learn.head.parameters(), strict=True)]
    assert moved == [p.requires_grad for p in learn.head.parameters()]
    assert any(moved)


def test_the_path_of_the_data_is_not_the_working_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    three_colours(Path("data"))
    learn = tiny_learner(image_data("data"))
    monkeypatch.chdir("/")
    learn.precompute = True
    learn.fit(0.05, 1, state_name="run")
    learn.precompute = False
    learn.fit(0.05, 1)
    learn.save("m")
    assert (tmp_path / "data" / "models" / "m.json").is_file()
    assert learn.data.path == learn.data.trn_ds.path == tmp_path / "data"
