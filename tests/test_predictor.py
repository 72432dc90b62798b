"""A saved model without its training data: loaded, and applied to images of every kind."""

import copy
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import COLOURS, HALF, image_data, row_data, three_colours, tiny_body, tiny_learner, write_images
from PIL import Image
from processes import ENVIRONMENT, lines_of

import fastclf
from fastclf import (
    BadImageError,
    CheckpointError,
    CropType,
    HeadLearner,
    ImageClassifierData,
    LabelError,
    open_image,
)
from fastclf.models.head import Head
from fastclf.models.net import Net
from fastclf.predictions import Predictions

NAMES = sorted(COLOURS)


def untrained(c=3, final="log_softmax"):
    """The network of `tiny_learner`, which no name stands for."""
    return Net(tiny_body(seed=1), Head(12, c, ps=0.2, xtra_fc=[8], final=final, seed=7))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of images, a learner that was trained on it, and its classifier."""
    folder = three_colours(tmp_path_factory.mktemp("trained") / "data")
    learn = tiny_learner(image_data(folder))
    learn.fit(0.1, 2)
    learn.save("colours")
    return folder, learn, fastclf.load(folder / "models" / "colours", model=untrained())


@pytest.fixture
def files(trained):
    folder, learn, _ = trained
    return [str(folder / name) for name in learn.data.val_ds.fnames]


# The same predictions as the learner's


LITE = """
import sys
import numpy as np, torch
from helpers import HALF, three_colours
from fastclf import *

torch.set_num_threads(1)
data = ImageClassifierData.from_paths(sys.argv[1], bs=8, tfms=tfms_from_model(efficientnet_lite0, 64))
learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False)
learn.fit(.01, 1)
learn.save("model")
np.save(sys.argv[2], learn.predict())
"""

APPLY = """
import sys
import numpy as np, torch
import fastclf

