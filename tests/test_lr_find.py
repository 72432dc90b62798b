"""The rate search on sets of any size, in the native engine and through autograd."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import row_data

from fastclf import HeadLearner, Learner

AUTOGRAD = partial(torch.optim.SGD, momentum=0.9)


@pytest.mark.parametrize("opt_fn", [None, AUTOGRAD], ids=["engine", "autograd"])
@pytest.mark.parametrize(("n", "batches"), [(16, 1), (60, 4), (33, 2), (1700, 107)])
def test_about_a_hundred_steps(tmp_path, rng, n, batches, opt_fn, capsys):
    data = row_data(tmp_path, rng, n=n)
    assert len(data.trn_dl) == batches
    learn = HeadLearner(data, xtra_fc=[8], opt_fn=opt_fn)
    end = 1e-3  # no set diverges so early
    learn.lr_find(end_lr=end)
    steps = max(batches, 100)
    assert len(learn.sched.lrs) == len(learn.sched.losses) == steps
    np.testing.assert_allclose(learn.sched.lrs, 1e-5 * (end / 1e-5) ** (np.arange(steps) / steps))
    assert f"lr_find: {steps} steps; " in capsys.readouterr().out


def test_every_pass_is_an_epoch_of_its_own(tmp_path, rng, monkeypatch):
    data = row_data(tmp_path, rng, n=60)
    learn, epochs = HeadLearner(data, opt_fn=AUTOGRAD), []
    batches = type(data.trn_dl).batches
    monkeypatch.setattr(type(data.trn_dl), "batches", lambda self, epoch: epochs.append(epoch) or batches(self, epoch))
    learn.lr_find(end_lr=1e-3)
    assert epochs == list(range(25))
    learn.fit(1e-3, 1)
    assert epochs[25] == 0  # a search takes no epoch from a fit


def test_engine_and_autograd_suggest_the_same(tmp_path, rng):
    data = row_data(tmp_path, rng, n=200)
    ours, theirs = (HeadLearner(data, xtra_fc=[8], opt_fn=opt_fn).lr_find() for opt_fn in (None, AUTOGRAD))
    assert ours.rates().keys() == theirs.rates().keys() >= {"steepest", "valley"}
    for name, rate in ours.rates().items():
        assert abs(np.log(rate / theirs.rates()[name])) < 3 * np.log(10) * 6 / 100  # within a few steps


def test_the_suggestions_are_returned_printed_and_drawn(tmp_path, rng, capsys):
    learn = HeadLearner(row_data(tmp_path, rng, n=200), xtra_fc=[8])
    found = learn.lr_find()
    assert found is learn.sched.suggestions
    line = capsys.readouterr().out.splitlines()[-1]
    assert all(f"{name} {rate:.1e}" in line for name, rate in found.rates().items())
    ax = learn.sched.plot()
    marked = {drawn.get_label(): drawn.get_xydata()[0] for drawn in ax.lines[1:]}
    for name, rate in found.rates().items():
        x, y = marked[f"{name}: {rate:.1e}"]
        assert x == rate
        assert min(learn.sched.losses) <= y <= max(learn.sched.losses)
    with pytest.raises(AttributeError):
        found.valley = 1
    learn.fit(1e-3, 1)
    assert learn.sched.suggestions is None
    assert len(learn.sched.plot().lines) == 1


def test_an_array_of_rates_is_searched_for_its_last_group(tmp_path, rng):
    data = row_data(tmp_path, rng)
    model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.LogSoftmax(1))
    learn = Learner(data, model, [model[0], model[2]])
    learn.lr_find([1e-7, 1e-5], end_lr=1e-3)
    assert len(learn.sched.lrs) == 100
    assert learn.sched.lrs[0] == 1e-5
    assert learn.sched.lrs[-1] == pytest.approx(1e-5 * 100**0.99)


def test_a_loss_that_is_nan_at_once_ends_the_search_without_suggestions(tmp_path, rng, capsys):
    learn = HeadLearner(row_data(tmp_path, rng), crit=lambda out, y: out.sum() * float("nan"))
    assert learn.lr_find().rates() == {}
    assert "lr_find: 1 step; no rate suggested" in capsys.readouterr().out
    learn.sched.plot()
