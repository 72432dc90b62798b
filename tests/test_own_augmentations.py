"""A lesson with augmentations of the user's own: repeated, resumed, cached in views, averaged by TTA."""

import numpy as np
import pytest
import torch
from helpers import image_data, three_colours, tiny_learner

from fastclf import RandomFlip
from fastclf.training.callbacks import Callback


def jitter(x, u):
    gain = 0.7 + 0.6 * u[:, :3, None, None]
    return x * gain


def learner(folder, augs=(RandomFlip(), jitter), **kwargs):
    return tiny_learner(image_data(folder, augs=augs), pretrained=True, **kwargs)


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "data")


@pytest.fixture
def versioned(monkeypatch):
    monkeypatch.setattr(jitter, "version", 1, raising=False)


class StopAfter(Callback):
    def __init__(self, batches):
        self.left = batches

    def on_batch_end(self, loss):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def weights(learn):
    return torch.cat([p.detach().ravel() for p in learn.model.parameters()])


def test_fits_repeat_and_go_on_bit_for_bit(folder):
    whole, again, stopped, resumed, other = (learner(folder, augs) for augs in [(RandomFlip(), jitter)] * 4 + [()])
    for learn in (whole, again, other):
        learn.fit(0.01, 2)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(0.01, 2, state_name="run", resume=True, callbacks=[StopAfter(7)])
    resumed.fit(0.01, 2, state_name="run", resume=True, callbacks=[StopAfter(0)])
    assert torch.equal(weights(whole), weights(again))
    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(weights(whole), weights(other))


def test_views_without_a_version_are_refused_before_anything_is_computed(folder):
    with pytest.raises(ValueError, match=r"jitter must have a version.*Set jitter.version = 1"):
        learner(folder, views=2, precompute=True)
    assert not list(folder.rglob("tmp/activations/*/*"))


@pytest.mark.usefixtures("versioned")
def test_views_are_those_that_loaders_serve(folder):
    learn = learner(folder, views=2, precompute=True, act_dtype="float32")
    rows, data = learn.data.trn_ds.rows, learn._data
    learn.model.eval()
    for view in range(2):
        batch, _ = next(data.trn_dl.batches(view))
        order = data.trn_dl.order(view)[: len(batch)]
        with torch.no_grad():
            features = learn.model.features(batch)
        np.testing.assert_allclose(rows[view * len(data.trn_ds) + order], features, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("versioned")
def test_another_version_is_computed_anew(folder, capsys, monkeypatch):
    learner(folder, views=2, precompute=True)
    capsys.readouterr()
    learner(folder, views=2, precompute=True)
    assert "computing" not in capsys.readouterr().out
    monkeypatch.setattr(jitter, "version", 2)
    learner(folder, views=2, precompute=True)
    assert "train: computing" in capsys.readouterr().out


@pytest.mark.usefixtures("versioned")
def test_tta_from_views_is_tta_from_images(folder):
    cached, images = learner(folder, views=3, precompute=True, act_dtype="float32"), learner(folder)
    np.testing.assert_allclose(cached.TTA(3)[0], images.TTA(3)[0], rtol=1e-3, atol=1e-4)
    plain, *views = images.TTA(2)[0]
    assert all(np.abs(view - plain).max() > 1e-3 for view in views)


def test_an_error_in_a_function_leaves_the_learner_as_it_was(folder):
    calls = []

    def late(x, u):
        calls.append(1)
        if len(calls) == 8:  # three calls try it out
            raise ZeroDivisionError("of the user's own")
        return x

    learn = learner(folder, (late,))
    with pytest.raises(ZeroDivisionError, match="of the user's own"):
        learn.fit(0.01, 3)
    assert len(learn.fit(0.01, 1)) == 2
