"""from_paths: classes from folders, mapped by name, and what must not go unnoticed."""

import os
import shutil
import unicodedata

import numpy as np
import pytest

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.transforms import tfms_from_stats
from fastclf.errors import BadImageError, DataError, LabelError

TFMS = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)


def load(path, **options):
    return ImageClassifierData.from_paths(path, 4, TFMS, **options)


def test_train_valid_test(folders):
    data = load(folders)
    assert data.path == folders
    assert data.classes == ["cat", "dog"]
    assert data.c == 2
    assert (data.sz, data.bs, data.tfms) == (16, 4, TFMS)
    assert not data.is_multi
    assert not data.is_reg
    assert data.trn_y.tolist() == [0] * 6 + [1] * 6
    assert data.val_y.tolist() == [0] * 4 + [1] * 4
    assert data.trn_y.dtype == np.int64
    assert list(data.val_ds.fnames) == [f"valid/{name}/{name}{i}.png" for name in ("cat", "dog") for i in range(4)]
    assert list(data.test_ds.fnames) == [f"test/{i}.jpg" for i in range(5)]
    assert data.test_ds.y.tolist() == [0] * 5
    assert len(data.trn_ds) == 12


def test_other_names(folders):
    for old, new in (("train", "a"), ("valid", "b"), ("test", "c")):
        (folders / old).rename(folders / new)
    data = load(folders, trn_name="a", val_name="b", test_name="c")
    assert len(data.test_ds) == 5
    assert load(folders, trn_name="a", val_name="b").test_ds is None
    for names in ({"val_name": "x"}, {"val_name": "b", "test_name": "x"}):
        with pytest.raises(FileNotFoundError, match=f"no folder {folders}/x"):
            load(folders, trn_name="a", **names)


def test_names_are_sorted_by_code_point(folders, save_picture):
    for name in ("B.png", "a.png", "10.png", "9.png", "ä.png", "_.png", "x y.png", "🐱.png"):
        save_picture(folders / "train" / "cat" / name)
    names = list(load(folders).trn_ds.fnames)
    assert names == sorted(names)
    assert next(iter(load(folders).fix_dl))[0].shape[0] == 4
    assert sum(len(x) for x, _ in load(folders).fix_dl) == 20


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names(folders, save_picture, form):
    name = unicodedata.normalize(form, "größe.png")
    save_picture(folders / "train" / "cat" / name)
    data = load(folders)
    assert f"train/cat/{name}" in data.trn_ds.fnames
    assert sum(len(x) for x, _ in data.fix_dl) == 13


def test_without_valid_the_split_is_stratified(folders, capsys):
    shutil.rmtree(folders / "valid")
    data = load(folders, val_pct=0.34, seed=5)
    assert "4 of 12 pictures of train" in capsys.readouterr().out
    assert np.bincount(data.val_y).tolist() == [2, 2]
    assert len(data.trn_ds) == 8
    assert not set(data.trn_ds.fnames) & set(data.val_ds.fnames)
    assert list(load(folders, val_pct=0.34, seed=5).val_ds.fnames) == list(data.val_ds.fnames)


def test_class_missing_in_valid_does_not_shift_labels(folders):
    shutil.rmtree(folders / "valid" / "cat")
    with pytest.warns(UserWarning, match="no picture of the class.*'cat'"):
        data = load(folders)
    assert data.val_y.tolist() == [1] * 4


def test_extra_class_in_valid(folders, save_picture):
    save_picture(folders / "valid" / "cow" / "1.png")
    with pytest.raises(LabelError, match="'cow' are no classes of the training set"):
        load(folders)


def test_nested_folders_belong_to_the_class_on_top(folders, save_picture):
    save_picture(folders / "train" / "cat" / "dog" / "deep" / "1.png")
    data = load(folders)
    assert data.classes == ["cat", "dog"]
    assert data.trn_y[data.trn_ds.fnames.index("train/cat/dog/deep/1.png")] == 0


