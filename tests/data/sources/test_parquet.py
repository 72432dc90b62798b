"""Images in parquet files are served as from folders."""

import numpy as np
import pytest
import torch
from helpers import HALF, assert_same_batches, image_data, three_colours, tiny_learner
from odd_images import bad_files

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources import parquet as source
from fastclf.data.validation import verified
from fastclf.data.validation.verified import VerifiedImages
from fastclf.errors import BadImageError, DataError, LabelError

arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
TFMS = tfms_from_stats(HALF, 16)
from_parquet = ImageClassifierData.from_parquet


def write(folder, part, file, kind="struct", **columns):
    """Write the images of a set: bytes, as Hugging Face has them, or paths relative to the file."""
    images = sorted(folder.glob(f"{part}/*/*.png"))
    cells = {
        "struct": [{"bytes": image.read_bytes(), "path": None} for image in images],
        "binary": [image.read_bytes() for image in images],
        "path": [image.relative_to(file.parent).as_posix() for image in images],
    }[kind]
    columns = columns or {"label": [image.parent.name for image in images]}
    parquet.write_table(arrow.table({"image": cells} | columns), file, row_group_size=5)
    return file


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "files", 8, 4, 0)


def both_of(folder, kind="struct"):
    """Data over files, and data over the same images in tables."""
    files = [write(folder, part, folder.parent / f"{part}.parquet", kind) for part in ("train", "valid")]
    return image_data(folder, augs=()), from_parquet(files[0], 8, TFMS, files[1], path=folder)


@pytest.mark.parametrize("kind", ["struct", "binary", "path"])
def test_batches_are_those_of_folders(folder, kind):
    files, data = both_of(folder, kind)
    assert data.val_ds.fnames[1] == ("files/valid/blue/001.png" if kind == "path" else "valid.parquet:1")
    assert_same_batches(files, data)


def test_activations_checks_and_copies(folder, capsys):
    files, data = both_of(folder)
    assert data.check().scan.odd == files.check().scan.odd == {}  # no image is named as another format's
    expected = tiny_learner(files, precompute=True).predict()
    capsys.readouterr()
    learn = tiny_learner(data, precompute=True)
    assert "computing activations" not in capsys.readouterr().out
    np.testing.assert_array_equal(learn.predict(), expected)
    for (x, _), (x_own, _) in zip(*(one.resize(18).val_dl for one in (files, data)), strict=True):
        assert torch.equal(x, x_own)


def test_columns_of_one_file_are_not_mistaken_for_each_other(folder, monkeypatch):
    """Digests and smaller copies of an image are not those of another column's."""
    monkeypatch.setattr(verified, "_TICK_NS", 0)
    images = [image.read_bytes() for image in sorted(folder.glob("train/*/*.png"))]
    columns = {"front": images, "back": images[::-1], "label": ["a", "b", "c"] * 8}
    parquet.write_table(arrow.table(columns), folder / "both.parquet")
    data = {name: from_parquet(folder / "both.parquet", 8, TFMS, image_col=name) for name in ("front", "back")}
    for name, one in data.items():
        pool, rows = VerifiedImages(one.trn_ds.source, 1), [*range(len(one.trn_ds))]
        assert pool.bad(rows, 10**9) == {}
        assert pool.digests(rows) == [one.trn_ds.source.digest(row) for row in rows], name
        assert_same_batches(one.resize(18), one.resize(18, f"tmp of {name}"))


def test_bad_images_are_named_and_skipped(folder):
    (folder / "train/blue/003.png").write_bytes(bad_files()["half.png"][0])
    trn, val = (write(folder, part, folder.parent / f"{part}.parquet") for part in ("train", "valid"))
    with pytest.raises(BadImageError, match=r"1 of 36 images .*train\.parquet:3: damaged or truncated PNG"):
        from_parquet(trn, 8, TFMS, val).scan()
    data = from_parquet(trn, 8, TFMS, val, on_bad="skip")
    assert sum(len(x) for x, _ in data.fix_dl) == 23


def test_a_file_that_changes_is_an_error(folder):
    _, data = both_of(folder)
    data.scan()
    write(folder, "valid", folder.parent / "train.parquet")
    with pytest.raises(BadImageError, match=r"train\.parquet:0: its file was changed; make the data anew"):
        list(data.fix_dl)


def test_labels(folder, tmp_path):
    several = [["a", "b"][: i % 2 + 1] for i in range(24)]
    trn = write(folder, "train", tmp_path / "t.parquet", n=[i % 3 for i in range(24)], tags=several)
    val = write(folder, "valid", tmp_path / "v.parquet", n=[0, 1, 2] * 4, tags=several[:12])
    data = from_parquet(trn, 8, TFMS, val, label_col="n", classes=["x", "b", "a"])
    assert (data.classes, data.val_y.tolist()) == (["x", "b", "a"], [0, 1, 2] * 4)
    data = from_parquet(trn, 8, TFMS, val, label_col="tags")
    assert data.trn_y[:2].tolist() == [[1, 0], [1, 1]]
    data = from_parquet(trn, 8, TFMS, val, label_col="n", continuous=True)
    assert data.trn_y.ravel().tolist() == [0, 1, 2] * 8


