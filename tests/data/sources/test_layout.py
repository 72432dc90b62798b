"""Sets under other names, deeper, flat or without train/; what systems and programs leave beside images."""

import re
import shutil
import warnings

import numpy as np
import pytest
from helpers import TFMS

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.layout import flat
from fastclf.errors import LabelError
from fastclf.report import command_line

OTHER_NAMES = {"valid": ["val", "Validation", "dev"], "train": ["Training", "TRAIN"], "test": ["Testing", "Test"]}
LEFTOVERS = [
    *("__MACOSX", "@eaDir", ".ipynb_checkpoints", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found", "LOST.DIR"),
    *(
        ".thumbnails",
        ".Trash-1000",
        ".Trashes",
        "System Volume Information",
        "__pycache__",
        ".git",
        ".AppleDouble",
        "@tmp",
    ),
]


def load(path, **options):
    return ImageClassifierData.from_paths(path, 4, TFMS, **options)


def advised(message, path):
    """The data that a call in a message gives, or that the arguments in it give."""
    if call := re.search(r"ImageClassifierData\.from_name_re\(.*?tfms=tfms\)", str(message)):
        return eval(
            call[0].replace("tfms=", "bs=4, tfms="),
            {"ImageClassifierData": ImageClassifierData, "path": path, "tfms": TFMS},
        )
    if name := re.search(r"trn_name='(.*?)'", str(message)):
        return load(path, trn_name=name[1])
    return load(re.search(r"pass the path '(.*?)'", str(message))[1])


@pytest.mark.parametrize(
    ("usual", "other"),
    [(usual, other) for usual, others in OTHER_NAMES.items() for other in others],
)
def test_other_usual_names_are_taken_and_said(folders, capsys, usual, other):
    before = load(folders)
    (folders / usual).rename(folders / other)
    data = load(folders)
    assert f"no folder {usual}: '{other}' is taken for it" in capsys.readouterr().out
    for one, ds in ((before.trn_ds, data.trn_ds), (before.val_ds, data.val_ds), (before.test_ds, data.test_ds)):
        assert [name.replace(f"{other}/", f"{usual}/", 1) for name in ds.fnames] == list(one.fnames)
        assert ds.y.tolist() == one.y.tolist()


def test_a_name_as_it_should_be_goes_first(folders, capsys):
    shutil.copytree(folders / "valid", folders / "val")
    assert all(name.startswith("valid/") for name in load(folders).val_ds.fnames)
    assert capsys.readouterr().out == ""
    (folders / "valid").rename(folders / "dev")
    with pytest.raises(FileNotFoundError, match=r"no folder .*valid, but 'dev', 'val'. Pass val_name="):
        load(folders)
    assert all(name.startswith("dev/") for name in load(folders, val_name="dev").val_ds.fnames)


def test_a_folder_of_images_is_no_validation_set_without_classes(folders, save_image, capsys):
    shutil.rmtree(folders / "valid")
    save_image(folders / "val" / "1.png")
    assert all(name.startswith("train/") for name in load(folders).val_ds.fnames)
    assert "no folder valid: 2 of 12" in capsys.readouterr().out


@pytest.mark.parametrize("name", LEFTOVERS)
def test_what_systems_and_programs_leave_is_never_a_class_or_an_image(folders, save_image, name):
    """Wherever it lies, also when the classes are in the data's own folder."""
    before = [list(ds.fnames) for ds in (load(folders).trn_ds, load(folders).val_ds, load(folders).test_ds)]
    for place in (folders, folders / "train", folders / "train" / "cat", folders / "valid", folders / "test"):
        save_image(place / name / "1.png")
        save_image(place / name / "cat" / "2.png")
        for file in (".DS_Store", "Thumbs.db", "desktop.ini", "._1.png", "ehthumbs.db", "Icon\r"):
            (place / file).write_bytes(b"\0")
    data = load(folders)
    assert [list(ds.fnames) for ds in (data.trn_ds, data.val_ds, data.test_ds)] == before
    assert data.classes == ["cat", "dog"]
    assert sum(ds.ignored["hidden files or folders"] for ds in (data.trn_ds, data.val_ds, data.test_ds)) == 7 * 4
    for part in ("valid", "test"):
        shutil.rmtree(folders / part)
    for part in ("cat", "dog"):
        (folders / "train" / part).rename(folders / part)
    shutil.rmtree(folders / "train")
    data = load(folders, trn_name=".")
    assert data.classes == ["cat", "dog"]
    assert sorted([*data.trn_ds.fnames, *data.val_ds.fnames]) == [name.removeprefix("train/") for name in before[0]]


def test_a_hidden_folder_that_may_be_a_class_is_named(folders, save_image):
    for part in ("train", "valid"):
        save_image(folders / part / ".net" / "1.png")
    with pytest.warns(UserWarning, match=r"(train|valid): the folder\(s\) '\.net' hold images and are left out"):
        assert load(folders).classes == ["cat", "dog"]


@pytest.fixture
def bare(folders):
    """The classes in the data's own folder, beside test."""
    for name in ("cat", "dog"):
        (folders / "train" / name).rename(folders / name)
    (folders / "train").rmdir()
    return folders


def test_classes_in_the_datas_own_folder(bare, save_image):
    """The other sets, the library's files and folders without images are no classes."""
    for name in ("tmp/340/train/cat/1.png", "models/sub/1.png", "tmp/activations/x/1.png"):
        save_image(bare / name)
    data = load(bare, trn_name=".")
    assert data.classes == ["cat", "dog"]
    assert (len(data.trn_ds), len(data.val_ds), len(data.test_ds)) == (12, 8, 5)
    (bare / "docs").mkdir()
    with pytest.warns(UserWarning, match="'docs' hold no image, and are not classes"):
        assert load(bare, trn_name=".").classes == ["cat", "dog"]
    with (
        pytest.warns(UserWarning, match="'docs' hold no image; the model cannot learn"),
        pytest.warns(UserWarning, match="no image of the class.*'docs'"),
    ):
        assert load(bare, trn_name=".", allow_empty=True).classes == ["cat", "docs", "dog"]


def test_a_class_that_is_called_like_a_folder_of_the_library_is_named(bare, save_image):
    save_image(bare / "models" / "1.png")
    with pytest.warns(UserWarning, match="'models' hold images and are left out: hidden, or kept for fastclf's own"):
        assert load(bare, trn_name=".").classes == ["cat", "dog"]


@pytest.mark.parametrize("new_path", ["tmp", "small", "cat/small", "."])
def test_what_the_library_writes_is_no_class_later(bare, new_path):
    shutil.rmtree(bare / "valid")
    first = load(bare, trn_name=".")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'small' hold no image, and are not classes")
        for _ in range(2):
            copies = load(bare, trn_name=".").resize(20, new_path)
            data = load(bare, trn_name=".")
            for one, other in ((data.trn_ds, first.trn_ds), (data.val_ds, first.val_ds)):
                assert list(one.fnames) == list(other.fnames)
    assert sum(len(x) for x, _ in copies.fix_dl) == len(first.trn_ds)


def test_a_set_within_another(folders):
    (folders / "test").rename(folders / "train" / "test")
    (folders / "valid").rename(folders / "train" / "held out")
    data = load(folders, test_name="train/test", val_name="train/held out")
    assert data.classes == ["cat", "dog"]
    assert (len(data.trn_ds), len(data.val_ds), len(data.test_ds)) == (12, 8, 5)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_folder_around_the_sets(tmp_path_factory, folders, depth):
    outer = tmp_path_factory.mktemp("outer")
    inner = outer.joinpath(*["data"] * depth)
    shutil.copytree(folders, inner)
    with pytest.raises(FileNotFoundError, match="The sets lie deeper") as error:
        load(outer)
    assert len(advised(error.value, outer).trn_ds) == 12


def test_sets_below_the_classes(tmp_path, save_image):
    for name in ("Cat", "Dog"):
        for part in ("train", "val"):
            save_image(tmp_path / name / part / "0.png")
    with pytest.raises(FileNotFoundError, match=r"'Cat', 'Dog' each hold 'train' with.*move Cat/train to train/Cat"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train", "Training"])
def test_the_folder_of_the_training_set_itself(folders, name):
    if name != "train":
        (folders / "train").rename(folders / name)
    with pytest.raises(FileNotFoundError, match="It looks like the training set's own folder") as error:
        load(folders / name)
    assert len(advised(error.value, folders).trn_ds) == 12


@pytest.mark.parametrize("place", [".", "PetImages", "archive/images"])
def test_classes_without_train_are_named_with_the_call(tmp_path, save_image, place):
    for name in ("Cat", "Dog"):
        for i in range(5):
            save_image(tmp_path / place / name / f"{i}.png")
    with pytest.raises(FileNotFoundError, match=r"in the folders 'Cat', 'Dog'.*val_pct=") as error:
        load(tmp_path)
    data = advised(error.value, tmp_path)
    assert data.classes == ["Cat", "Dog"]
    assert (len(data.trn_ds), len(data.val_ds)) == (8, 2)


def test_sets_under_names_of_their_own(tmp_path, save_image):
    for part in ("seg_pred", "seg_test", "seg_train"):
        for name in ("sea", "ice"):
            for i in range(5):
                save_image(tmp_path / part / part / name / f"{i}.png")
    with pytest.raises(FileNotFoundError, match="trn_name='seg_train/seg_train'") as error:
        load(tmp_path)
    assert advised(error.value, tmp_path).classes == ["ice", "sea"]


NAMES = {
    "cloudy1.jpg": "cloudy",
    "great_dane_012.png": "great_dane",
    "cat.0.jpg": "cat",
    "n01440764_10026.JPEG": "n01440764",
    "dog (3).jpg": "dog",
    "Ä b-7.bmp": "Ä b",
}


@pytest.mark.parametrize("place", [".", "train", "train/images", "images/all"])
@pytest.mark.parametrize(("example", "label"), NAMES.items())
def test_flat_folders_are_named_with_the_call_that_reads_them(tmp_path, place, example, label, rng):
    """Whatever stands between class and number; the call in the message gives the classes."""
    between, extension = re.fullmatch(re.escape(label) + r"(.*?)\d+(.*)", example).groups()
    labels = sorted([label, "other", "x y"])
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for name in labels:
        for i in range(10):
            (tmp_path / place / f"{name}{between}{rng.integers(10)}{i}{extension}").touch()
    with pytest.raises((FileNotFoundError, LabelError)) as error:
        load(tmp_path)
    data = advised(error.value, tmp_path)
    assert data.classes == labels
    assert np.bincount(np.concatenate([data.trn_y, data.val_y])).tolist() == [10, 10, 10]


def test_flat_names_that_tell_nothing(tmp_path):
    message = flat(tmp_path, "images", [f"IMG_{i}.jpg" for i in range(1121)])
    assert "holds 1,121 images in no folder of a class, such as 'IMG_0.jpg', 'IMG_1.jpg'" in message
    assert "folder='images', tfms=tfms)" in message
    assert "which gives" not in message
    assert (
        f"Where a table does: ImageClassifierData.from_csv(path, 'images', '{tmp_path}/labels.csv', tfms=tfms)"
        in message
    )


def test_flat_folders_beside_a_table(tmp_path, save_image):
    for i in range(8):
        save_image(tmp_path / "train" / f"{i:x}.png")
    (tmp_path / "tags.csv").write_text("id,tag\n" + "".join(f"{i:x}.png,{'ab'[i % 2]}\n" for i in range(8)))
    with pytest.raises(FileNotFoundError, match=r"Where 'tags\.csv' does: ") as error:
        load(tmp_path)
    call = re.search(r"ImageClassifierData\.from_csv\(.*?tfms=tfms\)", str(error.value))[0]
    names = {"ImageClassifierData": ImageClassifierData, "path": tmp_path, "tfms": TFMS}
    assert eval(call.replace("tfms=", "bs=4, tfms="), names).classes == ["a", "b"]


def test_a_single_folder_around_the_classes(folders, save_image):
    (folders / "train").rename(folders / "inner")
    (folders / "train").mkdir()
    (folders / "inner").rename(folders / "train" / "train")
    (folders / "train" / "0.txt").touch()
    save_image(folders / "train" / "0.png")
    with (
        pytest.warns(UserWarning, match=r"2 file\(s\) are ignored"),
        pytest.raises(LabelError, match=r"got 'train'.*holds the folders 'cat', 'dog'") as error,
    ):
        load(folders)
    assert advised(error.value, folders).classes == ["cat", "dog"]


def test_nothing_that_could_be_meant(tmp_path):
    (tmp_path / "docs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*train\. .*holds the folders 'docs' and no images"):
        load(tmp_path)
    (tmp_path / "docs").rmdir()
    with pytest.raises(FileNotFoundError, match="holds no folders and no images"):
        load(tmp_path)


def test_test_folders_with_labels(folders, save_image, capsys):
    shutil.rmtree(folders / "test")
    for name, n in (("dog", 3), ("cat", 2)):
        for i in range(n):
            save_image(folders / "test" / name / f"{i}.png")
    data = load(folders)
    assert "test has folders of the classes, which are not used: test_with_labels=True" in capsys.readouterr().out
    assert data.test_ds.y.tolist() == [0] * 5
    assert not data.test_ds.labels.known
    data = load(folders, test_with_labels=True)
    assert capsys.readouterr().out == ""
    assert data.test_ds.labels.known
    assert data.test_ds.y.tolist() == [0, 0, 1, 1, 1]
    assert np.concatenate([y for _, y in data.test_dl]).tolist() == [0, 0, 1, 1, 1]
    assert np.concatenate([y for _, y in data.test_aug_dl]).tolist() == [0, 0, 1, 1, 1]
    save_image(folders / "test" / "cow" / "1.png")
    with pytest.raises(LabelError, match="test: 'cow' are not classes of the training set"):
        load(folders, test_with_labels=True)
    shutil.rmtree(folders / "test")
    with pytest.raises(FileNotFoundError, match=r"test_with_labels=True needs a folder .*test/<class>"):
        load(folders, test_with_labels=True)


def test_groups_are_not_divided(folders, save_image):
    shutil.rmtree(folders / "valid")
    shutil.rmtree(folders / "train")
    for i in range(40):
        save_image(folders / "train" / ("cat", "dog")[i % 2] / f"p{i // 4}_{i}.png")
    data = load(folders, groups=lambda name: name.split("/")[1].split("_")[0], val_pct=0.25)
    people = [{name.split("/")[2].split("_")[0] for name in ds.fnames} for ds in (data.trn_ds, data.val_ds)]
    assert not people[0] & people[1]
    assert 6 <= len(data.val_ds) <= 12
    assert set(data.val_y.tolist()) == {0, 1}
    save_image(folders / "valid" / "cat" / "p7_1000.png")
    save_image(folders / "valid" / "dog" / "p99_1000.png")
    with pytest.warns(UserWarning, match="1 group has images in train and in valid, such as .*p7_.* and .*p7_1000.png"):
        data = load(folders, groups=lambda name: name.split("/")[1].split("_")[0])
    assert len(set(data.trn_ds.groups.tolist())) == 10
    assert len(set(data.val_ds.groups.tolist()) - set(data.trn_ds.groups.tolist())) == 1


@pytest.mark.parametrize("place", ["training_set/training_set", "training_set/cats and dogs", "x/y"])
def test_what_to_type_names_the_whole_path(tmp_path, save_image, place):
    """As of archives in which a set lies in a folder of its own."""
    for name in ("cat", "dog"):
        save_image(tmp_path / "d" / place / name / "1.png")
    with command_line(), pytest.raises((FileNotFoundError, LabelError)) as raised:
        load(tmp_path / "d")
    there = re.search(r"the folder '(.*?)' as DATA|pass the path '(.*?)'", str(raised.value))
    assert (tmp_path / "d" / place).samefile(there[1] or there[2])


@pytest.mark.parametrize("name", ["train", "valid", ".", "", "train/", "./valid"])
def test_a_test_set_is_a_folder_of_its_own(folders, name):
    with pytest.raises(ValueError, match=r"test_name=.* is the folder of another set"):
        load(folders, test_name=name)
    with pytest.raises(ValueError, match=r"test_name=.* is the folder of another set"):
        load(folders / "train", trn_name=".", test_name=".")


@pytest.mark.parametrize("name", ["test", "Testing"])
@pytest.mark.parametrize("other", ["trn_name", "val_name"])
def test_a_folder_test_may_be_another_set(folders, capsys, other, name):
    """As in many archives: train/ and test/ with classes, and val_name='test'."""
    (folders / ("train" if other == "trn_name" else "valid")).rename(folders / "other")
    for file in (folders / "test").iterdir():
        file.unlink()
    (folders / "test").rmdir()
    (folders / "other").rename(folders / name)
    data = load(folders, **{other: name})
    assert data.test_ds is None
    assert len(data.trn_ds if other == "trn_name" else data.val_ds) == (12 if other == "trn_name" else 8)
    assert f"{name} is another set's" in capsys.readouterr().out
