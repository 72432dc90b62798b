"""data.without_duplicates(): every image once, none of train in valid or test."""

import shutil
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
from helpers import TFMS, image_data

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import LabelError

load = partial(image_data, bs=4, augs=())


def expected(data):
    """Names to keep, found by comparing every pair of files."""
    rows = [
        (where, name, ds.classes[y] if ds.labels.known else None, (ds.path / name).read_bytes())
        for where, ds in (("train", data.trn_ds), ("valid", data.val_ds), ("test", data.test_ds))
        for name, y in zip(ds.fnames, ds.y, strict=True)
    ]
    kept = defaultdict(list)
    for i, (where, name, _, content) in enumerate(rows):
        same = [j for j, row in enumerate(rows) if row[3] == content]
        labels = {rows[j][2] for j in same} - {None}
        last = rows[same[-1]][0]
        if where == "test" or (
            len(labels) == 1 and where == last and not [j for j in same if j < i and rows[j][0] == last]
        ):
            kept[where].append(name)
    return kept


@pytest.mark.parametrize("labelled", [False, True])
def test_random_sets(tmp_path, save_image, rng, labelled, capsys):
    """Many copies between all sets and classes; what stays is what a comparison of all pairs says."""
    originals = [save_image(tmp_path / "originals" / f"{i}.png") for i in range(60)]
    for part in ("train", "valid", "test"):
        for i in range(30):
            source = originals[rng.integers(len(originals))]
            wrong = rng.random() < 0.06  # few contradict each other
            name = ("cat", "dog")[int(source.stem) % 2 ^ wrong]
            (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(source, tmp_path / part / name / f"{i:02d}.png")
        for name in ("cat", "dog"):  # something that stays in each
            save_image(tmp_path / part / name / "own.png", (50, 50))
    data = ImageClassifierData.from_paths(tmp_path, 2, TFMS, test_with_labels=labelled)
    want = expected(data)
    capsys.readouterr()
    clean = data.without_duplicates()
    for where, ds, before in zip(
        ("train", "valid", "test"),
        (clean.trn_ds, clean.val_ds, clean.test_ds),
        (data.trn_ds, data.val_ds, data.test_ds),
        strict=True,
    ):
        assert list(ds.fnames) == want[where]
        truth = dict(zip(before.fnames, before.y, strict=True))
        assert ds.y.tolist() == [truth[name] for name in ds.fnames]
    left_out = [len(old) - len(new) for old, new in ((data.trn_ds, clean.trn_ds), (data.val_ds, clean.val_ds))]
    assert "without_duplicates: {} rows of train, {} of valid left out".format(*left_out) in capsys.readouterr().out
    report = clean.check()
    assert report.leaks == []
    assert all(name.startswith("test/") for pair in report.relabelled + report.repeated for name in pair)
    assert sum(len(x) for x, _ in clean.fix_dl) == len(clean.trn_ds)


def test_each_finding_ends_with_the_call(folders):
    shutil.copy(folders / "train/cat/cat3.png", folders / "valid/cat/leak.png")
    shutil.copy(folders / "train/cat/cat2.png", folders / "train/dog/other.png")
    shutil.copy(folders / "train/dog/dog2.png", folders / "train/dog/again.png")
    data = load(folders)
    found = [line for line in data.check().problems if "byte" in line]
    assert len(found) == 3
    assert all(line.endswith("data = data.without_duplicates()") for line in found)
    data = data.without_duplicates()
    assert not any("byte" in line for line in data.check().problems)
    assert len(data.trn_ds) == 14 - 1 - 2 - 1
    assert "train/dog/again.png" in data.trn_ds.fnames


def test_many_copies_of_one_image(tmp_path):
    """One blank image under a thousand names takes no time that grows with its square."""
    x = np.zeros((20_000, 4), np.float32)
    x[:2, 0] = 1, 2
    y = np.arange(len(x)) % 2
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x[:2] + 5, y[:2]), bs=2)
    assert len(data.without_duplicates().trn_ds) == 2  # under both labels: none of the copies stays


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_arrays(tmp_path, rng, kind):
    x = rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8) if kind == "images" else rng.random((8, 5), np.float32)
    y = np.arange(8) % 2
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x[[4, 4, 5]], y[[4, 4, 5]]), 4, TFMS)
    clean = data.without_duplicates()
    held = clean.trn_ds.images if kind == "images" else clean.trn_ds.rows
    np.testing.assert_array_equal(held, x[[0, 1, 2, 3, 6, 7]])
    assert clean.trn_y.tolist() == [0, 1] * 3
    assert clean.val_y.tolist() == [0, 1]


def test_bad_images_and_options_stay(folders):
    (folders / "train/cat/cat1.png").write_bytes(b"")
    shutil.copy(folders / "train/cat/cat0.png", folders / "train/cat/a.png")
    data = load(folders, on_bad="skip", seed=9, device="cpu")
    data.scan()
    clean = data.without_duplicates()
    assert (clean.seed, clean.trn_ds.bad.policy, clean.bs) == (9, "skip", 4)
    assert [clean.trn_ds.fnames[row] for row in clean.trn_ds.bad.reasons] == ["train/cat/cat1.png"]
    assert "train/cat/cat0.png" not in clean.trn_ds.fnames
    assert clean.scan().bad == {"train/cat/cat1.png": "empty file"}


def test_smaller_copies(folders):
    shutil.copy(folders / "train/cat/cat0.png", folders / "valid/cat/a.png")
    clean = load(folders).resize(20).without_duplicates()
    assert len(clean.trn_ds) == 11
    assert clean.trn_ds.path == folders / "tmp/20"
    assert sum(len(x) for x, _ in clean.fix_dl) == 11


def test_a_class_that_would_be_gone(folders):
    shutil.rmtree(folders / "train/cat")
    shutil.copytree(folders / "valid/cat", folders / "train/cat")
    with pytest.raises(LabelError, match="'cat' would have no training image"):
        load(folders).without_duplicates()


def test_activations_of_images_are_refused(folders):
    data = load(folders)
    rows = data.with_rows(*(np.zeros((n, 3), np.float32) for n in (12, 8, 5)))
    with pytest.raises(ValueError, match="Call it on the data of the images"):
        rows.without_duplicates()
