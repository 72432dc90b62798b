"""Images in tar archives are served as from folders."""

import copy
import gzip
import io
import json
import pickle
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import HALF, assert_same_batches, image_data, three_colours, tiny_body, tiny_learner
from odd_images import bad_files
from PIL import Image

import fastclf
from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import BadImageError, DataError, LabelError
from fastclf.models.head import Head
from fastclf.models.net import Net

TFMS = tfms_from_stats(HALF, 16)
from_shards = ImageClassifierData.from_shards


def png(number):
    """An image that tells its number."""
    held = io.BytesIO()
    Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(held, "PNG")
    return held.getvalue()


def tar(file, members, **kwargs):
    """Write files into an archive: `{name: content}`."""
    with tarfile.open(file, "w", **kwargs) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


def samples(n=6, extension="cls", label=lambda i: "ab"[i % 2].encode(), key="s{}"):
    """An image and a label of each of a few samples."""
    return {
        f"{key.format(i)}.{kind}": content
        for i in range(n)
        for kind, content in (("png", png(i)), (extension, label(i)))
    }


def shard(folder, part, file):
    members = {}
    for image in sorted(folder.glob(f"{part}/*/*.png")):
        members[f"{image.parent.name}.d/{image.stem}.png"] = image.read_bytes()
        members[f"{image.parent.name}.d/{image.stem}.cls"] = image.parent.name.encode()
    return tar(file, members)


def numbers_of(ds):
    """The numbers of the images of a data set, by their bytes."""
    return [int(np.asarray(Image.open(io.BytesIO(ds.source.read(row))))[0, 0, 0]) for row in range(len(ds))]


@pytest.fixture
def both(tmp_path):
    """Data over files, and data over the same images in archives; both keep what they make in one folder."""
    folder = three_colours(tmp_path / "files", 8, 4, 0)
    (tmp_path / "tar").mkdir()
    shard(folder, "train", tmp_path / "tar/t-00.tar")
    val = shard(folder, "valid", tmp_path / "tar/v.tar")
    return image_data(folder, augs=()), from_shards(tmp_path / "tar/t-{00..00}.tar", 8, TFMS, val, path=folder)


def test_batches_are_those_of_folders(both):
    assert_same_batches(*both)


def test_the_lesson(both, capsys):
    """Activations of the folder are found; losses and predictions are the same bits, and those that are loaded."""
    files, data = both
    learners = [tiny_learner(files, precompute=True)]
    assert "computing activations of 24 images" in capsys.readouterr().out
    learners.append(tiny_learner(data, precompute=True))
    assert "computing activations" not in capsys.readouterr().out
    values = [learn.fit(0.05, 2) for learn in learners]
    assert values[0] == values[1]
    predictions = [learn.predict() for learn in learners]
    np.testing.assert_array_equal(*predictions)
    learners[1].save("colours")
    fresh = tiny_learner(data, precompute=True)
    fresh.load("colours")
    np.testing.assert_array_equal(fresh.predict(), predictions[0])
    learners[1].precompute = learners[0].precompute = False
    alone = learners[1].predict()
    np.testing.assert_array_equal(learners[0].predict(), alone)
    head = Head(12, 3, ps=0.2, xtra_fc=[8], final="log_softmax", seed=7)
    clf = fastclf.load(files.path / "models/colours", model=Net(tiny_body(seed=1), head))
    np.testing.assert_array_equal(clf.predict([str(files.path / name) for name in files.val_ds.fnames]).outputs, alone)
    assert files.val_ds.fnames[0] == "valid/blue/000.png"
    assert data.val_ds.fnames[0] == "v.tar/blue.d/000.png"


def test_check_audit_and_copies(both):
    files, data = both
    assert data.check().scan.odd == files.check().scan.odd == {}
    assert data.scan().decoded == 0
    first, second = (tiny_learner(one, precompute=True).audit() for one in both)
    assert len(first) == len(second)
    for (x, _), (x_tar, _) in zip(*(one.resize(18).val_dl for one in both), strict=True):
        assert torch.equal(x, x_tar)


