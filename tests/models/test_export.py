"""A classifier as one file: pixels of any size in, the learner's answers out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from devices import on_both_devices
from helpers import tiny_learner
from networks import randomise
from PIL import Image
from torch import nn

import fastclf
from fastclf import CropType, ExportError, ImageClassifierData, tfms_from_stats
from fastclf.cli import main
from fastclf.decision import Decision
from fastclf.models import export, verify
from fastclf.models.from_pixels import FromPixels

onnxruntime = pytest.importorskip("onnxruntime")
STATS = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
SZ = 16


def data_of(path, rng, kind):
    x = rng.integers(0, 256, (24, 21, 19, 3)).astype(np.uint8)
    y = {
        "one": np.arange(24) % 3,
        "several": rng.integers(0, 2, (24, 3)).astype(np.float32),
        "numbers": rng.standard_normal((24, 3)).astype(np.float32),
    }[kind]
    classes = {"classes": ["Katze", "犬", "a, b"]} if kind != "numbers" else {}
    tfms = tfms_from_stats(STATS, SZ)
    data = ImageClassifierData.from_arrays(
        path, (x, y), (x, y), bs=8, tfms=tfms, continuous=kind == "numbers", **classes
    )
    return x, data


def learner_of(path, rng, kind="one"):
    x, data = data_of(path, rng, kind)
    learn = tiny_learner(data, metrics=[])
    randomise(learn.model.body)
    return x, learn


def answers(learn, kind):
    return np.exp(learn.predict()) if kind == "one" else learn.predict()


def onnx_run(file):
    session = onnxruntime.InferenceSession(file)
    return lambda x: session.run(None, {"pixels": x})[0]


def pt2_run(file):
    module = torch.export.load(file).module()
    return lambda x: module(torch.from_numpy(x)).detach().numpy()


RUNS = {"onnx": onnx_run, "pt2": pt2_run}


# The same answers


@pytest.mark.parametrize(("kind", "format"), [("one", "onnx"), ("several", "pt2"), ("numbers", "onnx")])
def test_the_file_predicts_from_pixels_what_the_learner_does(tmp_path, rng, kind, format):
    x, learn = learner_of(tmp_path, rng, kind)
    learn.unfreeze()
    learn.fit(0.05, 2)
    file = learn.export("pets", format)
    assert file == tmp_path / "models" / f"pets.{format}"
    run, expected = RUNS[format](file), answers(learn, kind)
    for n in (1, 5, 24):
        np.testing.assert_allclose(run(x[:n]), expected[:n], rtol=1e-4, atol=1e-4)


def weights_in_float64(n, start, scaled, sz):
    """A crop's weights by the definition, pixel by pixel: a triangle, and the outermost pixels going on."""
    step = n / scaled
    reach, out = max(1.0, step), np.zeros((sz, n))
    for i in range(sz):
        middle = (start + i + 0.5) * step
        for k in range(-2 * n - 4, 3 * n + 4):
            out[i, min(max(k, 0), n - 1)] += max(0.0, 1 - abs(k + 0.5 - middle) / reach)
    return out / out.sum(1, keepdims=True)


