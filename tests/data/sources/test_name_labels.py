"""from_name_re and from_name_func."""

import re

import numpy as np
import pytest
from helpers import TFMS

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import LabelError


def by_re(path, pat, **options):
    return ImageClassifierData.from_name_re(path, pat, 4, TFMS, **options)


def by_func(path, func, **options):
    return ImageClassifierData.from_name_func(path, func, 4, TFMS, **options)


@pytest.fixture
def flat(tmp_path, save_image):
    """images/: five each of rain and sun, deeper ones among them; test/: two."""
    for i in range(5):
        save_image(tmp_path / "images" / f"rain{i}.png")
        save_image(tmp_path / "images" / "more" / f"sun{i}.png")
    for i in range(2):
        save_image(tmp_path / "test" / f"{i}.png")
    return tmp_path


def labels_of(data):
    """File name -> class, of train and valid."""
    sets = (data.trn_ds, data.val_ds)
    return {name: data.classes[y] for ds in sets for name, y in zip(ds.fnames, ds.y, strict=True)}


TRUTH = {f"images/rain{i}.png": "rain" for i in range(5)} | {f"images/more/sun{i}.png": "sun" for i in range(5)}


@pytest.mark.parametrize("pat", [r"(rain|sun)", re.compile(r"([A-Z]+)\d", re.IGNORECASE), r"^(?:more/)?(\D+)\d\.png$"])
def test_a_pattern_names_the_class(flat, pat):
    data = by_re(flat, pat, folder="images", test_name="test")
    assert labels_of(data) == TRUTH
    assert np.bincount(data.val_y).tolist() == [1, 1]
    assert list(data.test_ds.fnames) == ["test/0.png", "test/1.png"]
    assert not data.test_ds.labels.known
    x, y = next(iter(data.fix_dl))
    assert x.shape == (4, 3, 16, 16)
    assert y.tolist() == data.trn_y[:4].tolist()


def test_a_function_names_the_class(flat):
    seen = []

    def label(name):
        seen.append(name)
        return "wet" if "rain" in name else "dry"

    data = by_func(flat, label, folder="images")
    assert data.classes == ["dry", "wet"]
    assert sorted(seen) == sorted(name.removeprefix("images/") for name in TRUTH)
    assert labels_of(data) == {name: {"sun": "dry", "rain": "wet"}[kind] for name, kind in TRUTH.items()}


def test_the_whole_folder_but_test(flat):
    assert labels_of(by_re(flat, "(rain|sun)", test_name="test")) == TRUTH
    with pytest.raises(LabelError, match=r"does not match 'test/0.png'. Fix it, move the file"):
        by_re(flat, "(rain|sun)")


@pytest.mark.parametrize("new_path", ["tmp", "small", "."])
def test_smaller_copies_are_no_images_of_their_own(flat, new_path):
    before = by_re(flat, "(rain|sun)", test_name="test")
    before.resize(20, new_path)
    assert labels_of(by_re(flat, "(rain|sun)", test_name="test")) == labels_of(before)


def test_a_test_folder_with_labels(flat, save_image):
    for name in ("sun7.png", "more/rain8.png"):
        save_image(flat / "test" / name)
    for i in range(2):
        (flat / "test" / f"{i}.png").unlink()
    for data in (
        by_re(flat, "(rain|sun)", test_name="test", test_with_labels=True),
        by_func(flat, lambda name: "rain" if "rain" in name else "sun", test_name="test", test_with_labels=True),
    ):
        assert list(data.test_ds.fnames) == ["test/more/rain8.png", "test/sun7.png"]
        assert data.test_ds.y.tolist() == [0, 1]
        assert data.test_ds.labels.known
        assert labels_of(data) == TRUTH
    with pytest.raises(LabelError, match="test: 'sun7' are not classes of the training set, which has 'rain', 'sun'"):
        by_func(
            flat,
            lambda name: "sun7" if "7" in name else name.split("/")[-1][:-5],
            test_name="test",
            test_with_labels=True,
        )
    with pytest.raises(ValueError, match="pass test_name="):
        by_re(flat, "(rain|sun)", folder="images", test_with_labels=True)


