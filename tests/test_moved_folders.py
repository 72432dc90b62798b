"""The data's folder moves, goes, or holds other images; the weights were trained on images of another kind."""

import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import HALF, image_data, row_data, three_colours, tiny_body, tiny_learner

from fastclf import ConvLearner, HeadLearner, efficientnet_lite0, load, resnet18, tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.models import archs

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def raise_it(action):
    with pytest.raises(FileNotFoundError, match=r"the data's folder .* is not found: it was moved or removed\. Make"):
        action()


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_folder_that_is_gone_is_an_error_and_not_a_new_folder(tmp_path, on_bad):
    learn = tiny_learner(image_data(three_colours(tmp_path / "a"), on_bad=on_bad), precompute=True)
    (tmp_path / "a").rename(tmp_path / "b")
    learn.fit(0.01, 1)  # on cached rows
    images = learn._data
    actions = {
        "save": lambda: learn.save("m"),
        "load": lambda: learn.load("m"),
        "export": lambda: learn.export("m"),
        "fit with a state": lambda: learn.fit(0.01, 1, state_name="run"),
        "fit that keeps the best": lambda: learn.fit(0.01, 1, best_save_name="best"),
        "fit that keeps cycles": lambda: learn.fit(0.01, 1, cycle_len=1, cycle_save_name="cycle"),
        "precompute": lambda: setattr(learn, "precompute", True),
        "TTA": lambda: learn.TTA(),
        "scan": lambda: images.scan(),
        "resize": lambda: images.resize(20),
        "a batch": lambda: next(iter(images.val_dl)),
    }
    for name, action in actions.items():
        raise_it(action)
        assert not (tmp_path / "a").exists(), name
    learn.precompute = False
    for action in (learn.predict, lambda: learn.fit(0.01, 1), learn.lr_find):
        raise_it(action)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    (tmp_path / "b").rename(tmp_path / "a")
    learn.save("m")
    learn.fit(0.01, 1)


def test_a_folder_for_arrays_may_be_new_but_not_gone(tmp_path, rng):
    HeadLearner(row_data(tmp_path / "new", rng)).save("m")
    assert (tmp_path / "new" / "models" / "m.json").is_file()
    learn = HeadLearner(row_data(tmp_path / "new", rng))
    shutil.rmtree(tmp_path / "new")
    raise_it(lambda: learn.save("m"))
    assert not (tmp_path / "new").exists()


def test_a_name_that_will_not_do_is_an_error_before_the_fit(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng))
    for name in ("best_save_name", "cycle_save_name"):
        with pytest.raises(ValueError, match="must be a plain file name, got 'a/b'"):
            learn.fit(0.01, 1, cycle_len=1, **{name: "a/b"})
    assert learn.sched.lrs == []


# Cached activations of images that were exchanged


def exchange_contents(x, y):
    a, b = x.read_bytes(), y.read_bytes()
    x.write_bytes(b)
    y.write_bytes(a)


def exchange_names(x, y):
    x.rename(x.with_name("t"))
    y.rename(x)
    x.with_name("t").rename(y)


def copy_with_times(x, y):
    shutil.copy2(y, x)


@pytest.mark.parametrize("exchange", [exchange_contents, exchange_names, copy_with_times])
def test_other_images_of_the_same_size_and_time_are_computed(tmp_path, exchange):
    three_colours(tmp_path)
    for file in tmp_path.rglob("*.png"):  # of one size, as bitmaps are
        file.write_bytes(file.read_bytes().ljust(20_000, b"\0"))
        os.utime(file, (1_577_836_800,) * 2)
    before = np.array(tiny_learner(image_data(tmp_path), precompute=True).data.trn_ds.rows)
    x, y = tmp_path / "train/blue/000.png", tmp_path / "train/red/000.png"
    exchange(x, y)
    for file in (x, y):
        os.utime(file, (1_577_836_800,) * 2)
    data = image_data(tmp_path)
    after = np.array(tiny_learner(data, precompute=True).data.trn_ds.rows)
    changed = {data.trn_ds.fnames[row] for row in np.flatnonzero((before != after).any(1))}
    assert changed == {"train/blue/000.png"} | ({"train/red/000.png"} if exchange is not copy_with_times else set())