@pytest.mark.parametrize("crop_type", [None, CropType.NO])
@pytest.mark.parametrize(("h", "w"), [(1, 70), (61, 9), (16, 16), (17, 16), (16, 23), (3, 3), (200, 133)])
def test_crops_are_those_of_validation_and_of_a_reference(rng, h, w, crop_type):
    tfms = tfms_from_stats(STATS, SZ, crop_type=crop_type)[1]
    whole = FromPixels(fastclf.models.net.Net(nn.Identity(), nn.Identity()), tfms, "one", 1.0)
    image = rng.integers(0, 256, (h, w, 3)).astype(np.uint8)
    found = whole.crops(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(found, tfms(image), atol=1e-5)
    sides = [SZ if crop_type is CropType.NO else n * SZ // min(h, w) for n in (h, w)]
    starts = [round((scaled - SZ) / 2) for scaled in sides]  # to the even one
    down, across = (
        weights_in_float64(n, start, scaled, SZ) for n, start, scaled in zip((h, w), starts, sides, strict=True)
    )
    expected = np.einsum("ih,hwc,jw->cij", down, image / 255, across)
    mean, std = (np.array(values)[:, None, None] for values in STATS)
    np.testing.assert_allclose(found, (expected - mean) / std, atol=1e-4)


def test_images_of_any_size(tmp_path, rng):
    _, learn = learner_of(tmp_path, rng)
    run = onnx_run(learn.export("pets"))
    learn.save("pets")
    clf = fastclf.load(tmp_path / "models" / "pets", device="cpu", model=learn.model)
    images = [rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in ((1, 99), (83, 3), (16, 16), (301, 200))]
    expected = clf.predict(images).probs
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(np.concatenate([run(image[None]) for image in images]), expected, atol=1e-4)


@pytest.mark.parametrize(("kind", "own_head"), [("one", False), ("several", False), ("several", True)])
def test_temperature_is_part_of_the_file(tmp_path, rng, kind, own_head):
    x, learn = learner_of(tmp_path, rng, kind)
    if own_head:
        last = nn.LogSoftmax(1) if kind == "one" else nn.Sigmoid()
        learn.model.head = nn.Sequential(nn.Linear(12, 3), last).eval()
    plain = answers(learn, kind)
    moved = []
    for temperature in (0.125, 16):  # one of them changes the answers, however sure they are
        learn.decision = Decision(temperature=temperature)
        found = onnx_run(learn.export("pets"))(x)
        np.testing.assert_allclose(found, answers(learn, kind), atol=1e-4)
        moved.append(np.abs(found - plain).max())
    assert max(moved) > 1e-3


# What travels in the file


@pytest.mark.parametrize("format", RUNS)
def test_metadata(tmp_path, rng, format):
    _, learn = learner_of(tmp_path, rng, "several")
    learn.decision = Decision(temperature=0.5, thresholds=(0.1, 0.5, 0.7))
    file = learn.export("pets", format)
    if format == "onnx":
        meta = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
        onnx.checker.check_model(onnx.load(file), full_check=True)
    else:
        extra = {verify.METADATA: ""}
        torch.export.load(file, extra_files=extra)
        meta = json.loads(extra[verify.METADATA])
    assert json.loads(meta["classes"]) == ["Katze", "犬", "a, b"]
    assert (meta["labels"], meta["output"], meta["arch"]) == ("several", "probabilities", "test:tiny")
    assert json.loads(meta["thresholds"]) == [0.1, 0.5, 0.7]
    assert json.loads(meta["temperature"]) == 0.5
    assert json.loads(meta["transforms"])["sz"] == SZ
    assert "torch" in json.loads(meta["versions"])


def changed(file):
    """The file with the weights of one layer changed: of a single weight, nothing may come through."""
    model = onnx.load(file)
    weight = next(t for t in model.graph.initializer if t.name.startswith("head") and len(t.dims) == 2)
    values = onnx.numpy_helper.to_array(weight).copy()
    values += 3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    other = file.with_name("other.onnx")
    onnx.save(model, other)
    return other


def test_verify(tmp_path, rng, capsys):
    _, learn = learner_of(tmp_path, rng)
    files = [learn.export("pets", format) for format in RUNS]
    for file in files:
        assert main(["verify", str(file)]) == 0
        assert "the same answers, off by" in capsys.readouterr().out
    other = changed(files[0])
    assert main(["verify", str(other)]) == 1
    assert "OTHER ANSWERS" in capsys.readouterr().out
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no model")
    for wrong, reason in ((damaged, "cannot be read"), (tmp_path / "none.onnx", "there is no file")):
        assert main(["verify", str(wrong)]) == 1
        assert reason in capsys.readouterr().err


def test_verify_needs_neither_fastclf_nor_torch(tmp_path, rng):
    _, learn = learner_of(tmp_path, rng)
    file = learn.export("pets")
    script = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(['fastclf', 'torch'])); sys.argv[1:] = [sys.argv[2]]\n"
        f"runpy.run_path({verify.__file__!r}, run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", script, "-", str(file)], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "the same answers" in ended.stdout