def test_what_cannot_be_used_is_named(folder, tmp_path):
    trn = write(folder, "train", tmp_path / "t.parquet", label=[None, *["a", "b"] * 11, "a"])
    with pytest.raises(LabelError, match=r"1 of 24 images of train have no label, first t\.parquet:0"):
        from_parquet(trn, 8, TFMS)
    with pytest.raises(DataError, match=r"image_col must be one of 'image', 'label' in .*t\.parquet, got 'img'"):
        from_parquet(trn, 8, TFMS, image_col="img")
    with pytest.raises(LabelError, match=r"label_col must be one of 'image', 'label' in .*t\.parquet, got 'y'"):
        from_parquet(trn, 8, TFMS, label_col="y")
    (tmp_path / "cut.parquet").write_bytes(trn.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.parquet is no parquet file, or is damaged"):
        from_parquet(tmp_path / "cut.parquet", 8, TFMS)


@pytest.fixture
def decoded(monkeypatch):
    """The row groups that are decoded, of which one is kept in memory."""
    groups = []
    original = source._decoded
    monkeypatch.setattr(source, "_decoded", lambda group: groups.append(group.number) or original(group))
    monkeypatch.setattr(source, "_KEPT", 0)
    source._groups_read.forget()
    return groups


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_a_row_group_is_decoded_twice_at_most_in_random_order(folder, kind, decoded, rng, tmp_path):
    trn = write(folder, "train", tmp_path / "t.parquet", kind)
    want = [image.read_bytes() for image in sorted(folder.glob("train/*/*.png"))]
    images = source.ParquetSource(tmp_path, [trn], "image")
    for row in range(24):
        assert images.read(row) == want[row]
    assert decoded == [0, 1, 2, 3, 4]  # in order
    for _ in range(3):
        for row in rng.permutation(24).tolist():
            assert images.read(row) == want[row]
    assert len(decoded) <= 10
    copies = sorted((tmp_path / "tmp" / "row_groups").glob("*.arrow"))
    assert len(copies) >= 4  # one may have stayed in memory
    assert (tmp_path / "tmp" / "row_groups" / "CACHEDIR.TAG").exists()
    source._groups_read.forget()  # as another process finds it, one of them damaged
    copies[0].write_bytes(copies[0].read_bytes()[:100])
    groups = (source.RowGroup(str(tmp_path), str(trn), images._stamps[0], k, "image") for k in range(5))
    source._groups_read._gone.update(groups)
    before = len(decoded)
    for row in rng.permutation(24).tolist():
        assert images.read(row) == want[row]
    assert len(decoded) <= before + 2


def test_without_room_for_copies_groups_are_decoded_again(folder, decoded, tmp_path, capsys):
    trn = write(folder, "train", tmp_path / "t.parquet")
    (tmp_path / "tmp").write_text("a file where the folder should be")
    images = source.ParquetSource(tmp_path, [trn], "image")
    for row in [0, 20] * 3:
        assert images.read(row)
    assert decoded == [0, 4] * 3
    assert capsys.readouterr().out.count("row_groups cannot be written") == 1


def test_chosen_rows_and_groups(folder, tmp_path):
    people = [i // 4 for i in range(24)]
    trn = write(folder, "train", tmp_path / "t.parquet", label=[i % 2 for i in range(24)], who=people)
    data = from_parquet(trn, 8, TFMS, val_idxs=[3, 7, 20])
    assert data.val_ds.fnames[:] == ["t.parquet:3", "t.parquet:7", "t.parquet:20"]
    data = from_parquet(trn, 8, TFMS, groups="who")
    held_out = {int(name.rpartition(":")[2]) for name in data.val_ds.fnames}
    assert 0 < len(held_out) < 12
    assert held_out == {row for row in range(24) if people[row] in {people[one] for one in held_out}}
    with pytest.warns(UserWarning, match="1 group has images in train and in valid, such as t.parquet:2 and t"):
        from_parquet(trn, 8, TFMS, groups="who", val_idxs=[0, 1])
    for wrong, words in (
        ({"groups": "x"}, "groups must be one of 'image', 'label', 'who', got 'x'"),
        ({"val_idxs": [24]}, "val_idxs must be from 0 to 23"),
        ({"groups": "who", "val": trn}, "must name each file once"),
    ):
        with pytest.raises((ValueError, DataError), match=words):
            from_parquet(trn, 8, TFMS, **wrong)
