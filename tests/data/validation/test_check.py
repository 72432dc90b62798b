"""data.check(): what is odd about some data without being an error."""

import os
import shutil
from functools import partial

import numpy as np
import pytest
from helpers import TFMS, image_data
from odd_images import encoded
from PIL import Image

from fastclf.data.classifier_data import ImageClassifierData

load = partial(image_data, bs=4, augs=())


def test_data_as_it_should_be(tmp_path, save_image):
    for part, n in (("train", 12), ("valid", 3)):
        for name in ("cat", "dog"):
            for i in range(n):
                save_image(tmp_path / part / name / f"{i}.png", (30, 20 + i))
    report = load(tmp_path).check()
    assert report.problems == []
    assert report.n == {"train": 24, "valid": 6}
    assert report.counts == {"cat": (12, 3), "dog": (12, 3)}
    assert report.sides == (20, 30)
    assert str(report).splitlines() == [
        "train 24, valid 6 images; 2 classes",
        "          train     valid",
        "  cat        12         3",
        "  dog        12         3",
        "  shorter sides of 20 to 30 pixels",
        "  left out: nothing",
    ]


def test_leaks(folders):
    shutil.copy(folders / "train/cat/cat3.png", folders / "valid/cat/other name.png")
    shutil.copy(folders / "train/cat/cat3.png", folders / "valid/cat/again.png")
    shutil.copy(folders / "train/dog/dog1.png", folders / "test/9.jpg")
    shutil.copy(folders / "valid/dog/dog1.png", folders / "test/8.jpg")
    report = load(folders).check()
    assert set(report.leaks) == {
        ("train/cat/cat3.png", "valid/cat/other name.png"),
        ("train/cat/cat3.png", "valid/cat/again.png"),
        ("train/dog/dog1.png", "test/9.jpg"),
        ("valid/dog/dog1.png", "test/8.jpg"),
    }
    assert report.relabelled == report.repeated == []
    (line,) = [line for line in report.problems if "byte for byte" in line]
    assert line.startswith("4 images of valid or test are in another set too, byte for byte; first train/")
    assert f"! {line}" in str(report)


def test_one_image_under_two_labels(folders):
    shutil.copy(folders / "train/cat/cat3.png", folders / "train/dog/no cat.png")
    shutil.copy(folders / "train/cat/cat4.png", folders / "valid/dog/no cat.png")
    shutil.copy(folders / "train/cat/cat5.png", folders / "train/cat/same.png")
    report = load(folders).check()
    assert set(report.relabelled) == {
        ("train/cat/cat3.png", "train/dog/no cat.png"),
        ("train/cat/cat4.png", "valid/dog/no cat.png"),
    }
    assert report.leaks == [("train/cat/cat4.png", "valid/dog/no cat.png")]
    assert report.repeated == [("train/cat/cat5.png", "train/cat/same.png")]
    assert "2 images have the same bytes as another and a different label" in str(report)


def test_files_of_one_size_with_other_bytes_are_no_twins(folders):
    """Contents are compared, not sizes."""
    content = bytearray(encoded())
    for i, name in enumerate(("train/cat/a.jpg", "valid/cat/a.jpg")):
        content[-40] = i
        (folders / name).write_bytes(content)
    assert load(folders).check().leaks == []


def test_classes(folders, save_image):
    shutil.rmtree(folders / "valid" / "dog")
    for i in range(10):
        save_image(folders / "train" / "cat" / f"more{i}.png")
    with pytest.warns(UserWarning, match="no image of the class"):
        data = load(folders)
    report = data.check()
    assert report.counts == {"cat": (16, 4), "dog": (6, 0)}
    few, unmeasured = report.problems
    assert few.startswith("1 class has fewer than 10 training images: 'dog' (6). Add images")
    assert unmeasured.startswith("1 class has no image in valid, so nothing is measured there: 'dog'. Move")


def test_classes_that_look_the_same(folders, save_image):
    for part in ("train", "valid"):
        save_image(folders / part / "Cat" / "1.png")
    with pytest.warns(UserWarning, match="look the same"):
        data = load(folders)
    assert data.check().lookalikes == [("Cat", "cat")]
    assert "classes that look the same: 'Cat' and 'cat'" in str(data.check())


def test_very_different_sizes_of_classes(tmp_path):
    x, y = np.zeros((301, 4), np.float32), np.arange(301) == 7
    names = ["common", "rare"]
    with pytest.warns(UserWarning, match="'common' has 300 training rows, 'rare' 1.*class_weights=.auto.") as caught:
        data = ImageClassifierData.from_arrays(tmp_path, (x, y.astype(int)), (x, y.astype(int)), classes=names)
    assert len(caught) == 1
    assert any("very different size" in line for line in data.check().problems)
    for n, said in ((110, True), (109, False)):  # 100 or 99 to 10: no warning, and a line of the report from 10 to 1 on
        ten = (np.arange(n) < 10).astype(int)
        data = ImageClassifierData.from_arrays(tmp_path, (x[:n], ten), (x, y.astype(int)), classes=names)
        assert any('class_weights="auto"' in line for line in data.check().problems) == said


