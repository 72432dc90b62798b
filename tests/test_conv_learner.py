import copy
import pickle

import numpy as np
import pytest
import torch
from faults import replaced
from helpers import HALF, Watches, image_data, row_data, three_colours, tiny_learner
from torch import nn

from fastclf import ConvLearner, HeadLearner, ImageClassifierData, Learner, resnet18, tfms_from_stats
from fastclf.models.net import Net


@pytest.fixture
def data(tmp_path):
    return image_data(three_colours(tmp_path / "data"))


def test_learns_colours(data):
    learn = tiny_learner(data, precompute=True, ps=0)
    assert learn.fit(0.1, 12, cycle_len=1)[1] > 0.8
    log_probs, y = learn.predict_with_targs()
    np.testing.assert_array_equal(y, data.val_y)
    np.testing.assert_allclose(np.exp(log_probs).sum(1), 1, rtol=1e-5)
    assert learn.predict(is_test=True).shape == (5, 3)


def test_cached_rows_are_the_features_in_file_order(data):
    learn = tiny_learner(data, precompute=True, act_dtype="float32")
    learn.model.eval()
    with torch.no_grad():
        expected = torch.cat([learn.model.features(x) for x, _ in data.fix_dl])
    np.testing.assert_allclose(learn.data.trn_ds.rows, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(learn.data.trn_y, data.trn_y)


def test_frozen_body_stays_the_same_bit_for_bit(data):
    learn = tiny_learner(data)
    before = {name: tensor.clone() for name, tensor in learn.model.body.state_dict().items()}
    learn.fit(0.1, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in learn.model.body.state_dict().items())


def test_differential_rates_reach_their_groups(data):
    learn = tiny_learner(data, ps=0, opt_fn=lambda groups, lr: torch.optim.SGD(groups, lr))
    learn.unfreeze()
    before = [[p.detach().clone() for p in group.parameters()] for group in learn.groups.groups]
    learn.fit([0, 0.01, 0], 1)
    moved = [
        any(not torch.equal(a, b) for a, b in zip(old, group.parameters(), strict=True))
        for old, group in zip(before, learn.groups.groups, strict=True)
    ]
    assert moved == [False, True, False]
    with pytest.raises(ValueError, match=r"one per layer group \(3 groups\)"):
        learn.fit([0.1, 0.1], 1)


def test_one_image_predicts_as_its_loader_does(data):
    learn = tiny_learner(data)
    from fastclf import open_image

    x = data.tfms[1](open_image(data.path / data.val_ds.fnames[3]))
    np.testing.assert_allclose(learn.predict_array(x[None])[0], learn.predict()[3], rtol=1e-4, atol=1e-5)


def test_same_seed_same_losses_bit_for_bit(tmp_path):
    folder = three_colours(tmp_path / "data")

    def losses(seed, threads):
        learn = tiny_learner(image_data(folder, seed=seed, num_workers=threads), seed=seed)
        learn.unfreeze()
        learn.fit(0.05, 2, cycle_len=1)
        return learn.sched.losses

    assert losses(1, 1) == losses(1, 2)
    assert losses(1, 1) != losses(2, 1)


def test_pretrained_on_torchvision_with_random_weights(data):
    learn = ConvLearner.pretrained(resnet18, data, pretrained=False, xtra_fc=[16])
    assert len(learn.groups) == 3
    assert learn.model.head.n_in == 1024
    learn.unfreeze()
    learn.fit([1e-3, 1e-3, 1e-2], 1)
    learn.summary()


def test_custom_head(data):
    head = nn.Sequential(nn.Linear(1024, 3), nn.LogSoftmax(1))
    learn = ConvLearner.pretrained(resnet18, data, pretrained=False, custom_head=head, precompute=True)
    learn.fit(1e-2, 1)
    learn.precompute = False
    learn.fit(1e-2, 1)
    with pytest.raises(ValueError, match=r"must give \[B, 3\]"):
        ConvLearner.pretrained(resnet18, data, pretrained=False, custom_head=nn.Linear(1024, 2))
    with pytest.raises(ValueError, match="leave ps and xtra_fc out"):
        ConvLearner.pretrained(resnet18, data, pretrained=False, custom_head=head, ps=0.5)


def test_images_and_activations_do_not_mix(data, tmp_path, rng):
    rows = row_data(tmp_path, rng)
    with pytest.raises(ValueError, match="use HeadLearner"):
        ConvLearner.pretrained(resnet18, rows, pretrained=False)
    with pytest.raises(ValueError, match=r"use ConvLearner\.pretrained"):
        HeadLearner(data)
    with pytest.raises(ValueError, match="set_data: data holds activations"):
        tiny_learner(data).set_data(rows)


def test_images_in_arrays(tmp_path, rng):
    y = np.arange(24) % 3
    x = rng.integers(0, 60, (24, 20, 24, 3)).astype(np.uint8)
    x[np.arange(24), :, :, y] += 150
    tfms = tfms_from_stats(HALF, 16)
    losses = []
    for images in (x, (x / 255).astype(np.float32)):
        data = ImageClassifierData.from_arrays(tmp_path, (images, y), (images, y), bs=8, tfms=tfms)
        learn = tiny_learner(data, precompute=True)
        learn.fit(0.05, 2)
        losses += learn.sched.losses
        assert learn.TTA(n_aug=1)[0].shape == (2, 24, 3)
    half = len(losses) // 2
    assert losses[:half] == pytest.approx(losses[half:], rel=1e-2)


def test_without_a_test_set_the_test_is_named(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path / "data", n_test=0)))
    for call in (learn.predict, learn.TTA):
        with pytest.raises(ValueError, match="is_test=True needs data with a test set"):
            call(is_test=True)