torch.set_num_threads(1)
clf = fastclf.load(sys.argv[1])
found = clf.predict(sys.argv[2], batch_size=8)
assert clf.kind == "one" and clf.arch == "fastclf:efficientnet_lite0", clf
print(np.array_equal(found.outputs, np.load(sys.argv[3])), found.classes, len(found))
"""


def test_trained_in_one_process_the_data_deleted_applied_in_another_to_the_last_bit(tmp_path):
    folder, elsewhere = three_colours(tmp_path / "data", n=4, n_valid=4), tmp_path / "elsewhere"
    lines_of(LITE, folder, tmp_path / "expected.npy")
    shutil.move(folder / "models", elsewhere)
    shutil.move(folder / "valid", tmp_path / "images")
    shutil.rmtree(folder)
    (line,) = lines_of(APPLY, elsewhere, tmp_path / "images", tmp_path / "expected.npy")[-1:]
    assert line == "True ['blue', 'green', 'red'] 12"


@pytest.mark.parametrize("crop_type", [None, CropType.NO])
def test_outputs_labels_and_files(tmp_path, crop_type):
    folder = three_colours(tmp_path / "data")
    learn = tiny_learner(image_data(folder, crop_type=crop_type))
    learn.fit(0.1, 2)
    learn.save("colours")
    clf = fastclf.load(folder / "models" / "colours", model=untrained())
    found, expected = clf.predict(folder / "valid", batch_size=8), learn.predict()
    np.testing.assert_array_equal(found.outputs, expected)
    np.testing.assert_array_equal(found.probs, np.exp(expected))
    assert found.files == [str(folder / name) for name in learn.data.val_ds.fnames]
    assert found.labels == [NAMES[i] for i in expected.argmax(1)]
    assert found.classes == NAMES
    assert len(found) == 18


def test_any_batch_size_gives_the_same_to_rounding(trained):
    folder, learn, clf = trained
    for batch_size in (1, 5, 100):
        np.testing.assert_allclose(
            clf.predict(folder / "valid", batch_size=batch_size).outputs, learn.predict(), atol=1e-5
        )


def test_several_labels(tmp_path):
    folder = write_images(tmp_path / "data", {"images/red": 8, "images/blue": 8})
    names = sorted(str(p.relative_to(folder / "images")) for p in (folder / "images").rglob("*.png"))
    table = pd.DataFrame({"name": names, "tags": ["a|b" if i % 2 else "b|c" for i in range(16)]})
    data = ImageClassifierData.from_df(
        folder, "images", table, bs=4, tfms=fastclf.tfms_from_stats(HALF, 16), val_idxs=range(6)
    )
    learn = tiny_learner(data, metrics=[])
    learn.fit(0.1, 2)
    learn.save("tags")
    clf = fastclf.load(folder / "models" / "tags", model=untrained(final="sigmoid"))
    found = clf.predict([folder / name for name in data.val_ds.fnames], batch_size=4)
    np.testing.assert_array_equal(found.probs, learn.predict())
    assert found.labels == [[c for c, p in zip("abc", row, strict=True) if p >= 0.5] for row in found.probs]
    assert list(found.to_frame(all_probs=True)) == ["file", "labels", "a", "b", "c"]
    assert found.to_frame()["labels"][0] == "|".join(found.labels[0])
    with pytest.raises(ValueError, match="one label"):
        clf.predict(folder, topk=2)
    files, held_out = [folder / name for name in data.val_ds.fnames], folder / "held_out.csv"
    tags = table["tags"][:6]
    pd.DataFrame({"file": data.val_ds.fnames, "tags": tags}).to_csv(held_out, index=False)
    want = learn.evaluate().to_dict() | {"title": None}
    for evaluated in (
        clf.evaluate(folder, csv=held_out, batch_size=4),
        clf.evaluate(files, tags.str.split("|").tolist(), batch_size=4),
        clf.evaluate(files, data.val_ds.y, batch_size=4),
    ):
        assert evaluated.to_dict() | {"title": None} == want
    assert {row["name"] for row in want["each"]} == set("abc")
    learn.tune_thresholds()
    learn.save("tuned")
    tuned = fastclf.load(folder / "models" / "tuned", model=untrained(final="sigmoid")).evaluate(files, data.val_ds.y)
    assert tuned["f1_macro"] == pytest.approx(learn.evaluate()["f1_macro"], abs=1e-12)
    assert tuned["f1_macro"] >= want["overall"]["f1_macro"]["value"]
    with pytest.raises(LabelError, match="'d'"):
        clf.evaluate(files, [["a", "d"]] * 6)


def test_regression(tmp_path):
    folder = write_images(tmp_path / "data", {"images/red": 8})
    table = pd.DataFrame({"name": [f"red/{i:03d}.png" for i in range(8)], "age": np.arange(8) / 8})
    tfms = fastclf.tfms_from_stats(HALF, 16)
    data = ImageClassifierData.from_df(folder, "images", table, bs=4, tfms=tfms, val_idxs=range(3), continuous=True)
    learn = tiny_learner(data, metrics=[])
    learn.save("age")
    clf = fastclf.load(folder / "models" / "age", model=untrained(c=1, final="none"))
    found = clf.predict(folder / "images", batch_size=4)
    np.testing.assert_array_equal(found.outputs[:3], learn.predict())
    assert list(found.to_frame()) == ["file", "value"]
    assert found.labels[0] == [found.outputs[0, 0]]
    with pytest.raises(ValueError, match="numbers"):
        found.probs  # noqa: B018
    files, ages = [folder / name for name in data.val_ds.fnames], data.val_ds.y[:, 0].astype(np.float64)
    predicted = found.outputs[:3, 0].astype(np.float64)
    for y in (ages, ages[:, None]):
        evaluated = clf.evaluate(files, y, batch_size=4)
        assert evaluated.overall == learn.evaluate().overall
        assert evaluated["mae"] == pytest.approx(np.abs(predicted - ages).mean(), rel=1e-6)


def test_rows_of_activations(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng), xtra_fc=[6])
    learn.fit(0.1, 2)
    learn.save("head")
    rows = learn.data.val_ds.rows
    shutil.rmtree(tmp_path / "tmp", ignore_errors=True)
    clf = fastclf.load(tmp_path / "models")  # the only one in it
    for x in (rows, torch.from_numpy(rows), [rows]):
        np.testing.assert_array_equal(clf.predict(x).outputs, learn.predict())
    np.testing.assert_allclose(clf.predict(iter(rows)).outputs, learn.predict(), atol=1e-6)
    assert clf.predict(rows[0]).labels == [clf.predict(rows).labels[0]]
    assert len(clf.predict(rows[:0])) == 0
    with pytest.raises(ValueError, match=r"activations \[N, 10\]"):
        clf.predict(rows[:, :5])
    with pytest.raises(ValueError, match="finite"):
        clf.predict(np.full((2, 10), np.nan, np.float32))
    with pytest.raises(TypeError, match=r"activations \[N, 10\]"):
        clf.predict("rows.npy")


# Every kind of input


def test_files_and_everything_that_names_them(trained, files, monkeypatch):
    folder, learn, clf = trained
    expected = learn.predict()
    one = Path(files[0])
    monkeypatch.chdir(folder)
    inputs = [
        files,
        tuple(map(Path, files)),
        pd.Series(files),
        np.array(files),
        (name for name in files),
        str(folder / "valid" / "**" / "*.png"),
        "valid/*/*.png",
        ["valid/blue", "valid/green", Path("valid") / "red"],
    ]
    for x in inputs:
        found = clf.predict(x, batch_size=8)
        np.testing.assert_array_equal(found.outputs, expected)
        assert [str(folder / name) for name in found.files] == files
    assert clf.predict(one).labels == clf.predict([one]).labels


def test_pixels_of_every_kind(trained, files):
    _, learn, clf = trained
    images = [Image.open(name) for name in files]
    pixels = [np.asarray(image) for image in images]
    tensors = [torch.from_numpy(p.copy()).permute(2, 0, 1) for p in pixels]
    for x in (pixels, iter(pixels), tensors, images):
        np.testing.assert_array_equal(clf.predict(x, batch_size=8).outputs, learn.predict())
    np.testing.assert_allclose(clf.predict([open_image(f) for f in files]).outputs, learn.predict(), atol=1e-3)
    assert clf.predict(images[0]).files == [files[0]]
    assert clf.predict(pixels[0]).files == [None]
    same = np.stack([pixels[0]] * 3)
    expected = clf.predict([pixels[0]] * 3).outputs
    for x in (same, torch.from_numpy(same), torch.from_numpy(same).permute(0, 3, 1, 2)):
        np.testing.assert_array_equal(clf.predict(x).outputs, expected)
    alpha = np.concatenate([pixels[0], np.full_like(pixels[0][:, :, :1], 9)], 2)
    np.testing.assert_array_equal(clf.predict([alpha] * 3).outputs, expected)
    grey = pixels[0][:, :, 0]
    three = np.repeat(grey[:, :, None], 3, 2)
    np.testing.assert_array_equal(clf.predict(grey).outputs, clf.predict(three).outputs)


def test_files_and_pixels_in_one_list(trained, files):
    _, learn, clf = trained
    mixed = [Image.open(name) if i % 3 == 0 else name for i, name in enumerate(files)]
    found = clf.predict(mixed)
    np.testing.assert_allclose(found.outputs, learn.predict(), atol=1e-5)
    assert found.files == files


def test_nothing_gives_nothing(trained):
    found = trained[2].predict([])
    assert found.outputs.shape == (0, 3)
    assert len(found.to_frame()) == 0
    assert found.labels == []


class Scalar:
    """As pyarrow's columns yield them."""

    def as_py(self):
        return "a.jpg"


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        ("no/such.jpg", FileNotFoundError, "no file or folder"),
        ("no/*.jpg", FileNotFoundError, "matches"),
        (3, TypeError, "int"),
        (b"bytes", TypeError, r"bytes. Pass PIL.Image.open\(io.BytesIO\(x\)\)"),
        ([io.BytesIO(b"bytes")], TypeError, r"BytesIO. Pass PIL.Image.open\(x\)"),
        (io.StringIO("a.jpg"), TypeError, r"Of a list of file names pass the lines: x.read\(\).splitlines\(\)"),
        ({"a": 1}, TypeError, "dict"),
        (pd.DataFrame({"name": ["a.jpg"]}), TypeError, r"DataFrame. Pass the column of the files, x\[NAME\]"),
        ([Scalar()], TypeError, r"Scalar. Pass the column .* column.to_pylist\(\)"),
        ("https://a.b/c.jpg", FileNotFoundError, "Download it first"),
        ([1.5], TypeError, "float"),
        (np.zeros((4, 4, 2), np.uint8), ValueError, r"\[4, 4, 2\]"),
        (np.zeros((2, 5, 5), np.uint8), ValueError, r"\[2, 5, 5\]"),
        (np.zeros((4, 4, 3), np.int16), ValueError, "int16"),
        (np.full((4, 4, 3), 7.0), ValueError, "0..1"),
        (np.full((4, 4, 3), np.nan), ValueError, "0..1"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_stands_for_no_image(trained, x, error, says):
    with pytest.raises(error, match=says):
        trained[2].predict(x)


def test_the_images_of_a_set_are_its_source(trained):
    ds = trained[1]._data.val_ds
    with pytest.raises(TypeError, match=r"got Dataset. Pass x.source"):
        trained[2].predict(ds)
    wanted = trained[2].predict([ds.source.path(row) for row in range(len(ds))])
    np.testing.assert_array_equal(trained[2].predict(ds.source).outputs, wanted.outputs)


def test_a_label_with_a_bar_in_its_name_stays_one(tmp_path):
    outputs = np.array([[0.9, 0.8], [0.9, 0.1], [0.1, 0.9]], np.float32)
    found = Predictions(outputs, ["a|b", "c"], ["0.png", "1.png", "2.png"], "several")
    assert [row[1] for row in found.rows()] == ["['a|b', 'c']", "['a|b']", "['c']"]
    write_images(tmp_path, {"in": 3})
    for i in range(3):
        (tmp_path / "in" / f"{i:03d}.png").rename(tmp_path / "in" / f"{i}.png")
    found.to_csv(tmp_path / "t.csv")
    data = ImageClassifierData.from_csv(
        tmp_path, "in", "t.csv", tfms=fastclf.tfms_from_stats(HALF, 8), val_idxs=[0], multi=True
    )
    assert data.classes == ["a|b", "c"]
    np.testing.assert_array_equal(data.trn_y, outputs[1:] > 0.5)


@pytest.mark.parametrize("x", ["", Path()])
def test_an_empty_path_is_not_the_working_folder(trained, files, monkeypatch, x):
    monkeypatch.chdir(Path(files[0]).parent)
    if x == "":
        for call in (trained[2].predict, trained[2].evaluate, fastclf.load, trained[2].export):
            with pytest.raises(ValueError, match="a path must not be empty"):
                call(x)
    else:
        assert len(trained[2].predict(x)) > 0  # Path() is '.'


def test_rows_without_a_name_keep_their_place(trained, files, monkeypatch):
    monkeypatch.chdir(Path(files[0]).parent)  # where an empty name would bring images
    names = pd.Series([files[0], None, files[1], "", np.nan, pd.NA, files[2]], dtype=object)
    found = trained[2].predict(names, on_bad="nan")
    assert [label is None for label in found.labels] == [False, True, False, True, True, True, False]
    assert found.files == [files[0], None, files[1], None, None, None, files[2]]
    assert set(found.bad) == {1, 3, 4, 5}
    np.testing.assert_allclose(found.outputs[[0, 2, 6]], trained[2].predict(files[:3]).outputs, atol=1e-5)
    with pytest.raises(BadImageError, match="image 1: no name of a file"):
        trained[2].predict(names)


def test_names_are_plain_text(trained, files):
    assert {type(name) for name in trained[2].predict(np.array(files[:2])).files} == {str}


def test_wrong_arguments(trained, files):
    for argument in ({"topk": 0}, {"batch_size": 0}, {"on_bad": "skip"}, {"batch_size": 1.5}):
        with pytest.raises(ValueError, match=next(iter(argument))):
            trained[2].stream(files, **argument)


# Bad images


@pytest.fixture
def with_bad(trained, files, tmp_path):
    """The validation images with three bad ones among them, and which they are."""
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.png").write_text("<html>")
    whole = Path(files[0]).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    bad = [str(tmp_path / name) for name in ("empty.jpg", "page.png", "cut.png")]
    return [*files[:5], bad[0], *files[5:9], *bad[1:], *files[9:]], bad


def test_bad_images_are_named(trained, with_bad):
    names, bad = with_bad
    with pytest.raises(BadImageError, match="empty file") as caught:
        trained[2].predict(names)
    assert list(caught.value.reasons) == bad
    with pytest.raises(BadImageError, match="not found"):
        trained[2].predict(["gone.jpg"])


def test_bad_images_are_nan(trained, with_bad, tmp_path):
    names, bad = with_bad
    _, learn, clf = trained
    found = clf.predict([*names, "gone.jpg", "zero\0byte"], on_bad="nan", batch_size=8)
    rows = [names.index(name) for name in bad] + [len(names), len(names) + 1]
    assert sorted(found.bad) == rows
    assert found.bad[5] == "empty file"
    assert [row for row, label in enumerate(found.labels) if label is None] == rows
    assert np.isnan(found.outputs[rows]).all()
    np.testing.assert_allclose(np.delete(found.outputs, rows, 0), learn.predict(), atol=1e-5)
    assert found.top[5] == []
    frame = found.to_frame()
    assert frame["label"].isna().sum() == 5
    np.testing.assert_allclose(
        clf.predict(names, on_bad="nan", batch_size=8).outputs[:5], learn.predict()[:5], atol=1e-5
    )


def test_a_pil_image_that_cannot_be_decoded(trained, with_bad, files):
    with Image.open(files[0]) as whole, Image.open(with_bad[1][2]) as cut, Image.open(with_bad[1][2]) as again:
        found = trained[2].predict([whole, cut], on_bad="nan")
        with pytest.raises(BadImageError, match=r"cut\.png"):
            trained[2].predict(again)
    assert list(found.bad) == [1]


def test_only_bad_images(trained, with_bad):
    found = trained[2].predict(with_bad[1], on_bad="nan")
    assert np.isnan(found.probs).all()
    assert found.labels == [None] * 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda clf: pickle.loads(pickle.dumps(clf))])