def test_the_example_for_python_in_the_documentation(tmp_path, rng, monkeypatch, capsys):
    _, learn = learner_of(tmp_path, rng)
    learn.export("pets")
    learn.export("pets", "pt2")
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    example = re.search(r"## Python\n\n```python\n(.*?)```", text, re.DOTALL)[1]
    other = re.search(r"With torch: `(.*?)`\.", text)[1]
    monkeypatch.chdir(tmp_path / "models")
    pixels = rng.integers(0, 256, (30, 41, 3), np.uint8)
    Image.fromarray(pixels).save("cat.jpg", quality=100)
    names = {"torch": torch}
    exec(example, names)
    best = learn.predict_array(learn._data.tfms[1](names["np"].asarray(names["image"]))[None])[0]
    assert capsys.readouterr().out.split()[-1] == str(names["probs"][0].max())
    np.testing.assert_allclose(names["probs"][0], np.exp(best), atol=1e-4)
    assert names["classes"] == [str(c) for c in learn._data.classes]
    np.testing.assert_allclose(eval(other, names).detach().numpy(), names["probs"], atol=1e-4)


# What stays as it was, and what is refused


@on_both_devices
@pytest.mark.parametrize("format", RUNS)
def test_exporting_changes_nothing_and_says_nothing(tmp_path, rng, capfd, format):
    _, learn = learner_of(tmp_path, rng)
    learn.model.train()
    before = {name: value.clone() for name, value in learn.model.state_dict().items()}
    capfd.readouterr()
    learn.export("a", format)
    assert capfd.readouterr() == ("", "")
    assert all(module.training for module in learn.model.modules())
    assert all(torch.equal(before[name], value) for name, value in learn.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "format", "written"),
    [
        ("a.onnx", None, "a.onnx"),
        ("a.pt2", None, "a.pt2"),
        ("a.pt2", "pt2", "a.pt2"),
        ("v1.0", None, "v1.0.onnx"),
        ("v1.0", "pt2", "v1.0.pt2"),
    ],
)
def test_the_ending_of_a_name_is_not_written_twice(tmp_path, rng, monkeypatch, name, format, written):
    formats = []
    monkeypatch.setattr("fastclf.learners.conv_learner.write_model", lambda *args: formats.append(args[-1]))
    _, learn = learner_of(tmp_path, rng)
    assert learn.export(name, format).name == written
    assert formats == [written.rpartition(".")[2]]
    with pytest.raises(ValueError, match=r"path must end in .pt2, as format is 'pt2', got .*a.onnx"):
        learn.export("a.onnx", "pt2")


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 3)

    def forward(self, x):
        out = self.linear(x)
        return torch.log_softmax(out if float(out.sum()) > 0 else -out, 1)


@pytest.mark.parametrize("format", RUNS)
def test_what_cannot_be_written_is_explained_and_an_earlier_file_stays(tmp_path, rng, format):
    _, learn = learner_of(tmp_path, rng)
    file = learn.export("a", format)
    before = file.read_bytes()
    learn.model.head = Branching()
    with pytest.raises(ExportError, match=r"export: test:tiny or its head cannot be written: .* no branches"):
        learn.export("a", format)
    assert file.read_bytes() == before
    with pytest.raises(ValueError, match="name must be a plain file name"):
        learn.export("a/b", format)
    with pytest.raises(ValueError, match="format must be one of onnx, pt2, got 'h5'"):
        learn.export("a", "h5")
    assert sorted(each.name for each in file.parent.iterdir()) == [file.name]


def test_a_file_that_computes_something_else_is_refused(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(export, "verify", lambda file, format: float("nan"))
    _, learn = learner_of(tmp_path, rng)
    with pytest.raises(ExportError, match="the file computes other answers than the model, off by"):
        learn.export("a")
    assert not list((tmp_path / "models").glob("a*"))


def test_more_than_an_onnx_file_may_hold(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(export, "_MOST_BYTES", 100)
    _, learn = learner_of(tmp_path, rng)
    with pytest.raises(ExportError, match=r"the weights are .* GB, and an ONNX file may hold .* Pass format=.pt2."):
        learn.export("a")
    learn.export("a", "pt2")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("a.onnx", None, "onnx"),
        ("a.pt2", None, "pt2"),
        ("a.PT2", None, "pt2"),
        ("a", None, "onnx"),
        ("a", "pt2", "pt2"),
        ("v1.0", None, "onnx"),
        ("a.onnx", "pt2", None),
        ("a.pt2", "onnx", None),
        ("a", "tflite", None),
    ],
)
def test_the_format_is_that_of_the_ending(name, format, expected):
    if expected is None:
        with pytest.raises(ValueError, match="export: "):
            export.format_for(Path(name), format)
    else:
        assert export.format_for(Path(name), format) == expected
