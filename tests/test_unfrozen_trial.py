"""The step of `fine_tune` that trains all layers: tried on a part of the training images first."""

import numpy as np
import pytest
import torch
from helpers import image_data, state_of, three_colours, tiny_learner
from test_fine_tuning import rows_of

from fastclf import Callback, HeadLearner
from fastclf.learners import unfrozen_trial
from fastclf.training.linear_heads import LinearSetting
from fastclf.training.metrics import log_loss

SETTING = LinearSetting(0.1, "common")


class After(Callback):
    """Keeps the weights at the end of each epoch."""

    def __init__(self, learn):
        self.learn, self.weights = learn, []

    def on_epoch_end(self, metrics):
        self.weights.append([p.detach().clone() for p in self.learn.model.parameters()])


def around(mean, spread, rng, n=200):
    """Losses whose mean has a standard error of ``spread``."""
    noise = rng.standard_normal(n)
    return mean + spread * np.sqrt(n) * (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize(
    ("frozen", "after", "mean", "share"),
    [
        (0.5, 0.45, 0.4, 0.5),
        (0.5, 0.39, 0.4, 0.5),  # by less than a standard error
        (0.5, 0.3, 0.4, 0.0),
        (0.5, 0.6, 0.51, 0.5),  # no clear loss
        (0.5, 0.6, 0.54, None),
        (0.5, 0.54, 0.7, None),
        (0.5, 0.4, 0.7, 0.0),
    ],
)
def test_all_layers_train_unless_that_is_clearly_worse(tmp_path, monkeypatch, capsys, rng, frozen, after, mean, share):
    """The trial is of the training images alone; a body that stays frozen keeps its bits, and so does the head."""
    data = image_data(three_colours(tmp_path, n=20))
    learn, peer = (tiny_learner(data, precompute=True, pretrained=True) for _ in range(2))
    base = rng.standard_normal(200)
    judged, found = [], iter([base + frozen, *(base + around(value, 0.02, rng) for value in (after, mean))])

    def judge(trial):
        judged.append((trial._data.trn_ds.fnames, trial._data.val_ds.fnames))
        return next(found)

    peer.fine_tune(SETTING, unfreeze=False)
    before = [p.detach().clone() for p in peer.model.parameters()]
    monkeypatch.setattr(unfrozen_trial, "_losses", judge)
    weights = After(learn)
    scores = learn.fine_tune(SETTING, [weights])
    assert judged[0] == judged[1] == judged[2]
    trained, left_out = judged[0]
    assert sorted([*trained, *left_out]) == sorted(data.trn_ds.fnames)
    assert 8 <= len(left_out) <= 16
    printed = capsys.readouterr().out
    if share is None:
        assert learn.precompute
        assert all(map(torch.equal, state_of(learn).values(), state_of(peer).values()))
        assert "the body stays frozen" in printed
        return
    assert not learn.precompute
    assert learn.groups.frozen_to == 0
    assert "now the same on all training images" in printed
    for p, old, new in zip(learn.model.parameters(), before, weights.weights[-1], strict=True):
        assert torch.allclose(p, share * old + (1 - share) * new, atol=1e-6)
        assert not torch.equal(old, new)
    assert scores == learn._validate()  # of what the learner holds
    assert scores[0] == pytest.approx(log_loss(*learn.predict_with_targs()), rel=1e-5, abs=1e-6)
    assert ("the mean of the weights before and after: val_loss " in printed) == (share == 0.5)


@pytest.mark.parametrize("several", [False, True])
def test_a_model_is_judged_by_the_loss_of_each_image(tmp_path, rng, several):
    learn = HeadLearner(rows_of(tmp_path, rng, several=several))
    learn.fit(0.05, 1)
    losses = unfrozen_trial._losses(learn)
    assert losses.shape == (24,)
    assert losses.mean() == pytest.approx(learn._validate()[0], rel=1e-5, abs=1e-6)  # of float32 predictions near 1
    preds, y = learn.predict_with_targs()
    assert losses[3] == pytest.approx(log_loss(preds[3:4], y[3:4]), rel=1e-5, abs=1e-6)


def test_a_certain_mistake_is_not_infinite(tmp_path, rng, monkeypatch):
    for several in (False, True):
        learn = HeadLearner(rows_of(tmp_path, rng, several=several))
        y = learn.data.val_y
        wrong = 1 - y if several else np.where(np.eye(3)[y] > 0, -np.inf, np.log(0.5))
        monkeypatch.setattr(learn, "predict_with_targs", lambda pair=(wrong, y): pair)
        assert unfrozen_trial._losses(learn) == pytest.approx(-np.log(np.finfo(np.float32).eps))


def test_a_trial_that_diverges_leaves_the_body_frozen(tmp_path, monkeypatch, capsys):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=True)
    monkeypatch.setattr(unfrozen_trial, "_RATES", (1e30, 1e30, 1e30))
    before = {name: tensor.clone() for name, tensor in learn.model.body.state_dict().items()}
    learn.fine_tune(SETTING)
    assert "with all layers trained weights are not finite: the body stays frozen" in capsys.readouterr().out
    assert learn.precompute
    for name, tensor in learn.model.body.state_dict().items():
        assert torch.equal(tensor, before[name])