def test_copies_of_a_classifier_that_has_predicted(trained, files, copied):
    """Such as a pool of processes, joblib and sklearn's clone make."""
    clf = trained[2]
    wanted = clf.predict(files).outputs
    np.testing.assert_array_equal(copied(clf).predict(files).outputs, wanted)
    np.testing.assert_array_equal(clf.predict(files).outputs, wanted)


def test_other_formats_leave_no_copies(trained, files, tmp_path):
    """Pillow's pixels are handed over as they are."""
    for i, name in enumerate(files):
        Image.open(name).save(tmp_path / f"{i:02d}.bmp")
    before = {*Path(tempfile.gettempdir()).iterdir()}
    found = trained[2].predict(tmp_path, batch_size=8)
    np.testing.assert_array_equal(found.outputs, trained[1].predict())
    assert not any(new.suffix == ".png" for new in {*Path(tempfile.gettempdir()).iterdir()} - before)


# Tables


def test_tables(trained, files, tmp_path):
    found = trained[2].predict(files, topk=2)
    frame = found.to_frame()
    assert list(frame) == ["file", "label", "prob", "label_2", "prob_2"]
    order = np.argsort(-found.probs, 1)
    assert frame["label_2"].tolist() == [NAMES[i] for i in order[:, 1]]
    np.testing.assert_allclose(frame["prob"], found.probs.max(1))
    assert found.top[0] == [(NAMES[i], float(found.probs[0, i])) for i in order[0, :2]]
    written = pd.read_csv(found.to_csv(tmp_path / "new" / "preds.csv", all_probs=True))
    assert list(written) == [*frame, *NAMES]
    np.testing.assert_allclose(written[NAMES], found.probs, rtol=1e-6)
    assert len(trained[2].predict(files[0], topk=99).top[0]) == 3