def test_copies_of_data(both):
    _, data = both
    expected = [x.clone() for x, _ in data.val_dl]
    for other in (pickle.loads(pickle.dumps(data.val_ds)), copy.deepcopy(data.val_ds)):
        assert numbers_of(other) == numbers_of(data.val_ds)
    assert [*data.val_ds.take(np.array([5, 2])).fnames] == [data.val_ds.fnames[row] for row in (5, 2)]
    assert all(torch.equal(x, other) for x, (other, _) in zip(expected, data.val_dl, strict=True))


def test_many_threads_read_at_once(tmp_path, rng):
    data = from_shards([tar(tmp_path / f"{k}.tar", samples(10, key=f"{k}-{{}}")) for k in range(40)], 4, TFMS)
    ds = data.trn_ds
    expected = [ds.source.read(row) for row in range(len(ds))]
    rows = rng.permutation(np.tile(np.arange(len(ds)), 5)).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert [*pool.map(ds.source.read, rows)] == [expected[row] for row in rows]


LONG = "folder-" * 12 + "/" + "name-" * 30


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names(tmp_path, form):
    """Names that headers have no room for, and letters that they have no code for."""
    members = samples(8, key=LONG + "ü{}")
    data = from_shards(tar(tmp_path / "t.tar", members, format=form), 4, TFMS)
    names = sorted([*data.trn_ds.fnames, *data.val_ds.fnames])
    assert names == sorted(f"t.tar/{name}" for name in members if name.endswith(".png"))
    assert sorted(numbers_of(data.trn_ds) + numbers_of(data.val_ds)) == [*range(8)]


def test_hard_links(tmp_path):
    """A second name of a file has no bytes of its own."""
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, content in samples(6).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("s9.png")
        link.type, link.linkname = tarfile.LNKTYPE, "s3.png"
        archive.addfile(link)
        label = tarfile.TarInfo("s9.cls")
        label.size = 1
        archive.addfile(label, io.BytesIO(b"b"))
    data = from_shards(tmp_path / "t.tar", 4, TFMS, tar(tmp_path / "v.tar", samples(2)))
    assert dict(zip(data.trn_ds.fnames, numbers_of(data.trn_ds), strict=True))["t.tar/s9.png"] == 3


def test_labels_of_json_and_numbers(tmp_path):
    def label(i):
        return json.dumps({"n": i % 2, "species": "yx"[i % 2]}).encode()

    val = tar(tmp_path / "v.tar", samples(4, "json", label))
    trn = tar(tmp_path / "t.tar", samples(6, "json", label))
    data = from_shards(trn, 4, TFMS, val, label="json:species")
    assert (data.classes, data.trn_y.tolist()) == (["x", "y"], [1, 0] * 3)
    data = from_shards(trn, 4, TFMS, val, label="json:n", classes=["zebra", "ape"])
    assert (data.classes, data.val_y.tolist()) == (["zebra", "ape"], [0, 1] * 2)
    with pytest.raises(
        LabelError, match=r"s0\.json has no 'cls' or 'class' or 'label' among 'n', 'species'\. .*json:field"
    ):
        from_shards(trn, 4, TFMS, val)
    with pytest.raises(LabelError, match="has no 'weight' among 'n', 'species'"):
        from_shards(trn, 4, TFMS, val, label="json:weight")
    with pytest.raises(LabelError, match=r"6 images of train have the label 'x', 'y', which is none of"):
        from_shards(trn, 4, TFMS, val, label="json:species", classes=["zebra", "ape"])


def test_several_labels_and_numbers_to_predict(tmp_path):
    several = tar(tmp_path / "s.tar", samples(6, "json", lambda i: json.dumps(["a", "b", "c"][: i % 3 + 1]).encode()))
    data = from_shards(several, 4, TFMS, shutil.copy(several, tmp_path / "v.tar"))
    assert data.is_multi
    assert data.trn_y.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]] * 2
    ages = tar(tmp_path / "r.tar", samples(6, "txt", lambda i: f"{i / 4}\n".encode()))
    data = from_shards(ages, 4, TFMS, shutil.copy(ages, tmp_path / "w.tar"), continuous=True)
    assert data.is_reg
    assert data.trn_y.ravel().tolist() == [i / 4 for i in range(6)]


