"""What `predict_array` takes, and what it says of everything else; batches of one row."""

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, three_colours, tiny_learner
from torch import nn

from fastclf import HeadLearner, Learner


@pytest.fixture
def learn(tmp_path):
    return tiny_learner(image_data(three_colours(tmp_path)))


WRONG = {
    "no batch": (np.zeros((3, 16, 16), np.float32), r"got \[3, 16, 16\] float32\. For one transformed image pass x\[N"),
    "an open image": (np.zeros((16, 18, 3), np.float32), r"got \[16, 18, 3\].*open_image\(fn\)\)\[None\]"),
    "channels last": (np.zeros((1, 16, 16, 3), np.float32), r"\[1, 16, 16, 3\] float32\. Channels come first"),
    "grey": (np.zeros((1, 1, 16, 16), np.float32), r"got \[1, 1, 16, 16\]"),
    "bytes": (np.zeros((1, 3, 16, 16), np.uint8), r"got \[1, 3, 16, 16\] uint8: these pixels are not transformed"),
    "whole numbers": (np.zeros((1, 3, 16, 16), np.int64), "int64: these pixels are not transformed"),
    "0 to 255": (np.full((1, 3, 16, 16), 255, np.float32), "values of 255 to 255 instead of about -1.0 to 1.0"),
    "other columns": (np.zeros((2, 7), np.float32), r"or activations \[B, 12\], got \[2, 7\]"),
    "one row": (np.zeros(12, np.float32), r"For one row pass x\[None\]"),
    "five dimensions": (np.zeros((5, 1, 3, 8, 8), np.float32), "predict_array: x must be"),
    "nothing": (None, "predict_array: x must be"),
    "texts": ("a.jpg", "predict_array: x must be"),
    "ragged": ([[1, 2], [3]], "predict_array: x must be"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_everything_else_is_refused_with_the_remedy(learn, kind):
    x, message = WRONG[kind]
    with pytest.raises(ValueError, match=message):
        learn.predict_array(x)
    if isinstance(x, np.ndarray):
        with pytest.raises(ValueError, match=message):
            learn.predict_array(torch.from_numpy(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float32])
def test_any_float_of_transformed_images_is_taken(learn, dtype, rng):
    x = rng.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    expected = learn.predict_array(x)
    np.testing.assert_allclose(learn.predict_array(torch.from_numpy(x).to(dtype)), expected, atol=2e-3)
    rows = rng.standard_normal((2, 12))
    assert learn.predict_array(rows).shape == learn.predict_array(rows.tolist()).shape == (2, 3)


def test_a_network_that_writes_into_its_input_leaves_the_callers_values(tmp_path, rng):
    head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(10, 3), nn.LogSoftmax(1))
    learn = HeadLearner(row_data(tmp_path, rng), custom_head=head)
    x = rng.standard_normal((4, 10), dtype=np.float32)
    for given in (x, torch.from_numpy(x)):
        before = x.copy()
        learn.predict_array(given)
        np.testing.assert_array_equal(given, before)


def test_rows_alone_take_no_images(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    assert learn.predict_array(np.zeros((2, 10), np.int64)).shape == (2, 3)
    with pytest.raises(ValueError, match=r"x must be activations \[B, 10\], got \[1, 3, 8, 8\]"):
        learn.predict_array(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.parametrize("call", [lambda learn: learn.fit(1e-3, 1), lambda learn: learn.lr_find()], ids=["fit", "find"])
@pytest.mark.parametrize(("n", "bs"), [(33, 1), (2, 1)])
def test_batches_of_one_row_cannot_train_batch_norm(tmp_path, rng, call, n, bs):
    learn = HeadLearner(row_data(tmp_path, rng, n=n, bs=bs, c=2))
    with pytest.raises(ValueError, match=rf"bs=1 cannot train BatchNorm.* {n} training row.*bs=2 or more"):
        call(learn)
    learn.bn_freeze(True)
    call(learn)


def test_batches_of_one_row_train_a_network_without_batch_norm(tmp_path, rng):
    model = nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(1))
    Learner(row_data(tmp_path, rng, n=9, bs=1), model, [model]).fit(0.1, 1)


def test_a_last_batch_of_one_is_left_out(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng, n=33, bs=16))
    learn.fit(0.1, 1)
    assert len(learn.sched.losses) == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(learn, value, rng):
    for shape in ((2, 3, 16, 16), (2, 12)):
        x = rng.standard_normal(shape).astype(np.float32)
        x.flat[rng.integers(x.size)] = value
        with pytest.raises(ValueError, match="with NaN or infinite values"):
            learn.predict_array(x)


def test_arrays_that_may_not_be_written(learn, rng):
    x = rng.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    expected = learn.predict_array(x)
    x.flags.writeable = False
    np.testing.assert_array_equal(learn.predict_array(x), expected)


@pytest.mark.parametrize("shape", [(2, 3, 0, 16), (2, 0), (0, 3, 16, 0)])
def test_nothing_in_them(learn, shape):
    with pytest.raises(ValueError, match="there is nothing in them"):
        learn.predict_array(np.zeros(shape, np.float32))