# Many images in bounded memory


MANY = """
import os, resource, sys
import numpy as np
from pathlib import Path
import torch
import fastclf
from test_predictor import untrained

torch.set_num_threads(1)
clf = fastclf.load(sys.argv[1], model=untrained())
files = sorted(map(str, Path(sys.argv[2]).rglob("*.png")))
sys.stdout.flush()
n, peaks = 0, []
for i, part in enumerate(clf.stream((files[j % len(files)] for j in range(2400)), batch_size=4)):
    n += len(part)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(n, len(peaks), peaks[4], peaks[-1])
"""


def test_memory_is_flat(trained):
    folder, _, _ = trained
    n, parts, early, last = map(int, lines_of(MANY, folder / "models" / "colours", folder / "train")[-1].split())
    assert n == 2400
    assert parts == 10
    assert last - early < 8_000, (early, last)  # kB


def test_one_child_process_serves_call_after_call(trained, files, monkeypatch):
    from fastclf.data.decode import process

    folder, _, _ = trained
    clf = fastclf.load(folder / "models" / "colours", model=untrained())
    started = []
    original = process._Process.__init__
    monkeypatch.setattr(process._Process, "__init__", lambda self: started.append(1) or original(self))
    for _ in range(3):
        clf.predict(files, batch_size=11)
    assert len(started) == 1


