"""Names of files and classes that are no UTF-8, hold control characters, or meet a locale of another encoding."""

import io
import json
import os
import subprocess
import sys
import warnings

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import pytest
from helpers import COLOURS, write_images
from hypothesis import given
from hypothesis import strategies as st
from processes import ENVIRONMENT

import fastclf
from fastclf import ConvLearner, ImageClassifierData, ImageModelResults, efficientnet_lite0, tfms_from_model
from fastclf.cli import main
from fastclf.data.sources.patterns import files_of
from fastclf.interpret.figure import save_figure
from fastclf.paths import given_path
from fastclf.report import encodable, json_text

NO_UTF8 = {"blue": "blau\udce9", "green": "gr\udcfcn\x1b[31m", "red": "rot\n\u202e"}
ASCII = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def renamed(folder, names):
    """Images of three colours whose classes and files have other names."""
    parts = {f"train/{name}": 5 for name in COLOURS} | {f"valid/{name}": 3 for name in COLOURS}
    write_images(folder, parts | {"test": 2})
    for colour, name in names.items():
        for part in ("train", "valid"):
            (folder / part / colour).rename(folder / part / name)
    (folder / "test" / "000.png").rename(folder / "test" / f"{names['red']}.png")
    return folder


@pytest.fixture(scope="module")
def learn(tmp_path_factory):
    folder = renamed(tmp_path_factory.mktemp("odd") / "data", NO_UTF8)
    data = ImageClassifierData.from_paths(folder, bs=8, tfms=tfms_from_model(efficientnet_lite0, 32))
    learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False, precompute=True)
    learn.save("model")
    return learn


def test_every_plot_can_be_drawn(learn, tmp_path):
    audit, results = learn.audit(), ImageModelResults(learn.data.val_ds, learn.predict())
    similar = learn.similar(learn.data.path / "test")
    figures = [audit.plot(kind) for kind in {one.finding for one in audit.findings}]
    figures += [similar.plot(), results.plot_top_losses(), results.plot_most_correct(0)]
    figures.append(fastclf.plots(np.zeros((3, 8, 8, 3)), titles=learn.data.classes, maintitle=learn.data.classes[0]))
    matrix = np.eye(3, dtype=int)
    figures.append(fastclf.plot_confusion_matrix(matrix, learn.data.classes, title=learn.data.classes[0]).figure)
    for figure in figures:
        save_figure(figure, tmp_path / "plot.png")
        texts = "".join(text.get_text() for text in figure.findobj(plt.Text))
        assert texts.isprintable() or set("".join(c for c in texts if not c.isprintable())) == {"\n"}
    assert any(one.finding != "label" for one in audit.findings)  # their titles have names in them


def test_an_exported_file_holds_the_classes(learn):
    session = onnxruntime.InferenceSession(learn.export("model"))
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == learn.data.classes


def test_the_description_of_a_model_is_json_for_every_reader(learn):
    text = (learn.data.path / "models" / "model.json").read_bytes().decode("utf-8")
    assert json.loads(text)["classes"] == learn.data.classes


def test_a_run_of_the_command_line(learn, tmp_path, capsysbinary):
    data, run = learn.data.path, tmp_path / "run"
    assert main(["train", str(data), "-o", str(run), "--epochs", "1", "--sz", "32"]) == 0
    about = json.loads((run / "arguments.json").read_bytes().decode("utf-8"))
    assert sorted(about["classes"]) == sorted(NO_UTF8.values())
    capsysbinary.readouterr()
    assert main(["predict", str(run), str(data / "test"), "--json"]) == 0
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.decode("utf-8").splitlines()]
    assert [line["file"] for line in lines] == sorted(str(path) for path in (data / "test").iterdir())
    assert main(["predict", str(run), str(data / "test")]) == 0
    shown = capsysbinary.readouterr().out.decode("utf-8").split("\n")
    assert len(shown) == 3
    assert r"rot\n\u202e.png" in shown[1]
    for command in ("eval", "check"):
        assert main([command, *([str(run), str(data / "valid")] if command == "eval" else [str(data)])]) in (0, 1)
        assert b"\x1b" not in b"".join(capsysbinary.readouterr())


