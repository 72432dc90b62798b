"""Rows whose images are bad keep their places, and count in nothing."""

import numpy as np
import pytest
from helpers import image_data, row_data, three_colours, tiny_learner

from fastclf import HeadLearner, accuracy_np, log_loss


def learners(kind, tmp_path, rng):
    if kind == "rows":
        data = row_data(tmp_path, rng)
        return HeadLearner(data, xtra_fc=[8], metrics=[accuracy_np, log_loss])
    learn = tiny_learner(image_data(three_colours(tmp_path / "data")), precompute=kind == "precompute")
    learn.metrics = [accuracy_np, log_loss]
    return learn


@pytest.mark.parametrize("kind", ["rows", "precompute", "images"])
def test_bad_rows_are_nan_and_the_others_are_as_ever(tmp_path, rng, kind):
    learn = learners(kind, tmp_path, rng)
    plain, y = learn.predict_with_targs()
    bad = np.sort(rng.choice(len(y), 4, replace=False))
    learn.data.val_ds.bad.reasons.update({int(row): "broken" for row in bad})
    preds, targets = learn.predict_with_targs()
    assert preds.shape == plain.shape
    np.testing.assert_array_equal(targets, np.where(np.isin(np.arange(len(y)), bad), -1, y))
    assert np.isnan(preds[bad]).all()
    good = np.setdiff1d(np.arange(len(y)), bad)
    np.testing.assert_allclose(preds[good], plain[good], rtol=1e-5, atol=1e-6)
    loss, acc, again = learn.fit(0, 1)
    after = learn.predict()[good]
    assert acc == pytest.approx((after.argmax(1) == y[good]).mean())
    assert loss == pytest.approx(-after[np.arange(len(good)), y[good]].astype(np.float64).mean(), rel=1e-5)
    assert again == pytest.approx(loss, rel=1e-5)


def test_tta_keeps_their_places_too(tmp_path, rng):
    learn = learners("images", tmp_path, rng)
    learn.data.val_ds.bad.reasons[2] = "broken"
    preds, y = learn.TTA(n_aug=2)
    assert preds.shape == (3, len(y), 3)
    assert np.isnan(preds[:, 2]).all()
    assert np.isfinite(np.delete(preds, 2, axis=1)).all()


def test_a_loader_that_shuffles_gives_what_it_serves_in_its_order(tmp_path, rng):
    learn = learners("rows", tmp_path, rng)
    loader = learn.data.trn_dl
    loader.ds.bad.reasons[5] = "broken"
    order = loader.order(0)
    assert 5 not in order
    preds = learn.predict_dl(loader)
    in_place = learn.predict_dl(learn.data.fix_dl)
    np.testing.assert_allclose(preds, in_place[order[: len(preds)]], rtol=1e-5, atol=1e-6)
    assert np.isnan(in_place[5]).all()