def test_two_threads_may_ask_for_the_last_idle_server(trained, files):
    class TakenMeanwhile(list):
        def __len__(self):
            return 1

    folder, _, _ = trained
    clf = fastclf.load(folder / "models" / "colours", model=untrained())
    wanted = clf.predict(files, batch_size=11).outputs
    for key in clf._servers:
        clf._servers[key] = TakenMeanwhile()
    np.testing.assert_array_equal(clf.predict(files, batch_size=11).outputs, wanted)


def test_images_larger_than_a_group_and_smaller_than_the_crop(trained, rng, tmp_path):
    """Buffers grow, batches are cut at any place, and kinds are mixed: the same as the pixels give."""
    _, _, clf = trained
    sizes = [(5, 4), (7001, 5003), (9, 640), (4100, 8200), (33, 32), (1, 1)]
    pixels = [np.kron(rng.integers(0, 256, (1, 1, 3), dtype=np.uint8), np.ones((h, w, 1), np.uint8)) for h, w in sizes]
    names = [tmp_path / f"{i}.{'bmp' if i % 3 == 2 else 'png'}" for i in range(len(sizes))]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray(image).save(name)
    for bs in (1, 4, 64):
        want = clf.predict(pixels, batch_size=bs).outputs
        np.testing.assert_array_equal(clf.predict(names, batch_size=bs).outputs, want)