def test_hidden_files_are_ignored(folders):
    before = list(load(folders).trn_ds.fnames)
    for name in ("train/cat/._cat0.png", "train/.hidden/1.png", "train/cat/.d/1.png", "train/dog/Thumbs.db"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_bytes(b"\0\5\x16\7")
    assert list(load(folders).trn_ds.fnames) == before


@pytest.mark.parametrize("name", ["train/stray.png", "train/cat/notes.txt", "train/readme"])
def test_other_files_are_ignored_with_a_warning(folders, save_picture, name):
    if name.endswith("png"):
        save_picture(folders / name)
    else:
        (folders / name).write_text("x")
    with pytest.warns(UserWarning, match=f"1 file.*first {name}"):
        data = load(folders)
    assert len(data.trn_ds) == 12


def test_empty_class_folder(folders):
    (folders / "train" / "cow").mkdir()
    with pytest.raises(LabelError, match="train: 'cow' hold no picture"):
        load(folders)


def test_single_class(folders):
    shutil.rmtree(folders / "train" / "dog")
    with pytest.raises(LabelError, match="at least two classes, got 'cat'"):
        load(folders)


@pytest.mark.parametrize("twin", ["Cat", "cat "])
def test_classes_that_look_the_same(folders, save_picture, twin):
    save_picture(folders / "train" / twin / "1.png")
    shutil.copytree(folders / "train" / twin, folders / "valid" / twin)
    with pytest.warns(UserWarning, match="look the same"):
        assert load(folders).c == 3


def test_nothing_there(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/trane; .* holds test, train, valid"):
        load(folders, trn_name="trane")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere/train"):
        load(tmp_path / "nowhere")
    (tmp_path / "bare" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no pictures below .*0 other file.*\.jpg"):
        load(tmp_path / "bare")
    shutil.rmtree(folders / "test")
    (folders / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no pictures below .*test"):
        load(folders)


def test_pictures_beside_class_folders_only(tmp_path, save_picture):
    save_picture(tmp_path / "train" / "1.png")
    with pytest.raises(FileNotFoundError, match="in folders named by class"):
        load(tmp_path)


@pytest.mark.parametrize("extension", ["gif", "heic", "AVIF", "svg"])
def test_unsupported_formats_are_named(folders, extension):
    (folders / "train" / "cat" / f"z.{extension}").write_bytes(b"x")
    with pytest.raises(BadImageError, match=f"unsupported format {extension.upper()}, first train/cat/z.{extension}"):
        load(folders)


def test_links(folders, save_picture, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    save_picture(outside / "1.png")
    inside = folders / "train" / "cat" / "link.png"
    inside.symlink_to(folders / "train" / "cat" / "cat0.png")
    assert len(load(folders).trn_ds) == 13
    (folders / "train" / "dog" / "loop").symlink_to(folders / "train")
    with pytest.warns(UserWarning, match="1 link.* to folders are not followed, first train/dog/loop"):
        assert len(load(folders).trn_ds) == 13
    (folders / "train" / "dog" / "loop").unlink()
    for target in (outside / "1.png", outside):
        inside.unlink()
        inside.symlink_to(target)
        with pytest.raises(DataError, match=r"train/cat/link.png is a link out of"):
            load(folders)


def test_a_root_that_is_a_link(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("other") / "data"
    root.symlink_to(folders)
    assert len(load(root).trn_ds) == 12


@pytest.mark.parametrize("name", ["/train", "../train", "train/../valid"])
def test_folders_outside(folders, name):
    with pytest.raises(ValueError, match="must be below its path"):
        load(folders, trn_name=name)


def test_other_spellings_of_a_folder(folders):
    names = load(folders).trn_ds.fnames
    assert list(load(folders, trn_name="./train/").trn_ds.fnames) == list(names)
    assert list(load(folders / "train" / "..", trn_name="train/").trn_ds.fnames) == list(names)


def test_many_files_are_found_quickly_enough(tmp_path):
    """A scan looks at names alone: ten thousand empty files are no problem until they are decoded."""
    for name in ("a", "b"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for i in range(5000):
            (folder / f"{i}.jpg").touch()
    data = load(tmp_path)
    assert len(data.trn_ds) + len(data.val_ds) == 10_000


@pytest.mark.parametrize("tfms", [None, (None, None), TFMS[0], (TFMS[0], tfms_from_stats(([0.5] * 3, [1] * 3), 17)[1])])
def test_transforms_must_be_a_pair_of_one_size(folders, tfms):
    with pytest.raises(ValueError, match="ImageClassifierData: tfms must"):
        ImageClassifierData.from_paths(folders, tfms=tfms)


@pytest.mark.parametrize("bs", [0, -1, 2.5, "4"])
def test_batch_size_out_of_range(folders, bs):
    with pytest.raises(ValueError, match="bs must be a whole number"):
        ImageClassifierData.from_paths(folders, bs, TFMS)


def test_batch_larger_than_the_data(folders):
    with pytest.warns(UserWarning, match="bs=64 is more than the 12 training rows"):
        data = ImageClassifierData.from_paths(folders, 64, TFMS)
    assert [len(x) for x, _ in data.trn_dl] == [12]


@pytest.mark.parametrize("num_workers", [-1, 1.5, True])
def test_threads_out_of_range(folders, num_workers):
    with pytest.raises(ValueError, match="num_workers must be 0 or more"):
        load(folders, num_workers=num_workers)
    assert len(next(iter(load(folders, num_workers=0).val_dl))[0]) == 4


def test_device(folders):
    import torch

    assert load(folders, device="cpu").device == torch.device("cpu")
    if not torch.cuda.is_available():
        assert load(folders).device == torch.device("cpu")
        with pytest.raises(ValueError, match="torch sees no GPU"):
            load(folders, device="cuda")


def test_paths_may_be_text(folders):
    data = ImageClassifierData.from_paths(os.fspath(folders) + "/", 4, TFMS)
    assert data.path == folders