def test_none_leaves_an_image_out(flat):
    with pytest.warns(UserWarning, match=r"images: 2 images have no label and are left out, first images/more/sun0"):
        data = by_func(flat, lambda name: None if name[-5] in "01" and "sun" in name else name[:4], folder="images")
    assert len(data.trn_ds) + len(data.val_ds) == 8
    assert data.trn_ds.ignored["images without a label"] == 2


def test_rows_for_validation(flat):
    data = by_re(flat, "(rain|sun)", folder="images", val_idxs=[0, 9])
    assert list(data.val_ds.fnames) == [sorted(TRUTH)[0], sorted(TRUTH)[9]]
    data = by_re(flat, "(rain|sun)", folder="images", groups=lambda name: name[-5], val_pct=0.4)
    digits = [{name[-5] for name in ds.fnames} for ds in (data.trn_ds, data.val_ds)]
    assert not digits[0] & digits[1]
    with pytest.warns(UserWarning, match="groups? ha.* images in train and in valid"):
        data = by_re(flat, "(rain|sun)", folder="images", val_idxs=[0, 9], groups=lambda name: name[-5])
    assert list(data.val_ds.fnames) == [sorted(TRUTH)[0], sorted(TRUTH)[9]]
    with pytest.raises(LabelError, match="'rain' occur in validation rows only"):
        by_re(flat, "(rain|sun)", folder="images", val_idxs=[5, 6, 7, 8, 9])


@pytest.mark.parametrize(("pat", "n"), [("rain|sun", 0), (r"(rain|sun)(\d)", 2)])
def test_the_group_of_a_pattern(flat, pat, n):
    with pytest.raises(ValueError, match=f"pat must have one group in parentheses, the label, got {n}"):
        by_re(flat, pat, folder="images")


@pytest.mark.parametrize("label", ["", "  ", 3, b"cat", ["a"]])
def test_labels_that_are_none(flat, label):
    with pytest.raises(LabelError, match=r"images/.*: its label must be a text that is not empty, got "):
        by_func(flat, lambda name: label if "3" in name else "a", folder="images")


def test_a_single_class_and_no_image(flat):
    with pytest.raises(LabelError, match="at least two classes, got 'a'"):
        by_func(flat, lambda name: "a", folder="images")
    (flat / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images below .*empty"):
        by_re(flat, "(a)", folder="empty")


@pytest.mark.parametrize("argument", ["label_func", "groups"])
def test_a_function_that_fails_is_named_with_the_file(flat, argument):
    functions = {"label_func": lambda name: name.rpartition("/")[2][:3], "groups": lambda name: name}
    functions[argument] = lambda name: {"rain0.png": "rain"}[name]
    with pytest.raises(LabelError, match=rf"{argument} fails for 'more/sun0.png': KeyError: 'more/sun0.png'. Fix"):
        by_func(flat, functions["label_func"], folder="images", groups=functions["groups"])


def test_what_is_no_pattern(flat):
    with pytest.raises(ValueError, match=r"from_name_re: pat must be a regular expression, got '\(rain': missing"):
        by_re(flat, "(rain", folder="images")


def test_texts_of_numpy_are_plain_classes(flat):
    data = by_func(flat, lambda name: np.str_("rain" if "rain" in name else "sun"), folder="images")
    assert [type(name) for name in data.classes] == [str, str]


def test_a_group_that_a_function_does_not_give_is_named_with_the_file(flat):
    def group(name):
        match = re.search("rain([0-9])", name)
        return match and match[1]

    with pytest.raises(LabelError, match=r"groups gives None for 'more/sun0.png'. Return a group of its own"):
        by_re(flat, "(rain|sun)", folder="images", groups=group)


@pytest.mark.parametrize("wrong", ["images", None, 3])
def test_what_is_no_function(flat, wrong):
    with pytest.raises(TypeError, match="label_func must be a function of a file's name, got"):
        by_func(flat, wrong, folder="images")