def test_read_only_folder_falls_back_to_the_users_cache(data, monkeypatch):
    def mkdir(call, **kwargs):
        if call.__self__.is_relative_to(data.path):
            raise PermissionError(13, "Permission denied", str(call.__self__))
        call(**kwargs)

    replaced(monkeypatch, "mkdir", mkdir)
    with pytest.warns(UserWarning, match="are not kept in .*: Permission denied"):
        learn = tiny_learner(data, precompute=True)
    assert learn.data.trn_ds.rows.shape == (36, 12)
    assert not (data.path / "tmp" / "activations").exists()
    monkeypatch.setattr(Net, "features", None)  # a second learner runs no body
    tiny_learner(data, precompute=True)


def test_a_callback_that_predicts_changes_no_training(data):
    fits = []
    for watches in (False, True):
        learn = tiny_learner(data)
        learn.unfreeze()
        learn.fit(0.01, 2, callbacks=[Watches(learn.predict)] if watches else [])
        fits.append(learn.predict())
    np.testing.assert_array_equal(*fits)


@pytest.mark.parametrize("precompute", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_of_what_was_used_go_on_alone(data, precompute, copied):
    learn = tiny_learner(data, precompute=precompute)
    learn.fit(0.01, 1)
    before = learn.predict()
    other = copied(learn)
    np.testing.assert_array_equal(other.predict(), before)
    other.fit(0.01, 1)
    np.testing.assert_array_equal(learn.predict(), before)
    learn.fit(0.01, 1)
    np.testing.assert_array_equal(other.predict(), learn.predict())


def _halve(tensor):
    tensor.data *= 0.5  # not noted by torch


@pytest.mark.parametrize(
    "change",
    [
        lambda body: [_halve(p) for p in body.parameters()],
        lambda body: body.load_state_dict({name: t / 2 for name, t in body.state_dict().items()}),
        lambda body: body.load_state_dict({name: t / 2 for name, t in body.state_dict().items()}, assign=True),
        lambda body: [layer.running_mean.add_(1) for layer in body.modules() if isinstance(layer, nn.BatchNorm2d)],
        lambda body: [setattr(layer, "eps", 10.0) for layer in body.modules() if isinstance(layer, nn.BatchNorm2d)],
    ],
)
@pytest.mark.parametrize("frozen_to", [1, 2])
@pytest.mark.parametrize("call", [ConvLearner.predict, lambda learn: learn.fit(0.01, 2)])
def test_activations_follow_a_body_changed_by_hand(data, change, frozen_to, call):
    learns = [tiny_learner(data, act_dtype="float32") for _ in range(2)]
    for learn in learns:
        learn.freeze_to(frozen_to)
        learn.precompute = True
        learn.fit(0.01, 1)
        change(learn.model.body)
    learns[1].precompute = False
    learns[1].precompute = True
    np.testing.assert_allclose(call(learns[0]), call(learns[1]), rtol=1e-4, atol=1e-6)


def test_double_precision_by_default(tmp_path):
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        learn = tiny_learner(image_data(three_colours(tmp_path), augs=()))
        learn.fit(0.01, 1)
        learn.precompute = True
        learn.fit(0.01, 1)
        learn.unfreeze()
        learn.fit(0.01, 1)
        assert learn.predict().dtype == np.float32
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("precompute", [False, True])
def test_a_part_that_was_replaced_and_would_not_train_is_refused(data, precompute):
    learn = tiny_learner(data, precompute=precompute)
    other = nn.Sequential(nn.Linear(12, 3), nn.LogSoftmax(1))
    with pytest.raises(AttributeError, match="head"):
        learn.head = other
    learn.model.head = other
    for call in (lambda: learn.fit(0.01, 1), learn.lr_find):
        with pytest.raises(ValueError, match=r"head\.0\.weight of the model is in no layer group.*make a new learner"):
            call()
    body = learn.model.body
    with pytest.raises(ValueError, match=r"0\..* of the model is in no layer group"):
        Learner.from_model_data(nn.Sequential(body.requires_grad_(True), other), data, groups=[other]).fit(0.01, 1)
    Learner.from_model_data(nn.Sequential(body.requires_grad_(False), other), data, groups=[other]).fit(0.01, 1)
