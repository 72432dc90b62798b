"""The names of the sets: the same for folders, splits, columns and cells of tables, and files, whatever their case."""

import re

import numpy as np
import pytest
from helpers import TFMS, write_images

from fastclf import ImageClassifierData, LabelError
from fastclf.commands.sources import files_by_set
from fastclf.data import truth
from fastclf.data.sources.hf import splits_of
from fastclf.data.sources.set_names import set_asked, set_named, set_of_file

NAMES = {
    "train": ["train", "training", "trn", "tr"],
    "valid": ["valid", "validation", "val", "dev", "eval"],
    "test": ["test", "testing", "tst"],
}
FORMS = [str.lower, str.upper, str.capitalize, "{}_set".format, "{}images".format]
CASES = [(part, form(name)) for part, names in NAMES.items() for name in names for form in FORMS]
NO_SETS = ["", "trains", "valley", "device", "evaluation", "tests2", "tree", "set", "images", "trainer", "a_train", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    sets = {f"{part}/{name}": 4 for part in ("train", "valid") for name in "ab"}
    return write_images(tmp_path_factory.mktemp("sets"), sets | {"test": 3})


@pytest.mark.parametrize(("part", "name"), CASES)
def test_folders_tables_and_what_evaluate_is_given(root, part, name):
    folder = root / part
    other = folder if name == part else folder.rename(root / name)
    try:
        data = ImageClassifierData.from_paths(root, 4, TFMS)
        assert [len(ds) for ds in (data.trn_ds, data.val_ds, data.test_ds)] == [8, 8, 3]
        with pytest.raises(LabelError, match="holds the sets .*" + re.escape(repr(name))):
            truth.of_folder(root, ["cat", "dog"])
    finally:
        other.rename(folder)
    files = sorted(file.relative_to(root).as_posix() for file in root.glob("*/[ab]/*.png"))
    cells = [
        {**dict.fromkeys(NAMES, ""), "train": "train", part: name}[part if i in (0, 4) else "train"] for i in range(16)
    ]
    rows = [f"{file},{file.split('/')[1]},{cell}" for file, cell in zip(files, cells, strict=True)]
    (root / "t.csv").write_text("\n".join(["file,label,where", *rows]))
    data = ImageClassifierData.from_csv(root, ".", root / "t.csv", 4, TFMS, split_col="where")
    (ds,) = [ds for ds in (data.trn_ds, data.val_ds, data.test_ds) if ds is not None and files[0] in [*ds.fnames]]
    assert ds is {"train": ds, "valid": data.val_ds, "test": data.test_ds}[part]


@pytest.mark.parametrize(("part", "name"), CASES)
def test_splits_and_files(tmp_path, part, name):
    datasets = pytest.importorskip("datasets")
    names = {one: one for one in NAMES} | {part: name}
    rows = datasets.Dataset.from_dict({"x": [1]})
    _, found = splits_of(datasets.DatasetDict(dict.fromkeys(names.values(), rows)), None, None)
    assert {one: split for one, (split, _) in found.items()} == names
    for one in names.values():
        (tmp_path / f"{one}-0.tar").touch()
    assert files_by_set(tmp_path) == {one: [tmp_path / f"{names[one]}-0.tar"] for one in NAMES}


@pytest.mark.parametrize("name", NO_SETS)
def test_other_names_mean_no_set(name):
    assert set_named(name) is None
    assert set_of_file(f"{name}.tar") is None or name == "tests2"
    assert set_asked(f"is_{name}") is None


@pytest.mark.parametrize(("title", "meant"), [("is_dev", 1), ("In Training", 0), ("isTest", 2), ("valid_set", 1)])
def test_a_column_of_0_and_1(root, title, meant):
    files = sorted(file.relative_to(root).as_posix() for file in root.glob("*/[ab]/*.png"))
    yes = np.arange(16) % 4 == 0
    rows = [f"{file},{file.split('/')[1]},{int(one)}" for file, one in zip(files, yes, strict=True)]
    (root / "t.csv").write_text("\n".join([f"file,label,{title}", *rows]))
    data = ImageClassifierData.from_csv(root, ".", root / "t.csv", 4, TFMS, split_col=title)
    ds = (data.trn_ds, data.val_ds, data.test_ds)[meant]
    assert sorted(ds.fnames) == [file for file, one in zip(files, yes, strict=True) if one]


@pytest.mark.parametrize("title", ["tr", "Dev", "eval", "trn", "tst", "testing"])
def test_a_less_usual_name_alone_is_no_column_of_sets(title):
    assert set_asked(title) is None
    assert set_asked(f"is_{title}") is not None


def test_a_folder_eval_beside_val_is_left_alone(tmp_path):
    write_images(tmp_path, {f"{part}/{name}": 4 for part in ("train", "val", "eval") for name in "ab"})
    assert ImageClassifierData.from_paths(tmp_path, 4, TFMS).val_ds.fnames[0].startswith("val/")


def test_the_most_usual_of_several_splits():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": [1]})
    _, found = splits_of(datasets.DatasetDict(dict.fromkeys(["dev", "validation", "TRAIN", "train"], rows)), None, None)
    assert {one: split for one, (split, _) in found.items()} == {"train": "train", "valid": "validation"}


def test_a_class_that_is_called_as_a_set_is_none(tmp_path):
    write_images(tmp_path, {"de": 5, "tr": 5})
    with pytest.raises(FileNotFoundError, match=r"images in the folders 'de', 'tr'\. .* trn_name='.'"):
        ImageClassifierData.from_paths(tmp_path, 4, TFMS)
    assert ImageClassifierData.from_paths(tmp_path, 4, TFMS, ".").classes == ["de", "tr"]


def test_a_training_folder_without_classes_is_named(tmp_path):
    write_images(tmp_path, {"training": 5, "val": 5})
    with pytest.raises(FileNotFoundError, match="training holds 5 images in no folder of a class"):
        ImageClassifierData.from_paths(tmp_path, 4, TFMS)
