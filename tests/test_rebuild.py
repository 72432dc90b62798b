"""The network of a saved model is made again from its description; what cannot be made has to be given."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import image_data, row_data, three_colours
from torch import nn

import fastclf
from fastclf import (
    CheckpointError,
    ConvLearner,
    HeadLearner,
    ImageClassifierData,
    Learner,
    efficientnet_lite0,
    tfms_from_model,
)
from fastclf.checkpoint import load_checkpoint, save_checkpoint


def test_what_cannot_be_rebuilt_is_logged(tmp_path, capsys, rng):
    data = row_data(tmp_path, rng)
    head = nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(1))
    learn = HeadLearner(data, custom_head=head)
    learn.save("own")
    assert "save: the head Sequential cannot be rebuilt" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=r"own.json: the head Sequential .* custom_head="):
        fastclf.load(tmp_path / "models" / "own")
    fresh = nn.Sequential(nn.Linear(10, 3), nn.LogSoftmax(1))
    clf = fastclf.load(tmp_path / "models" / "own", custom_head=fresh)
    np.testing.assert_array_equal(clf.predict(data.val_ds.rows).outputs, learn.predict())
    with pytest.raises(CheckpointError, match="does not fit"):
        fastclf.load(tmp_path / "models" / "own", custom_head=nn.Sequential(nn.Linear(10, 4), nn.LogSoftmax(1)))


def test_a_custom_head_on_a_known_body(tmp_path, capsys):
    folder = three_colours(tmp_path / "data", n=3, n_valid=2)
    data = ImageClassifierData.from_paths(folder, bs=4, tfms=tfms_from_model(efficientnet_lite0, 32))

    def head():
        return nn.Sequential(nn.Linear(2560, 3), nn.LogSoftmax(1))

    learn = ConvLearner.pretrained(efficientnet_lite0, data, custom_head=head(), pretrained=False)
    learn.save("own")
    assert "custom_head=..." in capsys.readouterr().out
    clf = fastclf.load(folder / "models" / "own", custom_head=head())
    np.testing.assert_array_equal(clf.predict(folder / "valid", batch_size=4).outputs, learn.predict())


def test_a_network_of_ones_own(tmp_path, capsys):
    folder = three_colours(tmp_path / "data", n=3, n_valid=2)

    def network():
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.LogSoftmax(1)
        )

    learn = Learner.from_model_data(network(), image_data(folder))
    learn.save("own")
    assert "model=..." in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="model="):
        fastclf.load(folder / "models" / "own")
    clf = fastclf.load(folder / "models" / "own", model=network())
    np.testing.assert_array_equal(clf.predict(folder / "valid", batch_size=8).outputs, learn.predict())


def test_the_state_of_a_fit_is_a_model_too(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    learn.fit(0.1, 1, state_name="run")
    clf = fastclf.load(tmp_path / "models" / "run")
    np.testing.assert_array_equal(clf.predict(learn.data.val_ds.rows).outputs, learn.predict())


def test_models_of_earlier_versions_say_what_they_lack():
    with pytest.raises(CheckpointError, match=r"format1\.json was saved by an earlier version and lacks labels, c"):
        fastclf.load(Path(__file__).parent / "released" / "format1")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": "some"},
        {"c": 4},
        {"c": True},
        {"c": 10**12, "labels": "numbers", "classes": []},
        {"head": {"n_in": 10, "c": 3, "ps": [0.25, 0.5], "xtra_fc": [10**12]}},
        {"head": {"n_in": 10, "c": 3, "ps": [7, 0.5], "xtra_fc": [512]}},
        {"head": {"n_in": "10"}},
        {"head": {}},
        {"transforms": {"sz": 10**9}},
        {"transforms": 7},
        {"arch": 3},
        {"arch": "timm:../../etc", "transforms": None},
        {"classes": ["a"]},
    ],
    ids=str,
)
def test_a_description_that_makes_no_sense(tmp_path, rng, changes):
    learn = HeadLearner(row_data(tmp_path, rng))
    learn.save("head")
    tensors, info = load_checkpoint(tmp_path / "models" / "head")
    info = {
        key: value for key, value in info.items() if key not in ("format", "versions", "weights", "sha256", "check")
    }
    save_checkpoint(tmp_path / "head", tensors, info | changes)
    if changes.keys() == {"arch", "transforms"}:
        assert fastclf.load(tmp_path / "head").kind == "one"  # the name of a network that is not needed
        return
    with pytest.raises(CheckpointError, match=r"head\.json"):
        fastclf.load(tmp_path / "head")


def test_an_architecture_that_is_not_there(tmp_path):
    folder = three_colours(tmp_path / "data", n=3, n_valid=2)
    learn = ConvLearner.pretrained(
        efficientnet_lite0,
        ImageClassifierData.from_paths(folder, bs=4, tfms=tfms_from_model(efficientnet_lite0, 32)),
        pretrained=False,
    )
    info = json.loads(json.dumps(learn._saved_info()))
    save_checkpoint(tmp_path / "gone", learn._state(), info | {"arch": "torchvision:resnet_of_tomorrow"})
    with pytest.raises(CheckpointError, match=r"gone\.json was saved with fastclf .*resnet_of_tomorrow"):
        fastclf.load(tmp_path / "gone")
    save_checkpoint(tmp_path / "other", learn._state(), info | {"arch": "torchvision:resnet18"})
    with pytest.raises(CheckpointError, match="does not fit"):
        fastclf.load(tmp_path / "other")
