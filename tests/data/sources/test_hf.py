"""Images of Hugging Face data sets are served as from folders."""

import numpy as np
import pytest
import torch
from helpers import COLOURS, HALF, assert_same_batches, image_data, three_colours, tiny_learner
from odd_images import bad_files

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import BadImageError, DataError, LabelError

datasets = pytest.importorskip("datasets")
TFMS = tfms_from_stats(HALF, 16)
NAMES = sorted(COLOURS)
from_hf = ImageClassifierData.from_hf


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "files", 8, 4, 0)


def split_of(folder, part):
    images = sorted(folder.glob(f"{part}/*/*.png"))
    columns = {
        "image": [{"bytes": image.read_bytes(), "path": None} for image in images],
        "label": [NAMES.index(image.parent.name) for image in images],
    }
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    return datasets.Dataset.from_dict(columns, features=features)


def splits_of(folder):
    return datasets.DatasetDict(train=split_of(folder, "train"), validation=split_of(folder, "valid"))


def test_a_saved_folder(folder, tmp_path):
    splits_of(folder).save_to_disk(tmp_path / "saved")
    data = from_hf(tmp_path / "saved", 8, TFMS)
    assert data.val_ds.fnames[1] == "validation:1"
    assert data.check().scan.odd == {}
    assert_same_batches(image_data(folder, augs=()), data)


def test_objects_in_memory(folder, capsys):
    """Activations of the folder are found; predictions are the same bits."""
    files, data = image_data(folder, augs=()), from_hf(splits_of(folder), 8, TFMS, path=folder)
    assert_same_batches(files, data)
    expected = tiny_learner(files, precompute=True).predict()
    capsys.readouterr()
    learn = tiny_learner(data, precompute=True)
    assert "computing activations" not in capsys.readouterr().out
    np.testing.assert_array_equal(learn.predict(), expected)
    with pytest.raises(ValueError, match="path must be given for data in memory"):
        from_hf(splits_of(folder), 8, TFMS)


def test_rows_in_another_order_are_other_images(folder, tmp_path):
    """In the same folder, where verdicts, activations and smaller copies of the first data set are kept."""
    one = split_of(folder, "train")
    rows = np.random.default_rng(0).permutation(len(one))
    val = split_of(folder, "valid")
    seen = []
    for trn in (one, one.select(rows)):
        data = from_hf(datasets.DatasetDict(train=trn, validation=val), 8, TFMS, path=tmp_path / "kept")
        seen.append([torch.cat([x for x, _ in part.fix_dl]) for part in (data, data.resize(18))])
    for x, moved in zip(*seen, strict=True):
        assert torch.equal(x[rows], moved)


def test_one_split_is_divided(folder, tmp_path):
    data = from_hf(split_of(folder, "train"), 8, TFMS, path=tmp_path / "kept", val_pct=0.25)
    assert np.bincount(data.trn_y).tolist() == [6, 6, 6]
    assert np.bincount(data.val_y).tolist() == [2, 2, 2]


def test_splits_of_one_data_set_have_names_of_their_own(folder, tmp_path):
    """Rows that `train_test_split` has divided all come from the split 'train'."""
    divided = split_of(folder, "train").train_test_split(6, seed=1, stratify_by_column="label")
    data = from_hf(divided, 8, TFMS, val="test", path=tmp_path / "kept")
    assert (data.trn_ds.fnames[0], data.val_ds.fnames[0]) == ("train:0", "test:0")
    with pytest.raises(ValueError, match="must be splits of their own, got 'train' twice"):
        from_hf(divided, 8, TFMS, val="train", path=tmp_path / "kept")


def test_bad_images_are_named(folder, tmp_path):
    (folder / "valid/green/001.png").write_bytes(bad_files()["half.png"][0])
    with pytest.raises(BadImageError, match=r"1 of 36 images .*validation:5: damaged or truncated PNG"):
        from_hf(splits_of(folder), 8, TFMS, path=tmp_path / "kept").scan()


def test_what_cannot_be_used_is_named(folder, tmp_path):
    data = splits_of(folder)
    with pytest.raises(ValueError, match=r"there is no split 'dev2', but 'train', 'validation'"):
        from_hf(data, 8, TFMS, "dev2", path=tmp_path)
    with pytest.raises(DataError, match="image_col must be one of 'image', 'label', got 'img'"):
        from_hf(data, 8, TFMS, path=tmp_path, image_col="img")
    with pytest.raises(LabelError, match="label_col must be one of 'image', 'label', got 'y'"):
        from_hf(data, 8, TFMS, path=tmp_path, label_col="y")
    with pytest.raises(TypeError, match="dataset must be a folder that save_to_disk has written"):
        from_hf(data["train"].to_iterable_dataset(), 8, TFMS, path=tmp_path)
    with pytest.raises(DataError, match="is no data set that save_to_disk has written"):
        from_hf(folder, 8, TFMS)
    unlabelled = data["train"].cast_column("label", datasets.Value("int64"))
    unlabelled = unlabelled.add_column("y", [None, *[0, 1] * 11, 0])
    with pytest.raises(LabelError, match=r"1 of 24 images of train have no label, first train:0"):
        from_hf(unlabelled, 8, TFMS, path=tmp_path, label_col="y")


def test_chosen_rows_and_groups(folder, tmp_path):
    people = [i % 4 for i in range(24)]
    data = split_of(folder, "train").add_column("who", people)
    made = from_hf(data, 8, TFMS, path=tmp_path, val_idxs=[3, 9, 20])
    assert made.val_ds.fnames[:] == ["train:3", "train:9", "train:20"]
    made = from_hf(data, 8, TFMS, path=tmp_path, groups="who")
    held_out = {int(name.rpartition(":")[2]) for name in made.val_ds.fnames}
    assert held_out == {row for row in range(24) if people[row] in {people[one] for one in held_out}}
    with pytest.raises(DataError, match="groups must be one of 'image', 'label', 'who', got 'x'"):
        from_hf(data, 8, TFMS, path=tmp_path, groups="x")
    with pytest.warns(UserWarning, match="3 groups have images in train and in valid, such as train:0"):
        made = from_hf(splits_of(folder), 8, TFMS, path=tmp_path, groups="label")
    assert made.val_ds.groups.max() == 2
