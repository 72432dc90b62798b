"""Augmentation and precompute together: cached views of every image."""

import numpy as np
import pytest
import torch
from devices import on_both_devices
from helpers import image_data, three_colours, tiny_learner
from kinks import linear_relus
from torch import nn

from fastclf import ConvLearner, CropType, HeadLearner, resnet18
from fastclf.models.net import Net
from fastclf.training.engine import EngineSteps

K, N = 3, 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose activations all tests share."""
    return three_colours(tmp_path_factory.mktemp("views") / "data")


@pytest.fixture
def own_folder(tmp_path):
    return three_colours(tmp_path / "data")


def viewed(folder, views=K, seed=0, **kwargs):
    return tiny_learner(image_data(folder, seed=seed), views=views, precompute=True, seed=seed, **kwargs)


def which_views(learn, epoch):
    """View and row of each row that training takes in an epoch."""
    order = learn.data.trn_dl.order(epoch)
    return order // N, order % N


def test_every_epoch_takes_one_view_of_every_image_and_k_epochs_take_all(folder):
    learn = viewed(folder)
    taken = np.zeros((2, K, N), int)
    for epoch in range(2 * K):
        views, rows = which_views(learn, epoch)
        assert sorted(rows) == list(range(N))
        taken[epoch // K, views, rows] += 1
        assert len(set(views)) > 1
    assert (taken == 1).all()
    first = [which_views(learn, epoch)[0][np.argsort(which_views(learn, epoch)[1])] for epoch in (0, K)]
    assert not np.array_equal(*first)  # drawn anew after all views were taken


def test_training_rows_and_targets_are_those_of_the_views(folder):
    learn = viewed(folder, act_dtype="float32")
    data, images = learn.data, learn._data
    assert data.trn_ds.rows.shape == (K * N, 12)
    assert len(data.trn_ds) == N
    order = data.trn_dl.order(1)
    x, y = (torch.cat(parts) for parts in zip(*data.trn_dl.batches(1), strict=True))
    np.testing.assert_array_equal(x, data.trn_ds.rows[order])
    np.testing.assert_array_equal(y, images.trn_y[order % N])
    # View 2 of a row is its image as trn_dl serves it in epoch 2.
    served, rows = images.trn_dl.order(2), slice(0, 8)
    batch, _ = next(images.trn_dl.batches(2))
    learn.model.eval()
    with torch.no_grad():
        features = learn.model.features(batch)
    np.testing.assert_allclose(data.trn_ds.rows[2 * N + served[rows]], features, rtol=1e-4, atol=1e-5)


@on_both_devices
def test_the_native_engine_trains_on_views(folder, monkeypatch):
    ran = []
    real = EngineSteps.run
    monkeypatch.setattr(EngineSteps, "run", lambda self, n: ran.append(n) or real(self, n))
    learn = viewed(folder, ps=0)
    assert learn.fit(0.1, 12, cycle_len=1)[1] > 0.7
    assert sum(ran) == 12 * len(learn.data.trn_dl)


def test_engine_and_autograd_train_on_the_same_views(folder):
    native = viewed(folder, ps=0, act_dtype="float32")
    autograd = viewed(folder, ps=0, act_dtype="float32")
    autograd.opt_fn = lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9)
    for learn in (native, autograd):
        linear_relus(learn.head.layers)
        learn.fit(0.01, 2)
    assert native.sched.losses == pytest.approx(autograd.sched.losses, rel=1e-4)


@on_both_devices
def test_same_seed_same_numbers_bit_for_bit(folder):
    def run(seed):
        learn = viewed(folder, seed=seed)
        learn.fit(0.05, 2)
        return learn.sched.losses, learn.predict(), learn.TTA(n_aug=2)[0]

    first, second, other = run(1), run(1), run(2)
    assert first[0] == second[0]
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_array_equal(first[2], second[2])
    assert first[0] != other[0]


def test_validation_and_prediction_use_the_plain_images(folder):
    with_views, without = viewed(folder), viewed(folder, views=1)
    np.testing.assert_array_equal(with_views.data.val_ds.rows, without.data.val_ds.rows)
    np.testing.assert_array_equal(with_views.predict(), without.predict())
    np.testing.assert_array_equal(with_views.predict(is_test=True), without.predict(is_test=True))


@pytest.mark.parametrize("is_test", [False, True])
def test_tta_from_views_is_tta_from_images(folder, is_test, monkeypatch):
    learn = viewed(folder, act_dtype="float32")
    learn.fit(0.05, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Net, "features", None)  # no body, no image
        views, y = learn.TTA(n_aug=K, is_test=is_test)
    learn.precompute = False
    images, same_y = learn.TTA(n_aug=K, is_test=is_test)
    assert views.shape == (1 + K, 5 if is_test else 18, 3)
    assert not np.array_equal(views[1], views[2])
    np.testing.assert_allclose(views, images, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(y, same_y)


def test_tta_says_how_many_views_there_are(folder):
    learn = viewed(folder)
    assert learn.TTA(n_aug=0)[0].shape == (1, 18, 3)
    with pytest.raises(ValueError, match=r"n_aug must be at most 3, the cached views, got 4. Pass views=4"):
        learn.TTA()
    learn.precompute = False
    assert learn.TTA()[0].shape == (5, 18, 3)


def test_augmentation_has_an_effect_only_with_views(folder, capsys):
    viewed(folder)
    assert "no effect" not in capsys.readouterr().out
    viewed(folder, views=1)
    assert "augmentation have no effect" in capsys.readouterr().out


def test_one_view_is_the_plain_image(own_folder):
    one, default = viewed(own_folder, views=1), tiny_learner(image_data(own_folder, seed=0), precompute=True, seed=0)
    assert (one.views, default.views) == (1, 1)
    np.testing.assert_array_equal(one.data.trn_ds.rows, default.data.trn_ds.rows)
    assert len(list((own_folder / "tmp" / "activations").iterdir())) == 1
    assert one.TTA(n_aug=5)[0].shape == (6, 18, 3)  # from images


def test_views_need_random_transforms(folder):
    data = image_data(folder, augs=(), crop_type=CropType.NO)
    with pytest.raises(ValueError, match=r"views=3 needs random transforms"):
        tiny_learner(data, views=3, precompute=True)


@pytest.mark.parametrize("views", [0, -1, 2.0, True, None])
def test_views_are_counted(folder, views):
    with pytest.raises(ValueError, match="views must be a whole number of at least 1"):
        tiny_learner(image_data(folder), views=views)


def test_on_off_other_data_and_unfreeze(folder, tmp_path, monkeypatch):
    learn = viewed(folder)
    assert learn.precompute
    learn.precompute = False
    assert learn.data is learn._data
    learn.fit(0.01, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Net, "features", None)
        learn.precompute = True  # from the file
    assert learn.data.trn_ds.rows.shape == (K * N, 12)
    learn.set_data(image_data(three_colours(tmp_path / "more", n=13), seed=0))
    assert learn.data.trn_ds.rows.shape == (K * 39, 12)
    learn.fit(0.01, 1)
    learn.unfreeze()
    assert not learn.precompute
    learn.fit(0.01, 1)


def test_save_and_load_under_views(folder):
    learn = viewed(folder)
    learn.fit(0.05, 1)
    saved = learn.TTA(n_aug=2)[0]
    learn.save("views")
    learn.fit(0.05, 1)
    learn.load("views")
    np.testing.assert_array_equal(learn.TTA(n_aug=2)[0], saved)
    other = viewed(folder, views=1)
    other.load("views")  # a model knows nothing of views
    np.testing.assert_array_equal(other.predict(), learn.predict())
    with torch.no_grad():
        other.model.body.first[0].weight += 0.1
    other.save("moved")
    before = np.array(learn.data.trn_ds.rows)
    learn.load("moved")  # another body: other activations
    assert learn.data.trn_ds.rows.shape == before.shape
    assert not np.array_equal(learn.data.trn_ds.rows, before)


def test_the_loaders_beside_training(folder):
    learn = viewed(folder)
    data = learn.data
    assert data.fix_dl is learn._data.fix_dl  # plain images: training keeps augmented views alone
    assert learn.predict_dl(data.fix_dl).shape == (N, 3)
    first, second = (torch.cat([x for x, _ in data.aug_dl]) for _ in range(2))  # a view per epoch
    assert not torch.equal(first, second)
    np.testing.assert_array_equal(learn.predict_dl(data.aug_dl), learn.TTA(n_aug=1)[0][1])
    assert torch.equal(first, torch.cat([x for x, _ in data.aug_dl.batches(K)]))


def test_head_learner_on_views(folder):
    head = HeadLearner(viewed(folder).data, xtra_fc=[8], ps=0)
    head.fit(0.05, 2)
    assert head.predict().shape == (18, 3)


def test_images_that_are_skipped_are_in_no_view(own_folder):
    (own_folder / "train/red/003.png").write_bytes(b"")
    (own_folder / "valid/red/001.png").write_bytes(b"")
    learn = tiny_learner(image_data(own_folder, on_bad="skip"), views=K, precompute=True)
    for epoch in range(K):
        assert sorted(which_views(learn, epoch)[1]) == [row for row in range(N) if row != 27]
    learn.fit(0.05, 2)
    preds = learn.TTA(n_aug=2)[0]
    assert preds.shape == (3, 18, 3)
    assert np.isnan(preds[:, 13]).all()
    assert np.isfinite(np.delete(preds, 13, axis=1)).all()


def test_pretrained_takes_views(folder):
    head = nn.Sequential(nn.Linear(1024, 3), nn.LogSoftmax(1))
    data = image_data(folder, sz=32)
    learn = ConvLearner.pretrained(resnet18, data, pretrained=False, custom_head=head, precompute=True, views=2)
    assert learn.views == 2
    learn.fit(1e-2, 1)
    assert learn.TTA(n_aug=2)[0].shape == (3, 18, 3)