# Evaluation


def test_evaluation_is_the_learners(trained, files):
    """By folders, by a table, by names and by numbers."""
    folder, learn, clf = trained
    want = learn.evaluate().to_dict() | {"title": None}
    y = learn.data.val_ds.y
    names = [NAMES[i] for i in y]
    table = folder / "labels.csv"
    pd.DataFrame({"file": [Path(name).stem for name in learn.data.val_ds.fnames], "label": names}).assign(
        file=[str(Path(name).relative_to("valid").with_suffix("")) for name in learn.data.val_ds.fnames]
    ).to_csv(table, index=False)
    bs = learn.data.bs
    for found in (
        clf.evaluate(folder / "valid", batch_size=bs),
        clf.evaluate(files, names, batch_size=bs),
        clf.evaluate(files, y, batch_size=bs),
        clf.evaluate(folder, csv=table, folder="valid", suffix=".png", batch_size=bs),
    ):
        assert found.to_dict() | {"title": None} == want
    table.unlink()


def test_evaluation_leaves_out_bad_images_and_names_unknown_classes(trained, with_bad, tmp_path):
    names, _ = with_bad
    _, _, clf = trained
    found = clf.evaluate(names, ["red"] * len(names), on_bad="nan")
    assert (found.n, found.left_out) == (len(names) - 3, 3)
    with pytest.raises(BadImageError, match="empty file"):
        clf.evaluate(names, ["red"] * len(names))
    with pytest.raises(LabelError, match=r"'violet'.*not classes of the model, which knows"):
        clf.evaluate(names[:2], ["violet", "red"])
    with pytest.raises(ValueError, match="one entry per image"):
        clf.evaluate(names[:2], ["red"])
    with pytest.raises(ValueError, match=r"y must be one of .*, or 0 to 2, got 3"):
        clf.evaluate(names[:1], [3])
    with pytest.raises(ValueError, match=r"y must be names of classes or their numbers 0\.\.2, got nan in row 1"):
        clf.evaluate(names[:2], ["red", np.nan])
    with pytest.raises(ValueError, match="pass a folder of class folders"):
        clf.evaluate(names)
    write_images(tmp_path / "other", {"red": 2, "violet": 2})
    with pytest.raises(LabelError, match="'violet' in the folders"):
        clf.evaluate(tmp_path / "other")
    with pytest.raises(LabelError, match="holds the sets"):
        clf.evaluate(trained[0])