def test_a_font_without_the_characters_is_named_once(tmp_path, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        save_figure(fastclf.plots(np.zeros((2, 8, 8)), titles=["\u56fe", "\u7ffb"]), tmp_path / "plot.png")
    assert not caught
    assert capsys.readouterr().out.count("DejaVu Sans lacks characters") == 1


def test_predictions_need_somewhere_to_go(learn, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    assert main(["predict", str(learn.data.path / "models" / "model"), str(learn.data.path / "test")]) == 1
    assert "--out" in capsys.readouterr().err


@given(st.text(st.characters(codec=None)), st.sampled_from(["ascii", "latin-1", "utf-8", "utf-16"]))
def test_json_can_be_written_in_any_encoding_and_read_again(text, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    read = json.loads(encodable(json_text({text: [text]}, encoding), stream).encode(encoding).decode(encoding))
    assert read == json.loads(json.dumps({text: [text]}))


@given(st.text(st.characters(codec=None)), st.sampled_from(["ascii", "latin-1", "utf-8"]))
def test_what_is_printed_cannot_command_a_terminal(text, encoding):
    shown = encodable(text, io.TextIOWrapper(io.BytesIO(), encoding))
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown if c not in "\t\n")
    if text.isprintable() and text.isascii():
        assert shown == text


SAME = r"""
import json, sys
import torch
from pathlib import Path
from fastclf import ConvLearner, ImageClassifierData, efficientnet_lite0, load, open_image, tfms_from_model
from fastclf.cli import main

torch.manual_seed(0)
path, tfms = Path(sys.argv[1]), tfms_from_model(efficientnet_lite0, 32)
data = ImageClassifierData.from_paths(path, bs=8, tfms=tfms)
table = ImageClassifierData.from_csv(path, "tr\u00e4in", "labels.csv", bs=8, tfms=tfms)
learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False)
learn.save("m")
clf = load(path / "models" / "m")
name = path / "test" / "r\u00f6t.png"
found = [clf.predict(x) for x in (path / "test", name, [str(name)], str(path / "test" / "r*.png"))]
out = {
    "classes": [data.classes, table.classes],
    "names": [sorted(ds.fnames) for ds in (data.trn_ds, data.val_ds, data.test_ds)],
    "table": sorted([*table.trn_ds.fnames, *table.val_ds.fnames]),
    "rows": [list(part.rows()) for part in found],
    "labels": clf.evaluate(path / "valid").names,
    "table labels": clf.evaluate(path, csv="labels.csv", folder="tr\u00e4in").names,
    "pixels": float(open_image(name).mean()),
    "copies": sorted(data.resize(33).val_ds.fnames),
    "check": len(data.check().problems),
    "codes": [
        main(["predict", str(path / "models" / "m"), str(path / "test"), "--out", str(path / "p.csv")]),
        main(["predict", str(path / "models" / "m"), str(path), "--csv", str(path / "labels.csv"), "--folder",
              "tr\u00e4in", "--out", str(path / "q.csv")]),
    ],
}
print("=" + json.dumps(out))
"""


def test_names_are_the_same_in_every_locale(tmp_path):
    answers = []
    for number, more in enumerate(({"PYTHONUTF8": "1"}, ASCII)):
        folder = renamed(tmp_path / f"{number}", {"blue": "bl\u00e5", "green": "\u7eff", "red": "r\u00f6t"})
        names = []
        for label in ("bl\u00e5", "r\u00f6t"):
            write_images(folder, {f"tr\u00e4in/{label}": 3})
            names += [f"{label}/{i:03d}.png,{label}" for i in range(3)]
        (folder / "labels.csv").write_text("\n".join(["file,label", *names]), encoding="utf-8")
        environment = {key: value for key, value in ENVIRONMENT.items() if key not in ASCII} | more
        process = subprocess.run(
            [sys.executable, "-c", SAME, folder], env=environment, capture_output=True, check=False
        )
        assert process.returncode == 0, process.stderr.decode("utf-8", "replace")
        (line,) = (line for line in process.stdout.decode().splitlines() if line.startswith("="))
        tables = [(folder / name).read_text("utf-8") for name in ("p.csv", "q.csv")]
        answers.append(json.loads(line.replace(str(folder), "")[1:]) | {"tables": str(tables).replace(str(folder), "")})
    first, other = answers
    assert first == other
    assert os.fsencode("r\u00f6t.png") == b"r\xc3\xb6t.png"  # else both are wrong


class Place:
    """A path of another library, which gives bytes."""

    def __init__(self, path):
        self.path = os.fsencode(path)

    def __fspath__(self):
        return self.path


def test_paths_that_give_bytes(learn):
    path, file = learn.data.path, learn.data.path / "test" / "001.png"
    assert given_path(Place(file)) == file
    assert files_of(Place(file), "x") == [file]
    assert fastclf.open_image(Place(file)).shape == fastclf.open_image(file).shape
    clf = fastclf.load(Place(path / "models" / "model"))
    for x in (Place(file), [Place(file)], iter([Place(file)])):
        assert clf.predict(x).files == [str(file)]
    assert (
        ImageClassifierData.from_paths(Place(path), tfms=tfms_from_model(efficientnet_lite0, 32)).classes
        == learn.data.classes
    )
    with pytest.raises(ValueError, match="must not be empty"):
        given_path(Place(""))