def test_a_folder_that_is_renamed_keeps_its_activations(tmp_path, capsys):
    tiny_learner(image_data(three_colours(tmp_path / "a")), precompute=True)
    (tmp_path / "a").rename(tmp_path / "b")
    capsys.readouterr()
    tiny_learner(image_data(tmp_path / "b"), precompute=True)
    assert "computing activations" not in capsys.readouterr().out


# Statistics


def data_with(folder, stats):
    return ImageClassifierData.from_paths(folder, 8, tfms_from_stats(stats, 16))


def said(action):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "normalised" in str(w.message)]


@pytest.fixture
def tiny_pretrained(monkeypatch):
    import fastclf.learners.conv_learner as module

    monkeypatch.setattr(module, "build_bodies", lambda arch, pretrained, weights: tiny_body())


@pytest.mark.usefixtures("tiny_pretrained")
def test_weights_trained_on_other_statistics_are_warned_of_once(tmp_path):
    three_colours(tmp_path)
    half, imagenet = data_with(tmp_path, HALF), data_with(tmp_path, IMAGENET)
    (line,) = said(lambda: ConvLearner.pretrained("tiny", imagenet, precompute=True))
    assert "mean (0.5, 0.5, 0.5) and deviation (0.5, 0.5, 0.5), and the data's transforms use mean (0.485," in line
    assert said(lambda: ConvLearner.pretrained("tiny", half)) == []
    assert said(lambda: ConvLearner.pretrained("tiny", imagenet, pretrained=False)) == []
    nearly = ((0.4815, 0.4578, 0.4082), IMAGENET[1])
    learn = ConvLearner.pretrained("tiny", half)
    (line,) = said(lambda: learn.set_data(imagenet))
    assert "0.485" in line
    assert said(lambda: learn.set_data(half)) == []
    learn.save("half")
    learn.set_data = lambda data: None
    with pytest.warns(UserWarning, match="normalised"):
        other = ConvLearner.pretrained("tiny", imagenet)
    other.save("imagenet")  # its head, say, has been trained on what the transforms give
    assert said(lambda: other.load("imagenet")) == []
    assert said(lambda: other.set_data(data_with(tmp_path, nearly))) == []
    (line,) = said(lambda: other.load("half"))
    assert "mean (0.5, 0.5, 0.5)" in line
    assert "mean (0.4815" in line


def test_archs_differ(tmp_path):
    """The two families of the lesson have statistics of their own."""
    assert archs.tfms_from_model(resnet18, 32)[1].mean == IMAGENET[0]
    assert archs.tfms_from_model(efficientnet_lite0, 32)[1].mean == HALF[0]


def test_a_loaded_model_exports_beside_itself_after_chdir(tmp_path, monkeypatch):
    data = ImageClassifierData.from_paths(
        three_colours(tmp_path / "data", n=2, n_valid=1), bs=4, tfms=tfms_from_stats(IMAGENET, 32)
    )
    ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False).save("m")
    monkeypatch.chdir(tmp_path)
    clf = load("data/models/m")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert clf.export() == tmp_path / "data" / "models" / "m.onnx"
    assert clf.export().is_file()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC])
def test_where_nothing_may_be_written_the_error_says_what_to_do(tmp_path, monkeypatch, number):
    folder = three_colours(tmp_path / "data", n=2, n_valid=1)
    data = ImageClassifierData.from_paths(folder, bs=4, tfms=tfms_from_stats(IMAGENET, 32))
    learn = ConvLearner.pretrained(efficientnet_lite0, data, pretrained=False)
    mkdir = Path.mkdir

    def refused(path, *args, **kwargs):
        if path.is_relative_to(folder):
            raise OSError(number, os.strerror(number), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)
    for action in (lambda: learn.export("m"), lambda: data.resize(40)):
        with pytest.raises(
            OSError, match="to where you may write|where you may write: that" if number != errno.ENOSPC else "No space"
        ) as raised:
            action()
        assert raised.value.errno == number
        assert raised.value.filename.startswith(str(folder))
        assert ("may write" in str(raised.value)) == (number != errno.ENOSPC)
