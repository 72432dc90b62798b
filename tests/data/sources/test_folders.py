"""from_paths: classes from folders, mapped by name, and what must not go unnoticed."""

import os
import shutil
import sys
import unicodedata

import numpy as np
import pytest
from helpers import TFMS

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.ignored import tag_as_results
from fastclf.data.sources.listing import look
from fastclf.errors import BadImageError, DataError, LabelError


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


def test_names_are_sorted_by_code_point(folders, save_image):
    for name in ("B.png", "a.png", "10.png", "9.png", "ä.png", "_.png", "x y.png", "🐱.png"):
        save_image(folders / "train" / "cat" / name)
    names = list(load(folders).trn_ds.fnames)
    assert names == sorted(names)
    assert next(iter(load(folders).fix_dl))[0].shape[0] == 4
    assert sum(len(x) for x, _ in load(folders).fix_dl) == 20


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names(folders, save_image, form):
    name = unicodedata.normalize(form, "größe.png")
    save_image(folders / "train" / "cat" / name)
    data = load(folders)
    assert f"train/cat/{name}" in data.trn_ds.fnames
    assert sum(len(x) for x, _ in data.fix_dl) == 13


def test_without_valid_the_split_is_stratified(folders, capsys):
    shutil.rmtree(folders / "valid")
    data = load(folders, val_pct=0.34, seed=5)
    assert "4 of 12 images of train" in capsys.readouterr().out
    assert np.bincount(data.val_y).tolist() == [2, 2]
    assert len(data.trn_ds) == 8
    assert not set(data.trn_ds.fnames) & set(data.val_ds.fnames)
    assert list(load(folders, val_pct=0.34, seed=5).val_ds.fnames) == list(data.val_ds.fnames)


def test_class_missing_in_valid_does_not_shift_labels(folders):
    shutil.rmtree(folders / "valid" / "cat")
    with pytest.warns(UserWarning, match="no image of the class.*'cat'"):
        data = load(folders)
    assert data.val_y.tolist() == [1] * 4


def test_extra_class_in_valid(folders, save_image):
    save_image(folders / "valid" / "cow" / "1.png")
    with pytest.raises(LabelError, match="'cow' are not classes of the training set"):
        load(folders)


def test_nested_folders_belong_to_the_class_on_top(folders, save_image):
    save_image(folders / "train" / "cat" / "dog" / "deep" / "1.png")
    data = load(folders)
    assert data.classes == ["cat", "dog"]
    assert data.trn_y[data.trn_ds.fnames.index("train/cat/dog/deep/1.png")] == 0


def test_extra_class_in_valid_may_be_dropped(folders, save_image):
    for i in range(3):
        save_image(folders / "valid" / "cow" / f"{i}.png")
    with pytest.warns(UserWarning, match="3 images of 'cow', no classes of the training set, are left out"):
        data = load(folders, drop_unknown=True)
    assert data.classes == ["cat", "dog"]
    assert data.val_y.tolist() == [0] * 4 + [1] * 4
    assert data.val_ds.ignored["images of unknown classes"] == 3
    shutil.rmtree(folders / "valid" / "cow")
    assert load(folders, drop_unknown=True).val_ds.ignored["images of unknown classes"] == 0


def test_one_class_name_in_two_unicode_forms(folders, save_image):
    """Names are compared as they are; the error points out the one that looks the same."""
    for part, form in (("train", "NFC"), ("valid", "NFD")):
        save_image(folders / part / unicodedata.normalize(form, "größe") / "1.png")
    with pytest.raises(
        LabelError, match=r"not classes of the training set.*one name in two Unicode forms \(NFC and NFD"
    ):
        load(folders)


def test_hidden_files_are_ignored(folders):
    before = list(load(folders).trn_ds.fnames)
    for name in ("train/cat/._cat0.png", "train/.hidden/notes.txt", "train/cat/.d/1.png", "train/dog/Thumbs.db"):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).write_bytes(b"\0\5\x16\7")
    data = load(folders)
    assert list(data.trn_ds.fnames) == before
    assert data.trn_ds.ignored["hidden files or folders"] == 4


