"""data.resize: smaller copies, made once, whole, and taken up again."""

import os

import numpy as np
import pytest
from helpers import TFMS
from PIL import Image

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.image import open_image
from fastclf.data.sources.ignored import CACHE_TAG
from fastclf.errors import BadImageError


@pytest.fixture
def data(tmp_path, save_image):
    for split in ("train", "valid", "test"):
        for name in ("cat", "dog"):
            save_image(tmp_path / split / name / "wide.jpg", (90, 60))
            save_image(tmp_path / split / name / "tall ä.png", (40, 80))
            save_image(tmp_path / split / name / "small.webp", (10, 70))
    return ImageClassifierData.from_paths(tmp_path, 4, TFMS)


def opened(fn):
    with Image.open(fn) as image:
        image.load()
        return image


def copies(path):
    files = [file for file in path.rglob("*") if file.is_file() and file.name != CACHE_TAG]
    return sorted(file.relative_to(path).as_posix() for file in files)


def test_copies(data):
    small = data.resize(30, "tmp")
    root = data.path / "tmp" / "30"
    assert small.path == data.path
    for ds, old in ((small.trn_ds, data.trn_ds), (small.val_ds, data.val_ds), (small.test_ds, data.test_ds)):
        assert ds.path == root
        assert list(ds.fnames) == list(old.fnames)
        np.testing.assert_array_equal(ds.y, old.y)
        sizes = {opened(ds.path / name).size for name in ds.fnames}
        assert sizes == {(45, 30), (30, 60), (10, 70)}
    assert copies(root) == sorted([*data.trn_ds.fnames, *data.val_ds.fnames, *data.test_ds.fnames])
    assert (small.classes, small.tfms, small.bs, small.seed) == (data.classes, data.tfms, data.bs, data.seed)
    np.testing.assert_array_equal(small.trn_dl.order(1), data.trn_dl.order(1))
    assert sum(len(x) for x, _ in small.trn_dl) == 6
    formats = {opened(root / name).format for name in small.trn_ds.fnames}
    assert formats == {"JPEG", "PNG", "WEBP"}


def test_copies_equal_pillows(data):
    small = data.resize(20)
    for name in small.trn_ds.fnames:
        if name.endswith("png"):
            image = opened(data.path / name)
            expected = image.resize((20, 40), Image.Resampling.BILINEAR)
            ours = np.asarray(opened(small.trn_ds.path / name), np.float32)
            inner = np.abs(ours - np.asarray(expected, np.float32))[2:-2, 2:-2]
            assert inner.max() <= 1


def test_second_call_writes_nothing_and_an_interrupted_one_is_taken_up(data):
    root = data.resize(30).trn_ds.path
    before = {name: (root / name).stat().st_mtime_ns for name in copies(root)}
    inodes = {name: (root / name).stat().st_ino for name in copies(root)}
    data.resize(30)
    assert {name: (root / name).stat().st_ino for name in copies(root)} == inodes
    gone, changed, *_ = before
    (root / gone).unlink()
    Image.new("RGB", (100, 100), "red").save(data.path / changed)
    os.utime(data.path / changed, ns=(1, 1))  # even if it looks older
    data.resize(30)
    after = {name: (root / name).stat().st_ino for name in copies(root)}
    assert set(after) == set(inodes)
    assert {name for name in after if after[name] != inodes[name]} >= {changed}
    assert all(after[name] == inodes[name] for name in after if name not in (gone, changed))
    assert opened(root / changed).size == (30, 30)


def test_images_that_changed_places_are_copied_again(data):
    """Files of one archive often have one time of modification."""
    names = [f"train/{label}/small.webp" for label in ("cat", "dog")]
    for name, colour in zip(names, ("red", "blue"), strict=True):
        Image.new("RGB", (60, 60), colour).save(data.path / name, lossless=True)
        os.utime(data.path / name, ns=(1, 1))
    root = data.resize(30).trn_ds.path
    (data.path / names[0]).rename(data.path / "aside")
    (data.path / names[1]).rename(data.path / names[0])
    (data.path / "aside").rename(data.path / names[1])
    data.resize(30)
    assert [np.asarray(opened(root / name))[0, 0].argmax() for name in names] == [2, 0]


def test_a_copy_is_whole_or_not_there(data, monkeypatch):
    saved = []
    original = Image.Image.save

    def save(self, fn, **how):
        saved.append(fn)
        if len(saved) == 3:
            fn.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(self, fn, **how)

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space left"):
        data.resize(30)
    monkeypatch.undo()
    root = data.path / "tmp" / "30"
    for name in copies(root):
        assert name in data.trn_ds.fnames
        opened(root / name)
    assert sum(len(x) for x, _ in data.resize(30).fix_dl) == 6


def test_orientation_is_applied(tmp_path, exif_photos):
    for name in ("a", "b"):
        for photo in exif_photos:
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / name / photo.name).write_bytes(photo.read_bytes())
    small = ImageClassifierData.from_paths(tmp_path, 4, TFMS).resize(100)
    for name in small.trn_ds.fnames:
        image = opened(small.trn_ds.path / name)
        assert image.getexif().get(0x0112, 1) == 1
        assert (image.width > image.height) == ("Landscape" in name)
    kinds = [[open_image(small.trn_ds.path / name) for name in small.trn_ds.fnames if kind in name] for kind in "LP"]
    for images in kinds:
        for image in images[1:]:
            assert np.abs(image - images[0]).mean() < 0.05


def test_bad_images_are_named(data):
    (data.path / "train/dog/wide.jpg").write_bytes(b"<html>")
    with pytest.raises(BadImageError, match=r"train/dog/wide.jpg: not an image but a text or web page"):
        data.resize(30)
    (data.path / "train/dog/wide.jpg").unlink()
    with pytest.raises(BadImageError, match=r"train/dog/wide.jpg: not found"):
        data.resize(30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((15,), "at least the transforms' size 16, got 15"),
        ((30.5,), "targ must"),
        ((30, "/tmp"), "below its path"),
        ((30, "../x"), "below its path"),
    ],
)
def test_arguments(data, arguments, message):
    with pytest.raises(ValueError, match=message):
        data.resize(*arguments)


def test_arrays_are_not_resized(tmp_path):
    x = np.zeros((4, 20, 20, 3), np.uint8)
    data = ImageClassifierData.from_arrays(tmp_path, (x, [0, 1, 0, 1]), (x, [0, 1, 0, 1]), 2, TFMS)
    with pytest.raises(ValueError, match="images in files"):
        data.resize(30)
