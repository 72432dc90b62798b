"""What unfreezing does to a model: to its BatchNorm, its gradients and its predictions."""

import numpy as np
import pytest
import torch
from helpers import image_data, three_colours, tiny_body, tiny_learner
from torch import nn

from fastclf import HeadLearner, ImageClassifierData, Learner
from fastclf.training.callbacks import Callback


@pytest.fixture
def data(tmp_path):
    return image_data(three_colours(tmp_path / "data"), device="cpu")


def unfrozen(data, **kwargs):
    """A learner whose head has been trained, and whose body trains from now on."""
    learn = tiny_learner(data, precompute=True, **kwargs)
    learn.fit(0.05, 3)
    learn.unfreeze()
    return learn


def statistics(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if "running_" in name}


def same(module, before):
    return {
        name for name, tensor in module.state_dict().items() if name in before and torch.equal(tensor, before[name])
    }


def said(capsys):
    """What the fits since the last call have printed, apart from their tables."""
    return [line for line in capsys.readouterr().out.splitlines() if "bn_freeze" in line or "clip" in line]


class Modes(Callback):
    """Notes in every batch which BatchNorm layers update their statistics."""

    def __init__(self, learn):
        layers = [m for m in learn.model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        self.layers, self.seen = layers, []

    def on_batch_begin(self):
        self.seen.append([layer.training for layer in self.layers])


def test_unfreezing_a_pretrained_body_hardly_moves_predictions_at_tiny_rates(data):
    learn = unfrozen(data, pretrained=True)
    before = learn.predict()
    learn.fit([1e-9, 1e-9, 1e-9], 3, cycle_len=1, cycle_mult=2)
    np.testing.assert_allclose(learn.predict(), before, atol=1e-4)
    learn.bn_freeze(False)
    learn.fit([1e-9, 1e-9, 1e-9], 3, cycle_len=1, cycle_mult=2)
    assert np.abs(learn.predict() - before).max() > 0.1


def test_statistics_stay_and_scales_train_in_every_epoch(data):
    learn = unfrozen(data, pretrained=True)
    before = {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}
    modes = Modes(learn)
    learn.fit([1e-3, 1e-2, 1e-2], 2, cycle_len=1, callbacks=[modes])
    assert len(modes.seen) == 2 * len(data.trn_dl)
    assert not np.any(modes.seen)
    kept = {name for name in before if "running_" in name or "num_batches" in name}
    assert same(learn.model, before) == kept


def test_a_body_with_random_weights_learns_its_statistics(data, capsys):
    learn = unfrozen(data)
    modes = Modes(learn)
    for _ in range(2):
        learn.fit([1e-3, 1e-2, 1e-2], 1, callbacks=[modes])
    assert np.all(modes.seen)
    assert said(capsys) == []


def test_a_new_head_on_an_unfrozen_body_learns_its_statistics_in_its_first_fit(data):
    learn = tiny_learner(data, pretrained=True)
    learn.unfreeze()
    for expected in ([False, False, True, True], [False] * 4):
        modes = Modes(learn)
        learn.fit([1e-3, 1e-2, 1e-2], 2, callbacks=[modes])
        assert modes.seen == [expected] * 2 * len(data.trn_dl)


def test_a_frozen_body_leaves_the_head_as_it_was(data, capsys):
    learn = unfrozen(data, pretrained=True)
    learn.freeze()
    modes = Modes(learn)
    learn.fit(1e-2, 1, callbacks=[modes])
    assert modes.seen[0] == [False, False, True, True]
    assert said(capsys) == []


@pytest.mark.parametrize("pretrained", [False, True])
def test_a_network_of_ones_own(data, pretrained):
    model = nn.Sequential(tiny_body(pretrained=pretrained), nn.Flatten(), nn.LazyLinear(3), nn.LogSoftmax(1))
    model(torch.zeros(1, 3, 16, 16))
    learn = Learner.from_model_data(model, data)
    before = statistics(model)
    assert before
    learn.fit(1e-3, 1)
    assert same(model, before) == (set(before) if pretrained else set())


def test_a_head_on_cached_activations_is_no_fine_tuning(data, capsys):
    learn = unfrozen(data, pretrained=True)
    learn.freeze()
    learn.precompute = True
    modes = Modes(learn)
    learn.fit(1e-2, 1, callbacks=[modes])
    assert modes.seen[0][2:] == [True, True]
    assert said(capsys) == []


def test_what_was_chosen_is_logged_once(data, capsys):
    learn = unfrozen(data, pretrained=True)
    assert said(capsys) == []
    learn.lr_find()
    learn.fit([1e-3, 1e-2, 1e-2], 1)
    learn.fit([1e-3, 1e-2, 1e-2], 1)
    (line,) = said(capsys)
    assert "keeps its statistics (bn_freeze(False) updates them) and the gradient's norm is bounded at 5" in line


def test_what_the_user_chose_is_not_logged(data, capsys):
    learn = unfrozen(data, pretrained=True)
    for bn_freeze, clip, expected in (
        (True, None, ["bn_freeze(True): the gradient's norm is bounded at 5"]),
        (True, 3.0, []),
        (False, None, ["bn_freeze(False): BatchNorm of a pretrained body learns new statistics"]),
        (None, 3.0, ["keeps its statistics (bn_freeze(False) updates them), as small"]),
    ):
        learn._bn_frozen, learn.clip = bn_freeze, clip
        learn.fit([1e-3, 1e-2, 1e-2], 1)
        lines = said(capsys)
        assert len(lines) == len(expected)
        assert all(text in line for text, line in zip(expected, lines, strict=True))


@pytest.mark.parametrize(("clip", "bound"), [(None, 5), (float("inf"), None), (0.5, 0.5)])
def test_the_gradient_is_bounded_while_a_pretrained_body_trains(data, clip, bound):
    """A step of plain SGD with rate 1 moves the weights by the gradient."""

    def weights(learn):
        return torch.cat([p.detach().flatten() for p in learn.model.parameters()])

    def moved(learn):
        learn.opt_fn = torch.optim.SGD
        learn.crit = lambda output, y: 1000 * nn.functional.nll_loss(output, y)
        data.trn_dl.bs = len(data.trn_ds)
        before = weights(learn)
        learn.fit(1.0, 1)
        return float((weights(learn) - before).norm())

    norm = moved(unfrozen(data, pretrained=True, clip=clip))
    assert norm > 100 if bound is None else norm == pytest.approx(bound, rel=1e-3)
    if clip is None:
        assert moved(unfrozen(data)) > 100


def row_sets(rng):
    """Two sets of activations as `tiny_body` gives them, pooled."""
    return [(rng.standard_normal((30, 12)).astype(np.float32), np.arange(30) % 3) for _ in range(2)]


def test_a_saved_model_records_whether_its_body_was_pretrained(data, rng):
    for pretrained in (True, False):
        unfrozen(data, pretrained=pretrained).save(f"from {pretrained}")
    rows = ImageClassifierData.from_arrays(data.path, *row_sets(rng), bs=16, classes=data.classes)
    head = HeadLearner(rows, xtra_fc=[8])
    head.fit(0.05, 1)
    head.save("head")
    learn = tiny_learner(data)
    for name, expected in (("head", False), ("from True", True), ("head", True), ("from False", False)):
        learn.load(name)
        assert learn.groups.pretrained is expected
    head.load("from True")
    modes = Modes(head)
    head.fit(0.05, 1, callbacks=[modes])
    assert np.all(modes.seen)
