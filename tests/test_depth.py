"""Activations where the frozen layers end: feature maps, on which layer group 1 and the head train."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_same, image_data, state_of, three_colours, tiny_body, tiny_learner

from fastclf import ConvLearner, CropType, accuracy
from fastclf.activations import crossover
from fastclf.models.halves import early_bodies, late_body
from fastclf.models.head import Head
from fastclf.models.joined_body import JoinedBody
from fastclf.models.net import Net

N = 36
RATES = [0.0, 0.02, 0.05]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose activations all tests share."""
    return three_colours(tmp_path_factory.mktemp("depth") / "data")


def data_of(folder, augs=(), crop_type=CropType.NO, **kwargs):
    """Images that training does not change, unless it is told to."""
    return image_data(folder, augs=augs, crop_type=crop_type, device="cpu", seed=0, **kwargs)


def at_maps(data, precompute=True, **kwargs):
    """A learner whose group 0 is frozen."""
    learn = tiny_learner(data, **{"ps": 0, "act_dtype": "float32"} | kwargs)
    learn.freeze_to(1)
    learn.precompute = precompute
    return learn


def two_bodies(data, **kwargs):
    """Two bodies side by side that take images normalised otherwise."""
    other = tiny_body(3, pretrained=True)
    other.arch, other.mean, other.std = "test:other", (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    body = JoinedBody([tiny_body(pretrained=True), other])
    head = Head(24, data.c, ps=0, xtra_fc=[8], seed=0)
    return ConvLearner(data, Net(body, head), seed=0, metrics=[accuracy], act_dtype="float32", **kwargs)


@pytest.mark.parametrize("make", [lambda: tiny_body(5, pretrained=True), lambda: two_bodies_body()])
def test_early_and_late_are_the_whole_body_in_float64(rng, make):
    body = make().double()
    sz = int(rng.integers(9, 30))
    early = early_bodies(body.float(), sz)
    late = late_body(body, early)
    body.double()
    x = torch.from_numpy(rng.standard_normal((5, 3, sz, sz)))
    images = [body._normalised_for(part, x) if isinstance(body, JoinedBody) else x for part in body.parts]
    with torch.no_grad():
        rows = torch.cat([part(image) for part, image in zip(early, images, strict=True)], 1)
        torch.testing.assert_close(late(rows), body(x), rtol=1e-12, atol=1e-12)
        assert late(rows[:0]).shape == (0, body.n_features)


def two_bodies_body():
    other = tiny_body(3)
    other.mean = (0.1, 0.2, 0.3)
    return JoinedBody([tiny_body(), other])


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("bn_freeze", [None, True, False])
def test_fits_on_maps_are_fits_on_images(folder, pretrained, bn_freeze):
    found = []
    for precompute in (True, False):
        learn = at_maps(data_of(folder), precompute, pretrained=pretrained)
        if bn_freeze is not None:
            learn.bn_freeze(bn_freeze)
        before = state_of(learn)
        values = learn.fit(RATES, 2, [0, 1e-3, 1e-2], cycle_len=1)
        found.append((learn.sched.losses, values, learn.predict(), state_of(learn)))
        assert_same({k: v for k, v in before.items() if k.startswith("body.first")}, found[-1][3])
        assert not torch.equal(before["body.second.conv2.weight"], found[-1][3]["body.second.conv2.weight"])
    (losses, values, preds, state), (losses_i, values_i, preds_i, state_i) = found
    np.testing.assert_allclose(losses, losses_i, rtol=1e-3)
    np.testing.assert_allclose(values, values_i, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(preds, preds_i, rtol=2e-3, atol=2e-3)
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, state_i[name], rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_predictions_from_maps_are_those_from_images_to_the_rounding(folder, dtype):
    learn = at_maps(data_of(folder), pretrained=True, act_dtype=dtype)
    learn.fit(RATES, 1)
    assert learn.data.trn_ds.rows.dtype == dtype
    cached = [learn.predict(), learn.predict(is_test=True), learn.predict_dl(learn.data.fix_dl)]
    from_images = learn.predict_dl(learn._data.val_dl)
    learn.precompute = False
    images = [learn.predict(), learn.predict(is_test=True), learn.predict_dl(learn.data.fix_dl)]
    np.testing.assert_array_equal(from_images, images[0])
    reference = copy.deepcopy(learn.model).double()
    with torch.no_grad():
        exact = torch.cat([reference.eval()(x.double()) for x, _ in learn.data.val_dl.batches(0)])
    np.testing.assert_allclose(cached[0], exact, atol=5e-3 if dtype == "float16" else 1e-4)
    for one, other in zip(cached, images, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3 if dtype == "float16" else 1e-4)


def test_two_bodies_train_on_their_maps_side_by_side(folder):
    preds = []
    for precompute in (True, False):
        learn = two_bodies(data_of(folder))
        learn.freeze_to(1)
        learn.precompute = precompute
        learn.fit(RATES, 2)
        preds.append(learn.predict())
    np.testing.assert_allclose(*preds, rtol=2e-2, atol=2e-2)  # float16 maps, and two epochs of what follows from them


def test_what_is_frozen_decides_what_is_cached(folder, monkeypatch):
    learn = tiny_learner(data_of(folder), precompute=True)
    pooled = np.array(learn.data.trn_ds.rows)
    learn.freeze_to(1)
    maps = np.array(learn.data.trn_ds.rows)
    assert learn.precompute
    assert maps.shape == (N, 7 * 7 * 4)
    assert "group 1 and the head train on cached feature maps" in repr(learn)
    learn.fit(RATES, 1)
    tuned = learn.predict()
    learn.freeze()
    assert learn.data.trn_ds.rows.shape == pooled.shape
    assert not np.array_equal(learn.data.trn_ds.rows, pooled)  # of the tuned layers
    np.testing.assert_allclose(learn.predict(), tuned, atol=5e-3)
    monkeypatch.setattr(Net, "features", None)
    learn.freeze_to(1)  # group 0 is what it was: nothing is computed
    np.testing.assert_array_equal(learn.data.trn_ds.rows, maps)
    learn.unfreeze()
    assert not learn.precompute
    with pytest.raises(ValueError, match=r"all layers train, so nothing can be cached. Call learn.freeze\(\)"):
        learn.precompute = True


def test_an_interrupted_change_of_depth_leaves_no_rows_of_the_other(folder, monkeypatch):
    learn = tiny_learner(data_of(folder, sz=18), precompute=True)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Net, "features", lambda *_: 1 / 0)
        learn.freeze_to(1)
    assert learn.precompute
    learn.fit(RATES, 1)
    assert learn.data.trn_ds.rows.shape == (N, 8 * 8 * 4)


def test_size_is_logged_before_and_rates_after(folder, capsys, monkeypatch):
    at_maps(data_of(folder, sz=17))
    out = capsys.readouterr().out
    size = 59 * 8 * 8 * 4 * 4 / 1e6
    assert f"feature maps of 4 x 8 x 8, 1 KB each, {size:.1f} MB in all" in out
    assert out.index("feature maps of") < out.index("train: computing") < out.index("feature maps are read at")
    monkeypatch.setattr("fastclf.learners.cached_stage.rates", lambda *_: (10.0, 2000.0))
    with pytest.warns(UserWarning, match=r"read at 10 images/s, .* at 2,000: training on images is faster"):
        at_maps(data_of(folder, sz=17))


def test_rates_need_some_images(folder):
    learn = at_maps(data_of(folder))
    loader, (early,) = learn._data.trn_dl, early_bodies(learn.model.body, 16)
    assert min(crossover.rates(early, loader, learn.data.trn_ds.rows)) > 0
    loader.ds.bad.reasons = dict.fromkeys(range(10), "bad")
    assert crossover.rates(early, loader, learn.data.trn_ds.rows) is None


def test_views_of_maps(folder):
    data = image_data(folder, device="cpu", seed=0)
    learn = at_maps(data, views=3)
    assert learn.data.trn_ds.rows.shape == (3 * N, 7 * 7 * 4)
    learn.fit(RATES, 2)
    views, y = learn.TTA(n_aug=3)
    np.testing.assert_array_equal(learn.predict_dl(learn.data.aug_dl), views[1])
    with_maps = learn.predict_dl(learn.data.fix_dl)  # plain images
    learn.precompute = False
    images, same_y = learn.TTA(n_aug=3)
    np.testing.assert_allclose(views, images, atol=1e-4)
    np.testing.assert_array_equal(y, same_y)
    np.testing.assert_allclose(with_maps, learn.predict_dl(data.fix_dl), atol=1e-4)


def test_tta_of_one_view_reads_images(folder):
    learn = at_maps(image_data(folder, device="cpu", seed=0))
    preds, _ = learn.TTA(n_aug=2)
    np.testing.assert_allclose(preds[0], learn.predict(), atol=1e-4)
    assert not np.array_equal(preds[1], preds[2])


def test_save_load_and_other_data(folder, tmp_path):
    learn = at_maps(data_of(folder, sz=20))
    learn.fit(RATES, 1)
    before = learn.predict()
    learn.save("maps")
    other = tiny_learner(data_of(folder, sz=20), ps=0, seed=9)
    other.load("maps")
    np.testing.assert_allclose(other.predict(), before, atol=1e-4)
    learn.fit(RATES, 1)
    with torch.no_grad():
        learn.model.body.first[0].weight += 0.1
    learn.load("maps")
    np.testing.assert_array_equal(learn.predict(), before)
    larger = data_of(three_colours(tmp_path / "more", n=13), sz=24)
    learn.set_data(larger)
    assert learn.data.trn_ds.rows.shape == (39, 11 * 11 * 4)
    cached = learn.predict()
    learn.precompute = False
    np.testing.assert_allclose(learn.predict(), cached, atol=1e-4)


def test_an_interrupted_fit_goes_on_bit_for_bit(folder):
    def fit(learn, epochs, **kwargs):
        learn.fit(RATES, epochs, cycle_len=1, **kwargs)
        return state_of(learn)

    whole = fit(at_maps(data_of(folder), ps=0.3), 3)
    learn, real, calls = at_maps(data_of(folder), ps=0.3), ConvLearner._validate, []

    def stop(self):
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError
        return real(self)

    learn._validate = stop.__get__(learn)
    with pytest.raises(ZeroDivisionError):
        fit(learn, 3, state_name="state")
    resumed = fit(at_maps(data_of(folder), ps=0.3), 3, state_name="state", resume=True)
    assert_same(whole, resumed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_go_on_alone(folder, copied):
    learn = at_maps(data_of(folder))
    learn.fit(RATES, 1)
    before, other = learn.predict(), copied(learn)
    other.fit(RATES, 1)
    np.testing.assert_array_equal(learn.predict(), before)
    learn.fit(RATES, 1)
    np.testing.assert_array_equal(other.predict(), learn.predict())


def test_lr_find_evaluate_and_summary(folder, capsys):
    learn = at_maps(data_of(folder))
    before = state_of(learn)
    learn.lr_find()
    assert_same(before, state_of(learn))
    learn.summary()
    assert "seconds.0.0.conv2" in capsys.readouterr().out
    found = learn.evaluate()
    learn.precompute = False
    assert found["log_loss"] == pytest.approx(learn.evaluate()["log_loss"], rel=1e-3)


def test_what_needs_pooled_features_says_so_and_fine_tune_gets_them(folder):
    learn = at_maps(data_of(folder))
    for call in (learn.audit, learn.cross_validate, learn.sweep, learn.learning_curve, lambda: learn.similar([])):
        with pytest.raises(ValueError, match=r"needs pooled features, .* Call learn.freeze\(\) first"):
            call()
    learn.fine_tune(unfreeze=False)
    assert learn.data.trn_ds.rows.shape == (N, 12)
    assert learn.groups.frozen_to == 2


def test_a_network_that_runs_itself_cannot_be_cut(folder, capsys):
    pytest.importorskip("timm")
    data = data_of(folder, sz=32)
    learn = ConvLearner.pretrained("resnet10t", data, pretrained=False, precompute=True)
    learn.freeze_to(1)
    assert not learn.precompute
    assert "precompute is off: the body trains on images" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"timm:resnet10t cannot be cut .* Call learn.freeze\(\)"):
        learn.precompute = True