def test_evaluation_of_several_labels_and_of_numbers(tmp_path, rng):
    from fastclf.data import truth
    from fastclf.data.sources.labels import Labels

    several = Labels(np.zeros((0, 3)), ["a", "b", "c"], is_multi=True)
    want = [[1, 0, 1], [0, 0, 0]]
    for y in (want, np.array(want), [["c", "a"], []], [{"a", "c"}, ()]):
        np.testing.assert_array_equal(truth.of_list(y, several, 2).y, want)
    numbers = Labels(np.zeros((0, 1)), [], is_reg=True)
    np.testing.assert_array_equal(truth.of_list([1.5, 2], numbers, 2).y, [[1.5], [2]])
    with pytest.raises(ValueError, match=r"1 number\(s\) per image"):
        truth.of_list(rng.random((2, 2)), numbers, 2)


# What can be loaded


def test_what_a_path_may_be(trained, tmp_path, monkeypatch):
    folder, learn, _ = trained
    models = folder / "models"
    (weights,) = models.glob("colours.*.safetensors")
    for path in (models / "colours", models / "colours.json", weights, models, folder):
        assert fastclf.load(path, model=untrained()).classes == NAMES
    monkeypatch.chdir(folder)
    assert fastclf.load("colours", model=untrained()).classes == NAMES
    lonely = shutil.copy(weights, tmp_path)
    with pytest.raises(CheckpointError, match=weights.name):
        fastclf.load(lonely)
    with pytest.raises(FileNotFoundError, match="colours"):
        fastclf.load(models / "colour")
    with pytest.raises(FileNotFoundError, match="one saved model"):
        fastclf.load(tmp_path)
    learn.save("other")
    with pytest.raises(FileNotFoundError, match="colours, other"):
        fastclf.load(models)
    for file in models.glob("other*"):
        file.unlink()


def test_damaged_and_foreign_files_are_named(trained, tmp_path):
    folder, _, _ = trained
    for file in (folder / "models").iterdir():
        shutil.copy(file, tmp_path)
    (weights,), manifest = tmp_path.glob("*.safetensors"), tmp_path / "colours.json"
    whole = weights.read_bytes()
    for bad in (whole[:-1], b"", whole[:100] + b"x" + whole[101:]):
        weights.write_bytes(bad)
        with pytest.raises(CheckpointError, match=weights.name):
            fastclf.load(tmp_path / "colours", model=untrained())
    weights.unlink()
    with pytest.raises(CheckpointError, match=weights.name):
        fastclf.load(tmp_path / "colours", model=untrained())
    for text in ("", "{}", "[1]", '{"format": 1}', manifest.read_text()[:-20], '{"a": ' * 5000):
        manifest.write_text(text)
        with pytest.raises(CheckpointError, match=r"colours\.json"):
            fastclf.load(manifest)


# A learner that loads what was saved with other data


