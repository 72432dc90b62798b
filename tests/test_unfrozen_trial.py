"""The step of `fine_tune` that trains all layers: tried on a part of the training images first."""

import numpy as np
import pytest
import torch
from helpers import image_data, state_of, three_colours, tiny_learner
from test_fine_tuning import rows_of

from fastclf import BCE, NLL, HeadLearner
from fastclf.learners import unfrozen_trial
from fastclf.learners.unfrozen_trial import _Judged
from fastclf.training.linear_heads import LinearSetting

FROZEN = _Judged(0.5, 0.2)


@pytest.mark.parametrize(
    ("unfrozen", "helps"),
    [
        (_Judged(0.4, 0.2, 1.5), True),
        (_Judged(0.4, 0.1), True),
        (_Judged(0.4, 0.3), False),  # surer of what is right, but more is wrong
        (_Judged(0.5, 0.2), False),
        (_Judged(0.6, 0.1), False),
    ],
)
def test_a_better_model_has_a_lower_loss_and_no_more_wrong_answers(unfrozen, helps):
    assert unfrozen.beats(FROZEN) == helps


@pytest.mark.parametrize(("unfrozen", "helps"), [(_Judged(0.4, 0.2, 1.5), True), (_Judged(0.4, 0.3, 1.5), False)])
def test_all_layers_train_only_where_the_trial_gains(tmp_path, monkeypatch, capsys, unfrozen, helps):
    """The trial is of the training images alone; a body that stays frozen keeps its bits, and so does the head."""
    data = image_data(three_colours(tmp_path, n=20))
    learn, peer = (tiny_learner(data, precompute=True, pretrained=True) for _ in range(2))
    judged, found = [], iter([FROZEN, unfrozen])

    def judge(trial):
        judged.append((trial._data.trn_ds.fnames, trial._data.val_ds.fnames))
        return next(found)

    setting = LinearSetting(0.1, "common")
    peer.fine_tune(setting, unfreeze=False)
    monkeypatch.setattr(unfrozen_trial, "_judged", judge)
    learn.fine_tune(setting)
    assert judged[0] == judged[1]
    trained, left_out = judged[0]
    assert sorted([*trained, *left_out]) == sorted(data.trn_ds.fnames)
    assert 8 <= len(left_out) <= 16
    same = [torch.equal(a, b) for a, b in zip(state_of(learn).values(), state_of(peer).values(), strict=True)]
    printed = capsys.readouterr().out
    if helps:
        assert not learn.precompute
        assert learn.groups.frozen_to == 0
        assert not all(same)
        assert "now the same on all training images" in printed
        assert learn.decision.temperature == unfrozen.temperature
    else:
        assert learn.precompute
        assert all(same)
        assert "the body stays frozen" in printed
        assert learn.decision.temperature == 1


@pytest.mark.parametrize("several", [False, True])
def test_a_model_is_judged_at_its_best_temperature(tmp_path, rng, monkeypatch, several):
    data = rows_of(tmp_path, rng, several=several)
    learn = HeadLearner(data)
    y = torch.from_numpy(data.val_ds.y)
    right = y if several else torch.eye(data.c)[y]
    logits = torch.from_numpy(3 * rng.standard_normal((len(y), data.c))) + 4 * right - 2
    logits[0] = 3 - 6 * right[0]  # without a mistake, the lower the temperature the better
    preds = torch.sigmoid(logits) if several else torch.log_softmax(logits, 1)
    monkeypatch.setattr(learn, "predict_with_targs", lambda: (preds.numpy(), y.numpy()))
    judged = unfrozen_trial._judged(learn)
    crit = BCE() if several else NLL()
    losses = [float(crit.from_logits(logits / t, y)) for t in np.exp(np.linspace(-3, 4, 7001))]
    assert judged.loss == pytest.approx(min(losses), rel=1e-5)
    assert judged.temperature == pytest.approx(max(1, np.exp(np.linspace(-3, 4, 7001))[np.argmin(losses)]), rel=2e-3)
    answers = (logits > 0) == (y > 0) if several else logits.argmax(1) == y
    assert judged.wrong == pytest.approx(1 - float(answers.double().mean()))


def test_a_trial_that_diverges_leaves_the_body_frozen(tmp_path, monkeypatch, capsys):
    learn = tiny_learner(image_data(three_colours(tmp_path)), precompute=True)
    monkeypatch.setattr(unfrozen_trial, "_RATES", (1e30, 1e30, 1e30))
    before = {name: tensor.clone() for name, tensor in learn.model.body.state_dict().items()}
    learn.fine_tune(LinearSetting(0.1, "common"))
    assert "loss inf and 100.0% wrong with all layers trained: the body stays frozen" in capsys.readouterr().out
    assert learn.precompute
    for name, tensor in learn.model.body.state_dict().items():
        assert torch.equal(tensor, before[name])
