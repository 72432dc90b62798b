"""The step of `fine_tune` that trains all layers: tried on a part of the training images first."""

import pytest
import torch
from helpers import image_data, state_of, three_colours, tiny_learner

from fastclf import unfrozen_trial
from fastclf.training.linear_heads import LinearSetting


@pytest.mark.parametrize("helps", [False, True])
def test_all_layers_train_only_where_the_trial_gains(tmp_path, monkeypatch, capsys, helps):
    """The trial is of the training images alone; a body that stays frozen keeps its bits, and so does the head."""
    data = image_data(three_colours(tmp_path, n=20))
    learn, peer = (tiny_learner(data, precompute=True, pretrained=True) for _ in range(2))
    judged, fit = [], type(learn).fit

    def spoilt(self, *args, **kwargs):
        scores = fit(self, *args, **kwargs)
        if self is not learn:
            judged.append((self._data.trn_ds.fnames, self._data.val_ds.fnames))
            scores[0] = 0.0 if helps else 1e9
        return scores

    setting = LinearSetting(0.1, "common")
    peer.fine_tune(setting, unfreeze=False)
    monkeypatch.setattr(type(learn), "fit", spoilt)
    scores = learn.fine_tune(setting)
    ((trained, left_out),) = judged
    assert sorted([*trained, *left_out]) == sorted(data.trn_ds.fnames)
    assert 8 <= len(left_out) <= 16
    same = [torch.equal(a, b) for a, b in zip(state_of(learn).values(), state_of(peer).values(), strict=True)]
    printed = capsys.readouterr().out
    if helps:
        assert not learn.precompute
        assert learn.groups.frozen_to == 0
        assert not all(same)
        assert "now the same on all training images" in printed
        monkeypatch.undo()
        assert scores[0] == pytest.approx(learn.evaluate()["log_loss"], rel=1e-4)
    else:
        assert learn.precompute
        assert all(same)
        assert "the body stays frozen" in printed


def test_a_trial_that_diverges_leaves_the_body_frozen(tmp_path, monkeypatch, capsys):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=True)
    monkeypatch.setattr(unfrozen_trial, "_RATES", (1e30, 1e30, 1e30))
    before = {name: tensor.clone() for name, tensor in learn.model.body.state_dict().items()}
    learn.fine_tune(LinearSetting(0.1, "common"))
    assert "inf with all layers trained: the body stays frozen" in capsys.readouterr().out
    assert learn.precompute
    for name, tensor in learn.model.body.state_dict().items():
        assert torch.equal(tensor, before[name])