@pytest.mark.parametrize("name", ["train/stray.png", "train/cat/notes.txt", "train/readme"])
def test_other_files_are_ignored_with_a_warning(folders, save_image, name):
    if name.endswith("png"):
        save_image(folders / name)
    else:
        (folders / name).write_text("x")
    with pytest.warns(UserWarning, match=f"1 file.*first {name}"):
        data = load(folders)
    assert len(data.trn_ds) == 12


def test_empty_class_folder(folders):
    (folders / "train" / "cow").mkdir()
    with pytest.raises(LabelError, match=r"train: 'cow' hold no image.*allow_empty=True"):
        load(folders)
    with (
        pytest.warns(UserWarning, match="train: 'cow' hold no image; the model cannot learn these classes"),
        pytest.warns(UserWarning, match="valid: no image of the class.*'cow'"),
    ):
        data = load(folders, allow_empty=True)
    assert data.classes == ["cat", "cow", "dog"]
    assert data.trn_y.tolist() == [0] * 6 + [2] * 6


def test_results_beside_the_classes_are_no_class(folders, save_image):
    """A run's folder made amid the data, as a command does that is started there."""
    for name in ("run", "dog/run"):
        tag_as_results(folders / "train" / name)
        save_image(folders / "train" / name / "plots" / "loss.png")
    data = ImageClassifierData.from_paths(folders / "train", 4, TFMS, trn_name=".")
    assert data.classes == ["cat", "dog"]
    assert not [name for name in [*data.trn_ds.fnames, *data.val_ds.fnames] if "run/" in name]
    assert look(folders / "train")[0] == ["cat", "dog"]


def test_single_class(folders):
    shutil.rmtree(folders / "train" / "dog")
    with pytest.raises(LabelError, match="at least two classes, got 'cat'"):
        load(folders)


@pytest.mark.parametrize("lookalike", ["Cat", "cat ", "cat\u200b", "\ufeffcat", "c\u00adat", "CAT\u00a0"])
def test_classes_that_look_the_same(folders, save_image, lookalike):
    save_image(folders / "train" / lookalike / "1.png")
    shutil.copytree(folders / "train" / lookalike, folders / "valid" / lookalike)
    with pytest.warns(UserWarning, match="look the same"):
        assert load(folders).c == 3