def test_samples_that_lack_something(tmp_path):
    members = samples(8)
    del members["s2.cls"]
    with pytest.raises(LabelError, match=r"1 of 8 images of train have no label, first t\.tar/s2\.png"):
        from_shards(tar(tmp_path / "t.tar", members), 4, TFMS, tar(tmp_path / "v.tar", samples(4)))
    members = samples(8) | {"alone.cls": b"a"}
    with pytest.warns(UserWarning, match=r"1 sample\(s\) of the archives have no image"):
        data = from_shards(tar(tmp_path / "t.tar", members), 4, TFMS, tmp_path / "v.tar")
    assert len(data.trn_ds) == 8
    assert data.trn_ds.ignored["samples without an image"] == 1
    with pytest.raises(LabelError, match="samples must have a label in a file"):
        from_shards(tar(tmp_path / "t.tar", {"s.png": png(1)}), 4, TFMS, tmp_path / "v.tar")


@pytest.mark.parametrize(
    ("members", "match"),
    [
        (samples(4) | {"s1.PNG": png(9)}, r"s1 has two files \.png, the second s1\.PNG\. .* rename one"),
        (samples(4) | {"s1.jpg": png(9)}, r"1 sample\(s\) have several images: s1: .*image='jpg'"),
        (samples(4) | {"../s9.png": png(9)}, "a name must not hold"),
        ({}, "there is no image|samples must have a label"),
    ],
)
def test_archives_that_are_refused(tmp_path, members, match):
    with pytest.raises((DataError, LabelError), match=match):
        from_shards(tar(tmp_path / "t.tar", members), 4, TFMS)


