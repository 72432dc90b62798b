"""`learn.cross_validate`: on rows and on cached activations."""

import numpy as np
import pytest
import torch
from helpers import assert_same, image_data, out_of_fold, row_data, state_of, three_colours, tiny_learner
from torch import nn

from fastclf import DivergedError, HeadLearner
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.models.head import Head
from fastclf.training.folds import make_folds
from fastclf.training.head_runs import HeadSetting, HeadTraining


def test_rows_are_predicted_by_heads_like_the_learners(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng), ps=0.1, xtra_fc=[8], class_weights=[1, 2, 1])
    before = state_of(learn)
    found = learn.cross_validate(k=4, lr=0.05, wd=1e-2, epochs=15)
    assert_same(before, state_of(learn))
    ds = learn.data.trn_ds
    assert found["accuracy"] == pytest.approx((found.preds.argmax(1) == ds.y).mean())
    assert found.preds.shape == (60, 3)
    np.testing.assert_array_equal(found.targets, ds.y)
    np.testing.assert_array_equal(found.folds, make_folds(ds.labels, 4, seed=learn.seed))
    setting = HeadSetting(0.05, 1e-2, 15, ps=(0.1, 0.1), xtra_fc=(8,))
    logits = out_of_fold(ds, setting, found.folds, learn.seed, HeadTraining(learn.crit, 16))
    np.testing.assert_array_equal(found.preds, torch.from_numpy(logits).log_softmax(1))
    np.testing.assert_array_equal(learn.cross_validate(k=4, lr=0.05, wd=1e-2, epochs=15).preds, found.preds)


def test_what_was_tuned_for_other_weights_has_no_part(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    before = learn.cross_validate(k=2, epochs=1)
    learn.fit(0.01, 1)
    learn.calibrate()
    np.testing.assert_array_equal(learn.cross_validate(k=2, epochs=1).preds, before.preds)


def test_cached_views_and_bad_images(tmp_path):
    folder = three_colours(tmp_path / "data")
    (folder / "train/red/003.png").write_bytes(b"no image")
    learn = tiny_learner(image_data(folder, on_bad="skip"), precompute=True, views=2)
    found = learn.cross_validate(k=3, epochs=3)
    bad = list(learn.data.trn_ds.fnames).index("train/red/003.png")
    assert np.isnan(found.preds[bad]).all()
    assert found.targets[bad] == -1
    assert np.isfinite(np.delete(found.preds, bad, 0)).all()
    assert "35 training rows" in repr(found)


def test_groups_and_several_labels(tmp_path, rng):
    y = (rng.random((80, 3)) < 0.4).astype(np.float32)
    x = (rng.standard_normal((80, 6)) + np.pad(4 * y, ((0, 0), (0, 3)))).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x[:60], y[:60]), (x[60:], y[60:]), bs=16)
    groups = [f"place {i}" for i in rng.integers(15, size=60)]
    found = HeadLearner(data, xtra_fc=[]).cross_validate(k=3, groups=groups, epochs=5)
    assert len({*zip(groups, found.folds, strict=True)}) == len({*groups})
    assert ((found.preds >= 0) & (found.preds <= 1)).all()
    right = (found.preds > 0.5) == (found.targets > 0.5)
    assert found["accuracy"] == pytest.approx(np.mean([right[found.folds == k].mean() for k in range(3)]))


def test_errors_say_what_to_do(tmp_path, rng):
    data = row_data(tmp_path, rng)
    images = tiny_learner(image_data(three_colours(tmp_path / "data")))
    unfrozen = tiny_learner(images.data)
    unfrozen.unfreeze()
    own = HeadLearner(data, custom_head=nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(1)))
    x, y = rng.standard_normal((2, 40, 6)).astype(np.float32)
    numbers = HeadLearner(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), continuous=True, bs=8))
    for what, message in [
        (images.cross_validate, r"needs cached activations. Set learn.precompute = True first"),
        (unfrozen.cross_validate, r"Call learn.freeze\(\) and set learn.precompute = True first"),
        (own.cross_validate, "got custom_head. Make a learner without it"),
        (numbers.cross_validate, "must be classes, got numbers"),
        (HeadLearner(data, crit=nn.NLLLoss()).cross_validate, "must be the default one, .* got NLLLoss"),
        (lambda: HeadLearner(data).cross_validate(k=1), "k must be a whole number of at least 2"),
        (lambda: HeadLearner(data).cross_validate(groups=[1]), "one entry per row, 60, got 1"),
        (lambda: HeadLearner(data).cross_validate(stratify="no"), "stratify must be True or False"),
        (lambda: HeadLearner(data).cross_validate(lr=-1), "lr must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            what()
    with pytest.raises(DivergedError, match=r"not finite at rate 1e\+30\. Pass a lower lr"):
        HeadLearner(data).cross_validate(lr=1e30)
    assert isinstance(HeadLearner(data).head, Head)