def test_a_learner_warns_of_other_transforms_and_another_order(tmp_path):
    folder = three_colours(tmp_path / "data", n=3, n_valid=2)
    tiny_learner(image_data(folder)).save("small")
    with pytest.warns(UserWarning, match="sz 16 there, 20 here"):
        tiny_learner(image_data(folder, sz=20)).load("small")
    with pytest.warns(UserWarning, match="crop_type 'CENTER' there, 'NO' here"):
        tiny_learner(image_data(folder, crop_type=CropType.NO)).load("small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_learner(image_data(folder)).load("small")


# A machine without DALI


WITHOUT_DALI = """
import sys
import numpy as np, torch
sys.modules["nvidia.dali"] = None
import fastclf
from fastclf.data.decode import process
from test_predictor import untrained

torch.set_num_threads(1)
process._PROGRAM = sys.argv[4]
clf = fastclf.load(sys.argv[1], model=untrained())
for _ in range(2):
    found = clf.predict([sys.argv[2], sys.argv[3]], batch_size=8, on_bad="nan")
pixels = clf.predict([np.full((30, 20, 3), 200, np.uint8), np.full((20, 30, 3), 100, np.uint8)])
np.save(sys.argv[5], found.outputs)
print(len(pixels), list(found.bad.items()))
"""

WORKER_WITHOUT_DALI = """
import runpy, sys
sys.modules["nvidia.dali"] = None
runpy.run_path({program!r}, run_name="__main__")
"""


def test_without_dali_pillow_decodes_and_says_so(trained, tmp_path):
    from fastclf.data.decode import process

    folder, learn, _ = trained
    program, bad, out = tmp_path / "worker.py", tmp_path / "bad.png", tmp_path / "out.npy"
    program.write_text(WORKER_WITHOUT_DALI.format(program=str(process._PROGRAM)))
    bad.write_bytes((folder / learn.data.val_ds.fnames[0]).read_bytes()[:200])
    model = folder / "models" / "colours"
    lines = lines_of(WITHOUT_DALI, model, folder / "valid", bad, program, out)
    assert sum("Pillow decodes" in line for line in lines) == 1
    assert lines[-1] == "2 [(18, 'damaged or truncated PNG')]"
    np.testing.assert_allclose(np.load(out)[:18], learn.predict(), atol=1e-6)


def test_importing_the_package_imports_no_decoder():
    script = "import sys, fastclf; print([m for m in ('nvidia.dali', 'timm', 'pandas') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Temperature, thresholds and "none of these"


@pytest.fixture
def calibrated(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng, n=90, n_valid=60), xtra_fc=[4])
    learn.fit(0.01, 1)
    learn.calibrate()
    learn.save("m")
    return learn, fastclf.load(tmp_path / "models" / "m")


def test_predictions_are_tempered_as_the_learners_are(calibrated):
    learn, clf = calibrated
    assert clf.decision == learn.decision
    assert learn.decision.temperature != 1
    np.testing.assert_array_equal(clf.predict(learn.data.val_ds.rows).outputs, learn.predict())


def test_none_of_these_is_answered_as_often_as_asked(calibrated, tmp_path):
    learn, clf = calibrated
    found = clf.predict(learn.data.val_ds.rows, unknown=0.2, topk=2)
    refused = np.array([label == "none of these" for label in found.labels])
    sure = found.probs.max(1)
    least = np.sort(sure)[11]  # a fifth of the 60 rows; several may be as sure as that one
    assert refused[sure < least - 1e-6].all()
    assert not refused[sure > least + 1e-6].any()
    assert [row[1] == "none of these" for row in found.rows()] == refused.tolist()
    assert "none of these" not in clf.predict(learn.data.val_ds.rows).labels
    learn.decision = type(learn.decision)()
    learn.save("plain")
    with pytest.raises(ValueError, match=r"Call learn.calibrate\(\)"):
        fastclf.load(tmp_path / "models" / "plain").predict(learn.data.val_ds.rows, unknown=0.2)


def test_labels_follow_the_tuned_thresholds(tmp_path, rng):
    x, y = rng.standard_normal((40, 5)).astype(np.float32), rng.integers(0, 2, (40, 3)).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=["a", "b", "c"], bs=8)
    learn = HeadLearner(data, xtra_fc=[4])
    thresholds = learn.tune_thresholds("balanced_accuracy")
    learn.save("m")
    clf = fastclf.load(tmp_path / "models" / "m")
    chosen = learn.predict() > np.array(list(thresholds.values()))
    assert clf.predict(x).labels == [[name for name, yes in zip("abc", row, strict=True) if yes] for row in chosen]
    with pytest.raises(ValueError, match="unknown needs a model that gives one label"):
        clf.predict(x, unknown=0.1)
