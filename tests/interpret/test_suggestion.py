import numpy as np
import pytest
from helpers import assert_same, image_data, row_data, state_of, three_colours, tiny_learner
from scipy.special import logit

from fastclf import HeadLearner, ImageClassifierData
from fastclf.interpret.suggestion import _axes, diverse, doubts


def test_doubts_are_one_less_the_lead(rng):
    probs = rng.dirichlet([1, 1, 1], 40)
    found = doubts(np.log(probs).astype(np.float32), several=False)
    best = probs.max(1)
    second = np.array([sorted(row)[1] for row in probs])
    np.testing.assert_allclose(found, 1 - (best - second), atol=1e-6)
    several = doubts(logit([[0.9, 0.6], [0.01, 0.99]]).astype(np.float32), several=True)
    np.testing.assert_allclose(several, [0.8, 0.02], atol=1e-6)
    assert (doubts(rng.standard_normal((9, 1)).astype(np.float32), several=True) <= 1).all()


@pytest.mark.parametrize("shape", [(30, 7), (12, 40)])
def test_axes_keep_distances(rng, shape):
    x = (rng.standard_normal(shape) * rng.uniform(0.1, 3, shape[1]) + 5).astype(np.float32)
    y = x - x.mean(0, dtype=np.float64)
    y /= np.sqrt(y.std(0) + 1e-5)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    axes = _axes(x)
    np.testing.assert_allclose(axes @ axes.T, y @ y.T, atol=1e-8)


def test_one_of_each_cluster_is_chosen(rng):
    places = rng.permutation(np.repeat(np.arange(5), 8))
    x = (10 * np.eye(5, 20)[places] + 0.01 * rng.standard_normal((40, 20))).astype(np.float32)
    doubt = rng.uniform(0.1, 1, 40)
    rows = diverse(x, doubt, 5, 3)
    assert sorted(places[rows]) == [0, 1, 2, 3, 4]
    assert (np.diff(doubt[rows]) <= 0).all()
    np.testing.assert_array_equal(diverse(x, doubt, 5, 3), rows)


@pytest.mark.filterwarnings("error")
def test_equal_rows_do_not_shorten_the_list(rng):
    x, doubt = np.ones((6, 4), np.float32), rng.random(6)
    assert sorted(diverse(x, doubt, 4, 0)) == sorted({*diverse(x, doubt, 4, 0)})
    assert len(diverse(x, doubt, 4, 0)) == 4
    assert sorted(diverse(x, doubt, 6, 0)) == [*range(6)]


def test_doubtful_rows_are_chosen(rng):
    x, doubt = rng.standard_normal((30, 9)).astype(np.float32), np.zeros(30)
    doubtful = rng.choice(30, 3, replace=False)
    doubt[doubtful] = 1
    assert sorted(diverse(x, doubt, 3, 1)) == sorted(doubtful)


def test_suggestions_are_a_table_and_change_nothing(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    before = state_of(learn)
    x = rng.standard_normal((50, 10)).astype(np.float32)
    found = learn.suggest(x, 3)
    assert_same(before, state_of(learn))
    assert found.names == [f"row {row}" for row in found.rows]
    assert list(found.to_frame().columns) == ["row", "image", "prediction", "doubt"]
    assert "3 images to label next, of 50" in repr(found)
    assert len(learn.suggest(x[:4], 9)) == 4
    with pytest.raises(ValueError, match="suggest: n must be a whole number"):
        learn.suggest(x, 0)


def test_several_labels_are_named(tmp_path, rng):
    y = (rng.random((80, 3)) < 0.5).astype(np.float32)
    x = (rng.standard_normal((80, 6)) + np.pad(6 * y, ((0, 0), (0, 3)))).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=["a", "b", "c"], bs=16)
    found = HeadLearner(data).suggest(x[:20], 20)
    has = np.array([[name in label.split() for name in "abc"] for label in found.labels])
    assert (has == y[found.rows]).mean() > 0.9


def test_images_are_suggested(tmp_path):
    learn = tiny_learner(image_data(three_colours(tmp_path), augs=()), precompute=True)
    files = [str(file) for file in sorted(tmp_path.glob("valid/*/*.png"))]
    found = learn.suggest(files, 2)
    assert len(found) == 2
    assert {*found.names} <= {*files}