def test_compressed_and_sparse_archives(tmp_path):
    file = tar(tmp_path / "t.tar", samples(4))
    (tmp_path / "t.tar.gz").write_bytes(gzip.compress(file.read_bytes()))
    with pytest.raises(DataError, match=r"t\.tar\.gz is compressed, .*run gunzip t\.tar\.gz, and pass the \.tar file"):
        from_shards(tmp_path / "t.tar.gz", 4, TFMS)
    block = bytearray(file.read_bytes())
    info = tarfile.TarInfo("hole.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "sparse.tar").write_bytes(header + block)
    with pytest.raises(DataError, match=r"hole\.png is stored sparse.*without --sparse"):
        from_shards(tmp_path / "sparse.tar", 4, TFMS)
    (tmp_path / "text.tar").write_text("no archive" * 200)
    with pytest.raises(DataError, match=r"text\.tar is no tar archive, or is damaged"):
        from_shards(tmp_path / "text.tar", 4, TFMS)


def test_archives_that_are_cut_off(tmp_path, rng):
    """At any byte before the end mark it is an error or, at the end of a file, a warning."""
    content = tar(tmp_path / "t.tar", samples(6)).read_bytes()
    last = len(content.rstrip(b"\0"))
    end = -(-last // 512) * 512
    for at in [*rng.integers(1, last, 20).tolist(), 512, end - 1]:
        (tmp_path / "cut.tar").write_bytes(content[:at])
        with pytest.raises((DataError, LabelError, UserWarning), match=r"cut off|no end mark|no tar archive"):
            from_shards(tmp_path / "cut.tar", 4, TFMS)
    (tmp_path / "cut.tar").write_bytes(content[:end])
    with pytest.warns(UserWarning, match=r"cut\.tar has no end mark: it may have been cut off after its last file"):
        from_shards(tmp_path / "cut.tar", 4, TFMS)
    (tmp_path / "two.tar").write_bytes(content + content)
    with pytest.raises(DataError, match="goes on after its end mark"):
        from_shards(tmp_path / "two.tar", 4, TFMS)


def test_archives_that_change(tmp_path):
    """Other pixels in the same places are decoded anew; other files are an error that names the images."""
    val = tar(tmp_path / "v.tar", samples(4))
    members = samples(6)
    data = from_shards(tar(tmp_path / "t.tar", members), 4, TFMS, val)
    before = torch.cat([x for x, _ in data.fix_dl])
    swapped = members | {"s4.png": members["s5.png"], "s5.png": members["s4.png"]}
    assert len(members["s4.png"]) == len(members["s5.png"])
    tar(tmp_path / "t.tar", swapped)
    after = torch.cat([x for x, _ in data.fix_dl])
    assert torch.equal(after[[0, 1, 2, 3, 5, 4]], before)
    tar(tmp_path / "t.tar", samples(3) | {"more.png": png(9), "more.cls": b"a"})
    with pytest.raises(BadImageError, match="other files or labels are in its archive now; make the data anew"):
        list(data.fix_dl)


def test_bad_images_are_named_and_skipped(tmp_path):
    members = samples(8) | {"s3.png": bad_files()["half.png"][0]}
    trn, val = tar(tmp_path / "train-0.tar", members), tar(tmp_path / "v.tar", samples(4))
    with pytest.raises(BadImageError, match=r"1 of 12 images .*train-0\.tar/s3\.png: damaged or truncated PNG"):
        from_shards(trn, 4, TFMS, val).scan()
    data = from_shards(trn, 4, TFMS, val, on_bad="skip")
    assert sum(len(x) for x, _ in data.fix_dl) == 7


def test_files_that_are_not_there(tmp_path):
    tar(tmp_path / "t-1.tar", samples(4))
    with pytest.raises(FileNotFoundError, match=r"from_shards: train: 2 of 3 files are not there, first .*t-0\.tar"):
        from_shards(tmp_path / "t-{0..2}.tar", 4, TFMS)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        from_shards(tmp_path / "u-*.tar", 4, TFMS)
    with pytest.raises(ValueError, match="must name each file once"):
        from_shards(tmp_path / "t-1.tar", 4, TFMS, tmp_path / "t-*.tar")
    with pytest.raises(ValueError, match="must be files of this machine"):
        from_shards("s3://bucket/t.tar", 4, TFMS)


def test_chosen_rows_and_groups(tmp_path):
    trn = tar(tmp_path / "t.tar", samples(12, key="p{}"))
    data = from_shards(trn, 4, TFMS, val_idxs=[3, 8])
    assert numbers_of(data.val_ds) == [3, 8]
    data = from_shards(trn, 4, TFMS, groups=lambda name: int(name.rpartition("/p")[2].split(".")[0]) // 2)
    held_out = numbers_of(data.val_ds)
    assert len(held_out) == 2
    assert held_out[0] // 2 == held_out[1] // 2
    with pytest.raises(ValueError, match="val_idxs choose validation rows, and there are some already"):
        from_shards(trn, 4, TFMS, tar(tmp_path / "v.tar", samples(2, key="v{}")), val_idxs=[1])
    with pytest.raises(LabelError, match="'b' occur in validation rows only"):
        from_shards(trn, 4, TFMS, val_idxs=[1, 3, 5, 7, 9, 11])


def test_archives_that_webdataset_writes(tmp_path):
    """Names, labels and metadata as its own writer packs them."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%02d.tar"), maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"a/s{i:04d}", "png": png(i), "cls": i % 2, "json": {"species": "xy"[i % 2]}})
    data = from_shards(tmp_path / "w-{00..02}.tar", 4, TFMS, val_idxs=[4, 9])
    assert (numbers_of(data.trn_ds), numbers_of(data.val_ds)) == ([0, 1, 2, 3, 5, 6, 7, 8], [4, 9])
    assert (data.classes, data.val_y.tolist()) == (["0", "1"], [0, 1])
    assert data.val_ds.fnames[0] == "w-01.tar/a/s0004.png"
    data = from_shards(tmp_path / "*.tar", 4, TFMS, label="json:species", val_idxs=[4, 9])
    assert data.classes == ["x", "y"]