def test_a_class_without_a_row_is_no_division_by_zero(folders):
    (folders / "train" / "cow").mkdir()
    with pytest.warns(UserWarning, match="'cow'"):
        data = load(folders, allow_empty=True)
    assert data.check().counts["cow"] == (0, 0)


def test_shapes_and_odd_files(folders):
    Image.new("RGB", (161, 40)).save(folders / "train/cat/long.png")
    Image.new("RGB", (160, 40)).save(folders / "train/cat/less long.png")
    Image.new("L", (15, 16)).save(folders / "test/small.png")
    (folders / "valid/dog/renamed.jpg").write_bytes(encoded(form="PNG"))
    report = load(folders).check()
    assert report.elongated == ["train/cat/long.png"]
    assert report.small == ["test/small.png"]
    assert report.sides == (15, 40)
    assert report.scan.odd == {"grey": 1, "with the extension of another format": 1}
    shown = str(report)
    for line in (
        "! 1 image is more than four times as long as wide, and cut off at the ends; first train/cat/long.png. Show "
        "them whole: tfms_from_model(..., crop_type=CropType.NO)",
        "  1 image is smaller than the model's input; first test/small.png. They are enlarged",
        "  1 grey",
        "  1 with the extension of another format",
    ):
        assert line in shown.splitlines()


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_bad_images_are_reported_not_raised(folders, on_bad):
    (folders / "train/cat/cat1.png").write_bytes(b"")
    report = load(folders, on_bad=on_bad).check()
    assert report.scan.bad == {"train/cat/cat1.png": "empty file"}
    assert report.scan.decoded == 24
    remedy = "They are left out" if on_bad == "skip" else 'Train without them: on_bad="skip"'
    assert f"! 1 image cannot be decoded; first train/cat/cat1.png: empty file. {remedy}" in str(report)
    assert "train/cat/cat1.png" not in report.small
    assert report.sides[0] > 0
    if on_bad == "skip":
        assert report.counts["cat"] == (5, 4)
        assert report.n["train"] == sum(train for train, _ in report.counts.values())
        assert str(report).splitlines()[-1] == "  left out: 1 images that cannot be decoded"


def test_what_was_left_out(folders, save_image):
    for name in ("train/cat/._cat0.png", "valid/.hidden", "train/dog/Thumbs.db", "test/.DS_Store", "test/notes.txt"):
        (folders / name).write_bytes(b"x")
    save_image(folders / "train" / "stray.png")
    (folders / "train/cat/notes.txt").touch()
    os.mkfifo(folders / "train/cat/pipe.png")
    (folders / "train/cat/link").symlink_to(folders / "test")
    with pytest.warns(UserWarning):  # noqa: PT030 - of strays and of the link
        data = load(folders)
    report = data.check()
    assert report.ignored == {
        "hidden files or folders": 4,
        "links to folders": 1,
        "pipes, sockets or devices": 1,
        "files beside or between the images": 2,
        "images of unknown classes": 0,
        "other files": 1,
    }
    left_out = "  left out: 4 hidden files or folders, 1 links to folders, 1 pipes, sockets or devices, 2 files beside"
    assert str(report).splitlines()[-1].startswith(left_out)


def test_several_labels_and_numbers(tmp_path, save_image):
    for i in range(6):
        save_image(tmp_path / "pics" / f"{i}.png", (20 + i, 20))
    shutil.copy(tmp_path / "pics/0.png", tmp_path / "pics/5.png")

    def report(labels, **options):
        text = "\n".join(["id,label", *(f"{i},{label}" for i, label in enumerate(labels))])
        (tmp_path / "labels.csv").write_text(text)
        table = tmp_path / "labels.csv"
        data = ImageClassifierData.from_csv(tmp_path, "pics", table, 4, TFMS, suffix=".png", val_idxs=[4, 5], **options)
        return data.check()

    several = report(["a b", "a", "b", "a", "a b", "b"])
    assert several.counts == {"a": (3, 1), "b": (2, 2)}
    assert several.leaks == several.relabelled == [("pics/0.png", "pics/5.png")]
    numbers = report(["1", "2", "3", "4", "5", "1"], continuous=True)
    assert numbers.counts == {}
    assert numbers.leaks == [("pics/0.png", "pics/5.png")]
    assert numbers.relabelled == []


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_arrays(tmp_path, rng, kind):
    x = rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8) if kind == "images" else rng.random((8, 5), np.float32)
    vx = x[[3, 0]].copy()
    vx[0] = vx[0] // 2
    data = ImageClassifierData.from_arrays(tmp_path, (x, [0, 1] * 4), (vx, [0, 1]), 4, TFMS)
    report = data.check()
    assert report.leaks == report.relabelled == [("train row 0", "valid row 1")]
    assert report.sides is None
