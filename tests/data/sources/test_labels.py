"""Classes that are given by name or by place, and their order."""

import tarfile
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TFMS
from PIL import Image

from fastclf import HeadLearner, ImageClassifierData, load
from fastclf.data import truth
from fastclf.data.sources.labels import Labels, class_number


def numerals(rng):
    """Names of classes that are numbers: in the order of folders, of tables, or any."""
    names = [str(i) for i in rng.permutation(13)[: rng.integers(2, 12)]]
    return [sorted(names), sorted(names, key=int), names][rng.integers(3)]


@pytest.mark.parametrize("as_number", [int, np.int64, float, torch.tensor])
@pytest.mark.parametrize("_", range(20))
def test_a_number_that_is_the_name_of_another_class_is_no_place(rng, _, as_number):
    classes = numerals(rng)
    for name in classes:
        assert class_number(name, classes, "cls") == classes.index(name)
    for number in range(14):
        given = as_number(number) if number < len(classes) else number
        place_of_name = classes.index(str(number)) if str(number) in classes else None
        if number < len(classes) and place_of_name in (None, number):
            assert class_number(given, classes, "cls") == number
        else:
            says = (
                "must be one of" if place_of_name is None else rf"{number} is the name of a class, and (no|the) place"
            )
            with pytest.raises(ValueError, match=f"^cls.* {says}" if place_of_name is None else says):
                class_number(given, classes, "cls")


@pytest.mark.parametrize("as_type", [list, np.array, lambda y: [np.int64(i) for i in y]])
def test_labels_to_measure_by(as_type):
    """`from_df` makes classes '1', '2' and '3' of whole numbers, which are not their places."""
    like = Labels(np.zeros(1, np.int64), ["1", "2", "3"])
    with pytest.raises(
        ValueError, match=r"evaluate: y: \d is the name of a class, and the place of '\d'. Pass names as"
    ):
        truth.of_list(as_type([1, 2, 1]), like, 3)
    assert truth.of_list(["1", "2", "1"], like, 3).y.tolist() == [0, 1, 0]
    assert truth.of_list([b"1", b"2", b"1"], like, 3).y.tolist() == [0, 1, 0]
    like = Labels(np.zeros(1, np.int64), ["0", "1", "2"])
    assert truth.of_list(as_type([1, 2, 1]), like, 3).y.tolist() == [1, 2, 1]


@pytest.mark.parametrize("as_type", [str, str.encode])
def test_lists_of_names_to_measure_by(as_type):
    like = Labels(np.zeros((1, 3), np.float32), ["a", "b", "ö"], is_multi=True)
    rows = [[as_type(name) for name in row] for row in ("a", "", "öb")]
    assert truth.of_list(rows, like, 3).y.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match=r"evaluate: y must have 3 number\(s\) per image"):
        truth.of_list([[0], [1, 2], []], like, 3)


@pytest.mark.parametrize("kind", ["numbers", "zeros", "names"])
@pytest.mark.parametrize("_", range(3))
def test_classes_are_in_one_order_wherever_they_come_from(tmp_path, rng, kind, _):
    """Numbers by their value; any other text, "01" too, by code point."""
    values = rng.permutation(30)[:12].tolist()
    names = [f"{value:02d}" if kind == "zeros" else f"{value}" for value in values]
    names[0] = "5a" if kind == "names" else names[0]
    labels = [name for name in names for _ in range(4)]
    files = [f"{name}_{i}.png" for i, name in enumerate(labels)]
    for file, name in zip(files, labels, strict=True):
        for place in (tmp_path / "tree" / "train" / name / file, tmp_path / "flat" / file):
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(place)
    x, table = np.zeros((len(labels), 3), np.float32), pd.DataFrame({"file": files, "label": labels})
    one_hot = pd.DataFrame({"file": files} | {name: [int(name == label) for label in labels] for name in names})
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for file, name in zip(files, labels, strict=True):
            archive.add(tmp_path / "flat" / file, file)
            (tmp_path / "cls").write_text(name)
            archive.add(tmp_path / "cls", f"{file[:-4]}.cls")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes without a row for validation
        made = [
            ImageClassifierData.from_paths(tmp_path / "tree", tfms=TFMS),
            ImageClassifierData.from_paths(tmp_path / "tree" / "train", trn_name=".", tfms=TFMS),
            ImageClassifierData.from_name_re(tmp_path / "flat", r"^(.+)_", tfms=TFMS),
            ImageClassifierData.from_name_func(tmp_path / "flat", lambda name: name.split("_")[0], tfms=TFMS),
            ImageClassifierData.from_df(tmp_path, "flat", table, tfms=TFMS),
            ImageClassifierData.from_df(tmp_path, "flat", one_hot, tfms=TFMS),
            ImageClassifierData.from_arrays(tmp_path, (x, labels), (x, labels)),
            ImageClassifierData.from_shards(tmp_path / "s.tar", 8, TFMS),
        ]
    expected = sorted(names, key=int) if kind == "numbers" else sorted(names)
    for data in made:
        assert data.classes == expected
    for data in made[:6]:
        assert [data.classes[i] for i in data.trn_y] == [
            name.split("/")[-1].split("_")[0] for name in data.trn_ds.fnames
        ]


def test_a_model_keeps_the_order_that_it_was_saved_with(tmp_path, rng):
    x, y = rng.normal(size=(48, 5)).astype(np.float32), [str(i % 12) for i in range(48)]
    by_text, by_value = sorted(set(y)), [str(i) for i in range(12)]
    older, newer = (
        HeadLearner(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=16, classes=classes))
        for classes in (by_text, None)
    )
    assert (older.data.classes, newer.data.classes) == (by_text, by_value)
    older.fit(1e-2, 1)
    older.save("model")
    with pytest.warns(UserWarning, match="its classes are in another order"):
        newer.load("model")
    found = older.predict()[:, [by_text.index(name) for name in by_value]]
    np.testing.assert_allclose(newer.predict(), found, rtol=1e-6)
    clf = load(tmp_path / "models" / "model")
    assert clf.classes == by_text
    assert clf.predict(x).labels == [by_value[i] for i in newer.predict().argmax(1)]
