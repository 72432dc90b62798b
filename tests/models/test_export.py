"""A classifier as an ONNX file: bytes of pixels in, the learner's predictions out."""

import json

import numpy as np
import pytest
import torch
from helpers import HALF, tiny_learner
from networks import randomise
from torch import nn

from fastclf import ExportError, ImageClassifierData, tfms_from_stats
from fastclf.decision import Decision
from fastclf.models.export import to_onnx

onnxruntime = pytest.importorskip("onnxruntime")
STATS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
SZ = 16


def data_of(path, rng, kind):
    x = rng.integers(0, 256, (24, SZ, SZ, 3)).astype(np.uint8)
    y = {
        "single": np.arange(24) % 3,
        "multi": rng.integers(0, 2, (24, 3)).astype(np.float32),
        "values": rng.standard_normal((24, 3)).astype(np.float32),
    }[kind]
    classes = {"classes": ["Katze", "犬", "a, b"]} if kind != "values" else {}
    return x, ImageClassifierData.from_arrays(
        path, (x, y), (x, y), bs=8, tfms=tfms_from_stats(STATS, SZ), continuous=kind == "values", **classes
    )


@pytest.mark.parametrize(
    ("kind", "gives"), [("single", "log-probabilities"), ("multi", "probabilities"), ("values", "values")]
)
def test_the_file_predicts_from_bytes_what_the_learner_does(tmp_path, rng, kind, gives):
    x, data = data_of(tmp_path, rng, kind)
    learn = tiny_learner(data, metrics=[])
    randomise(learn.model.body)
    learn.unfreeze()
    learn.fit(0.05, 2)
    file = learn.export("pets")
    assert file == data.path / "models" / "pets.onnx"
    session = onnxruntime.InferenceSession(file)
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape[1:]) == ("pictures", "tensor(uint8)", [SZ, SZ, 3])
    expected = learn.predict()
    for n in (1, 5, 24):
        (found,) = session.run(None, {"pictures": x[:n]})
        np.testing.assert_allclose(found, expected[:n], rtol=1e-4, atol=1e-4)
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["classes"]) == [str(name) for name in data.classes]
    assert (meta["sz"], meta["arch"], meta["output"]) == (str(SZ), "test:tiny", gives)


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_temperature_and_thresholds_are_part_of_the_file(tmp_path, rng, kind):
    x, data = data_of(tmp_path, rng, kind)
    learn = tiny_learner(data, metrics=[])
    plain = learn.predict()
    several = kind == "multi"
    learn.decision = Decision(temperature=0.25, thresholds=(0.1, 0.5, 0.7) if several else None)
    session = onnxruntime.InferenceSession(learn.export("pets"))
    (found,) = session.run(None, {"pictures": x})
    np.testing.assert_allclose(found, learn.predict(), rtol=1e-4, atol=1e-4)
    assert np.abs(found - plain).max() > 1e-3
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta.get("thresholds", "null")) == ([0.1, 0.5, 0.7] if several else None)
    learn.model.head = nn.Sequential(nn.Linear(12, 3), nn.LogSoftmax(1))
    with pytest.raises(ExportError, match="the logits of your own head are not known"):
        learn.export("pets")


def test_exporting_changes_nothing_of_the_learner(tmp_path, rng):
    _, data = data_of(tmp_path, rng, "single")
    learn = tiny_learner(data)
    learn.model.train()
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    learn.export("a")
    assert all(module.training for module in learn.model.modules())
    assert all(torch.equal(before[name], value) for name, value in learn.model.state_dict().items())


def test_what_cannot_be_written_is_named_and_an_earlier_file_stays(tmp_path, rng):
    _, data = data_of(tmp_path, rng, "single")
    learn = tiny_learner(data)
    file = learn.export("a")
    before = file.read_bytes()
    learn.model.head.layers[0] = nn.Softplus()
    with pytest.raises(ExportError, match=r"export: aten::softplus cannot be written as ONNX: test:tiny or its head"):
        learn.export("a")
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="name must be a plain file name"):
        learn.export("a/b")


def test_a_file_that_computes_something_else_is_refused(tmp_path, rng, monkeypatch):
    from fastclf.models import export

    def build(model, threads, name):
        return lambda x: torch.zeros(len(x), 3)

    monkeypatch.setattr(export, "onnx_runtime", build)
    _, data = data_of(tmp_path, rng, "single")
    with pytest.raises(ExportError, match="ONNX Runtime computes other values, off by"):
        to_onnx(tiny_learner(data).model, SZ, HALF, data.classes, "log-probabilities")