def test_nothing_there(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/trane; .* holds test, train, valid"):
        load(folders, trn_name="trane")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere\. Check the path"):
        load(tmp_path / "nowhere")
    (tmp_path / "bare" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no images below .*0 other file.*\.jpg"):
        load(tmp_path / "bare")
    shutil.rmtree(folders / "test")
    (folders / "test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images below .*test"):
        load(folders)


def test_images_beside_class_folders_only(tmp_path, save_image):
    save_image(tmp_path / "train" / "1.png")
    with pytest.raises(FileNotFoundError, match=r"1 image.* in no folder of a class"):
        load(tmp_path)


@pytest.mark.parametrize("extension", ["gif", "heic", "AVIF", "svg"])
def test_unsupported_formats_are_images_that_cannot_be_decoded(folders, extension):
    """They are not passed over: the scan names them, or they are skipped and keep their place."""
    (folders / "valid" / "cat" / f"z.{extension}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    data = load(folders)
    assert f"valid/cat/z.{extension}" in data.val_ds.fnames
    with pytest.raises(BadImageError, match=f"1 of 26 .*valid/cat/z.{extension}: unsupported format HEIC"):
        data.scan()


def test_links(folders, save_image, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    save_image(outside / "1.png")
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
        with pytest.raises(DataError, match=r"train/cat/link.png is a link out of.*allow_outside=True"):
            load(folders)


def test_links_out_of_the_data_may_be_allowed(folders, save_image, tmp_path_factory):
    """Then links to folders are followed too, each real folder once, whatever leads back to it."""
    outside = tmp_path_factory.mktemp("outside")
    save_image(outside / "cows" / "1.png")
    save_image(outside / "cows" / "deep" / "2.png")
    save_image(outside / "3.png")
    (folders / "train" / "cow").symlink_to(outside / "cows")
    (folders / "train" / "cat" / "link.png").symlink_to(outside / "3.png")
    (outside / "cows" / "deep" / "loop").symlink_to(outside / "cows")
    (folders / "train" / "dog" / "loop").symlink_to(folders / "train")
    (folders / "valid" / "cow").symlink_to(outside / "cows" / "deep")
    with pytest.raises(DataError, match="link out of"):
        load(folders)
    data = load(folders, allow_outside=True)
    assert data.classes == ["cat", "cow", "dog"]
    assert [name for name in data.trn_ds.fnames if "/cow/" in name] == ["train/cow/1.png", "train/cow/deep/2.png"]
    assert len(data.trn_ds) == 15
    assert sum(len(x) for x, _ in data.fix_dl) == 15


def test_a_split_that_is_a_link(folders, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (folders / "train").rename(other / "train")
    (folders / "train").symlink_to(other / "train")
    with pytest.raises(DataError, match="train is a link out of"):
        load(folders)
    assert len(load(folders, allow_outside=True).trn_ds) == 12


def test_links_that_lead_nowhere(folders):
    link = folders / "train" / "cat" / "x.png"
    link.symlink_to(folders / "train" / "gone.png")
    with pytest.raises(BadImageError, match=r"train/cat/x.png: not found"):
        load(folders).scan()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises((DataError, BadImageError), match=r"train/cat/x.png"):
        load(folders).scan()


def test_a_folder_that_may_not_be_read(folders, monkeypatch):
    def refusing(call, place):
        def refused(path, **how):
            if place in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return call(path, **how)

        return refused

    monkeypatch.setattr(os, "scandir", refusing(os.scandir, "/dog"))
    monkeypatch.setattr(os, "stat", refusing(os.stat, "/dog/"))
    with pytest.raises(DataError, match="train/dog may not be read: Permission denied"):
        load(folders)
    assert look(folders / "train") == (["cat", "dog"], [])


def test_a_folder_named_like_an_image(folders, save_image):
    """It is a folder like any other."""
    save_image(folders / "train" / "cat" / "x.jpg" / "1.png")
    (folders / "train" / "cat" / "empty.jpg").mkdir()
    assert [name for name in load(folders).trn_ds.fnames if ".jpg" in name] == ["train/cat/x.jpg/1.png"]


def test_control_characters_of_names_are_not_printed(folders):
    (folders / "train" / "cat" / "a\x1b[31m\n.txt").touch()
    with pytest.warns(UserWarning, match=r"first train/cat/a\\x1b\[31m\\n.txt"):
        load(folders)


def test_a_root_that_is_a_link(folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("other") / "data"
    root.symlink_to(folders)
    assert len(load(root).trn_ds) == 12


@pytest.mark.parametrize("name", ["/train", "../train", "train/../train"])
def test_folders_outside(folders, name):
    with pytest.raises(ValueError, match="must be below its path"):
        load(folders, trn_name=name)


def test_other_spellings_of_a_folder(folders):
    names = load(folders).trn_ds.fnames
    assert list(load(folders, trn_name="./train/").trn_ds.fnames) == list(names)
    assert list(load(folders / "train" / "..", trn_name="train/").trn_ds.fnames) == list(names)


def test_a_hundred_thousand_files(tmp_path, monkeypatch):
    """One read of each folder finds them; no file is looked at by itself, and their names take little memory."""
    for name in ("a", "b"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        handle = os.open(folder, os.O_DIRECTORY)
        for i in range(50_000):
            os.close(os.open(f"{i:024d}.jpg", os.O_CREAT, dir_fd=handle))
        os.close(handle)
    looked_at, reads = [], []
    for call in ("stat", "lstat", "open"):
        original = getattr(os, call)

        def counted(file, *args, original=original, **how):
            looked_at.append(file)
            return original(file, *args, **how)

        monkeypatch.setattr(os, call, counted)
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: reads.append(folder) or scandir(folder))
    data = load(tmp_path)
    monkeypatch.undo()
    assert len(data.trn_ds) + len(data.val_ds) == 100_000
    assert len(reads) == 5  # the root twice, for other names of valid and test
    assert len(looked_at) < 100
    names = data.trn_ds.fnames
    held = sum(map(sys.getsizeof, vars(names).values()))
    assert held < 1.1 * len(names) * (len(names[0]) + 8) < 0.6 * sum(map(sys.getsizeof, names))


def test_the_work_grows_with_the_number_of_files(tmp_path):
    """Four times as many files take at most about four times as many calls, in Python and below it."""
    calls = []
    for n in (500, 2000):
        for name in ("a", "b"):
            folder = tmp_path / str(n) / "train" / name
            folder.mkdir(parents=True)
            for i in range(n // 2):
                (folder / f"{i}.jpg").touch()
        count = 0

        def counted(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        load(tmp_path / str(n))
        sys.setprofile(counted)
        try:
            load(tmp_path / str(n))
        finally:
            sys.setprofile(None)
        calls.append(count)
    assert calls[1] < 4.2 * calls[0]


@pytest.mark.parametrize("tfms", [None, (None, None), TFMS[0], (TFMS[0], tfms_from_stats(([0.5] * 3, [1] * 3), 17)[1])])
def test_transforms_must_be_a_pair_of_one_size(folders, tfms):
    with pytest.raises(ValueError, match="ImageClassifierData: tfms must"):
        ImageClassifierData.from_paths(folders, tfms=tfms)


@pytest.mark.parametrize("bs", [0, -1, 2.5, "4"])
def test_batch_size_out_of_range(folders, bs):
    with pytest.raises(ValueError, match="bs must be a whole number"):
        ImageClassifierData.from_paths(folders, bs, TFMS)


def test_batch_larger_than_the_data(folders):
    data = ImageClassifierData.from_paths(folders, 64, TFMS)  # without a warning: nobody needs one
    assert [len(x) for x, _ in data.trn_dl] == [12]


@pytest.mark.parametrize("num_workers", [-1, 1.5, True])
def test_threads_out_of_range(folders, num_workers):
    with pytest.raises(ValueError, match="num_workers must be a whole number of at least 0"):
        load(folders, num_workers=num_workers)
    assert len(next(iter(load(folders, num_workers=0).val_dl))[0]) == 4


def test_device(folders):
    import torch

    assert load(folders, device="cpu").device == torch.device("cpu")
    assert load(folders).device == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="torch sees no GPU"):
            load(folders, device="cuda")
    for wrong in ("gpu", "cpu:x", 1.5):
        with pytest.raises(ValueError, match="device must be"):
            load(folders, device=wrong)


def test_paths_may_be_text(folders):
    data = ImageClassifierData.from_paths(os.fspath(folders) + "/", 4, TFMS)
    assert data.path == folders


@pytest.mark.parametrize("nested", ["two folders", "one folder", "beside images"])
def test_classes_of_classes_are_said(tmp_path, capsys, nested):
    """SUN397 keeps 'abbey' below 'a'; where a class has one folder below it, or images too, nothing else is meant."""
    below = {"two folders": ("abbey", "arch"), "one folder": ("images",), "beside images": ("abbey", "arch", ".")}[
        nested
    ]
    for label in ("a", "b"):
        for folder in below:
            for i in range(4):
                file = tmp_path / "train" / label / folder / f"{folder.strip('.')}{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    assert load(tmp_path).classes == ["a", "b"]
    said = "the outermost folders are the classes; images of 'a' lie below it, in 'abbey', 'arch'"
    assert (said in capsys.readouterr().out) == (nested == "two folders")


def test_a_flat_validation_set_with_a_table(folders):
    """Tiny ImageNet's: val/images/*.jpg, and val/val_annotations.txt."""
    shutil.rmtree(folders / "valid")
    (folders / "val/images").mkdir(parents=True)
    for i in range(4):
        (folders / f"val/images/{i}.png").touch()
    (folders / "val/val_annotations.txt").write_text("".join(f"{i}.png\tcat\n" for i in range(4)))
    said = r"all images are in the folder 'images'.*val/val_annotations\.txt names their"
    with pytest.warns(UserWarning, match="1 file"), pytest.raises(LabelError, match=said):
        load(folders)
