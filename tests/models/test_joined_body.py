import json

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import HALF, image_data, three_colours, tiny_body
from torch import nn

import fastclf
from fastclf import ConvLearner
from fastclf.activations.side_by_side import side_by_side
from fastclf.errors import ActivationFileError
from fastclf.models.archs import IMAGENET_STATS, build_bodies, efficientnet_lite0, resnet18
from fastclf.models.joined_body import JoinedBody


def bodies():
    made = [tiny_body(seed=0), tiny_body(seed=1)]
    made[1].arch, (made[1].mean, made[1].std) = "test:other", IMAGENET_STATS
    return made


def test_each_body_sees_images_normalised_for_it():
    first, second = bodies()
    pixels = torch.rand(5, 3, 16, 16)

    def normalised(stats):
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in stats)
        return (pixels - mean) / std

    joined = JoinedBody([first, second]).eval()
    with torch.inference_mode():
        expected = torch.cat([first(normalised(HALF)), second(normalised(IMAGENET_STATS))], 1)
        torch.testing.assert_close(joined(normalised(HALF)), expected, rtol=1e-4, atol=1e-5)
    assert joined.n_features == 24
    parameters = [id(p) for group in joined.groups for p in group.parameters()]
    assert sorted(parameters) == sorted(id(p) for p in joined.parameters())


def test_one_architecture_twice_or_weights_for_two_are_refused():
    with pytest.raises(ValueError, match="different"):
        build_bodies([efficientnet_lite0, efficientnet_lite0])
    with pytest.raises(ValueError, match="different"):
        build_bodies([])
    with pytest.raises(ValueError, match="several bodies"):
        build_bodies([efficientnet_lite0, resnet18], weights="x.pth")


@pytest.fixture
def data(tmp_path):
    return image_data(three_colours(tmp_path), sz=32, augs=())


@pytest.fixture
def learn(data):
    """Two bodies of different normalisation, with random weights."""
    torch.manual_seed(0)
    learn = ConvLearner.pretrained(
        [efficientnet_lite0, resnet18], data, pretrained=False, xtra_fc=[8], act_dtype="float32"
    )
    learn.precompute = True
    learn.fit(0.05, 2)
    return learn


def test_cached_rows_give_what_images_give(learn):
    assert learn.data.trn_ds.rows.shape == (36, 2560 + 1024)
    cached = learn.predict()
    learn.precompute = False
    np.testing.assert_allclose(cached, learn.predict(), atol=2e-3)


def test_saved_loaded_and_exported_like_any_other(learn, data, tmp_path):
    learn.save("both")
    info = json.loads((tmp_path / "models/both.json").read_text())
    assert info["arch"] == "fastclf:efficientnet_lite0+torchvision:resnet18"
    learn.precompute = False
    expected = learn.predict()
    found = fastclf.load(tmp_path / "models/both").predict([tmp_path / name for name in data.val_ds.fnames])
    np.testing.assert_allclose(np.exp(found.outputs), np.exp(expected), atol=1e-4)
    session = onnxruntime.InferenceSession(learn.export("both"))
    pixels = (data.val_ds.denorm(next(iter(data.val_dl))[0]) * 255).round().astype(np.uint8)
    (exported,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(exported, np.exp(expected[: len(pixels)]), atol=2e-2)  # pixels were rounded


def test_another_combination_computes_only_what_is_new(learn, data, capsys):
    body = learn.model.body.parts[0]
    capsys.readouterr()
    again = ConvLearner(
        data,
        type(learn.model)(JoinedBody([body, tiny_body()]), nn.Sequential(nn.Linear(2572, 3), nn.LogSoftmax(1))),
        act_dtype="float32",
    )
    again.precompute = True
    shown = capsys.readouterr().out
    assert "test:tiny" in shown
    assert "efficientnet_lite0: computing" not in shown


def test_all_layers_train(learn):
    learn.unfreeze()
    learn.fit([1e-4, 1e-3, 1e-2], 1)
    assert repr(learn).count("body ") == 2


def test_what_the_last_body_looks_at_is_shown_in_heatmaps_and_reports(learn, data, tmp_path):
    file = tmp_path / data.val_ds.fnames[0]
    assert learn.heatmap(str(file)).values.max() <= 1
    assert learn.report(tmp_path / "page.html").stat().st_size > 1000


def test_rows_side_by_side_are_mapped_and_leave_no_file(tmp_path, rng):
    parts = [rng.standard_normal((9001, f)).astype(np.float16) for f in (3, 5)]
    rows = side_by_side(parts, [tmp_path / "a"])
    assert isinstance(rows, np.memmap)
    np.testing.assert_array_equal(rows, np.concatenate(parts, 1))
    assert list((tmp_path / "a").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not kept"), pytest.raises(ActivationFileError, match="no folder"):
        side_by_side(parts, [tmp_path / "file"])
