"""The pass over images: interrupted and gone on with, images that cannot be decoded or that change meanwhile."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from devices import GPU
from helpers import image_data, three_colours, tiny_learner
from PIL import Image
from processes import PATIENCE

from fastclf import CropType, ImageClassifierData
from fastclf.activations import segment
from fastclf.activations.fill import places_for
from fastclf.activations.precompute import InOrder, _features, activations
from fastclf.data import transfer
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Source, Version
from fastclf.errors import ActivationFileError, BadImageError
from fastclf.models.net import Net
from fastclf.models.precision import autocast

N = 36  # training images, in batches of 8


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "data")


class Features:
    """Counts the images that a body sees, and may do something at one of its calls."""

    def __init__(self, monkeypatch, at=0, do=None):
        self.images = self.calls = 0
        real = Net.features

        def features(net, x):
            self.calls += 1
            if self.calls == at:
                do()
            self.images += len(x)
            return real(net, x)

        monkeypatch.setattr(Net, "features", features)


def computed(data, learn=None, views=1, dl=None):
    learn = learn or tiny_learner(data)
    return activations(
        learn.model, dl or data.fix_dl, places_for(data.path / "tmp"), dtype="float32", what="train", views=views
    )


def expected(learn, dl, epochs=1):
    learn.model.eval()
    with torch.no_grad(), autocast(dl.device):
        parts = [learn.model.features(x) for epoch in range(epochs) for x, _ in dl.batches(epoch)]
    return torch.cat(parts).float().cpu().numpy()


def raise_interrupt():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("behind", [0, 1, 3, 99])
def test_batches_that_are_given_later_are_the_same(folder, behind):
    """As on a GPU, where a batch returns while the next one runs."""
    data = image_data(folder, bs=8)
    learn = tiny_learner(data)
    learn.model.eval()
    real, started, ahead, found = learn.model.features, [], [], []

    def features(x):
        started.append(len(x))
        return real(x)

    learn.model.features = features
    for number, (values, rows) in enumerate(_features(learn.model, InOrder(data.fix_dl), 0, behind=behind), 1):
        ahead.append(len(started) - number)
        found.append((values, rows))
    assert np.concatenate([rows for _, rows in found]).tolist() == list(range(N))
    assert max(ahead) == min(behind, len(found) - 1)
    np.testing.assert_allclose(np.concatenate([values for values, _ in found]), expected(learn, data.fix_dl), rtol=1e-5)


@pytest.mark.parametrize(
    ("bs", "in_flight", "default_device"),
    [(8, 0, "cpu"), (5, 0, "cpu"), (5, 2, "cpu"), pytest.param(5, 2, "cuda", marks=GPU.marks)],
    indirect=["default_device"],
)
def test_an_interrupted_pass_goes_on_where_it_stopped(folder, monkeypatch, bs, in_flight, default_device):
    monkeypatch.setattr(transfer, "in_flight", lambda device: in_flight)  # as on a GPU
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Features(patch, 3 + in_flight, raise_interrupt)
        computed(image_data(folder))
    data = image_data(folder, bs=bs)  # other batches do not matter
    learn = tiny_learner(data)
    with monkeypatch.context() as patch:
        seen = Features(patch)
        rows = computed(data, learn)
        assert seen.images == N - 2 * 8
    error = 1e-5 if default_device.type == "cpu" else 0.03  # bf16 has 8 bits, and batches are others
    np.testing.assert_allclose(rows, expected(learn, data.fix_dl), rtol=error, atol=error)


STOPPED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from helpers import image_data, tiny_learner
from fastclf.models.net import Net
calls, real = [], Net.features
def features(net, x):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), {number})
    return real(net, x)
Net.features = features
tiny_learner(image_data({folder!r}), precompute=True, act_dtype="float32")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pass_that_is_killed_goes_on_where_it_stopped(folder, monkeypatch, number):
    pytest.importorskip("nvidia.dali")
    code = STOPPED.format(tests=str(Path(__file__).parents[1]), number=int(number), folder=str(folder))
    ended = subprocess.run([sys.executable, "-c", code], timeout=PATIENCE, capture_output=True, text=True, check=False)
    assert ended.returncode == (-9 if number == signal.SIGKILL else 143), ended.stderr
    data = image_data(folder)
    seen = Features(monkeypatch)
    rows = computed(data)
    assert seen.images == N - 3 * 8
    assert rows.shape == (N, 12)


def test_views_are_what_the_loader_serves_epoch_by_epoch_also_when_interrupted(folder, monkeypatch):
    data = image_data(folder)
    learn = tiny_learner(data)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Features(patch, 6, raise_interrupt)  # within the second view
        computed(data, learn, 3, data.aug_dl)
    with monkeypatch.context() as patch:
        seen = Features(patch)
        rows = computed(data, learn, 3, data.aug_dl)
        assert seen.images == 3 * 18 - (18 + 8 + 8)
    np.testing.assert_allclose(rows, expected(learn, data.aug_dl, 3), rtol=1e-5, atol=1e-6)
    train = computed(data, learn, 2, data.trn_dl)  # in data set order, though trn_dl shuffles
    data.trn_dl.shuffle = False
    np.testing.assert_allclose(train, expected(learn, data.trn_dl, 2), rtol=1e-5, atol=1e-6)


def test_what_a_row_depends_on_beside_its_image(folder, monkeypatch):
    seen = Features(monkeypatch)

    def new(views, **kwargs):
        before, data = seen.images, image_data(folder, **kwargs)
        computed(data, views=views, dl=data.trn_dl)
        return seen.images - before

    assert new(2) == 2 * N
    assert new(2) == 0
    assert new(3) == N  # those of two views are there
    assert new(2, seed=7) == 2 * N
    assert new(2, sz=20) == 2 * N
    assert new(2, bs=5) == 0
    assert new(2, augs=()) == 2 * N  # training crops are random, too
    assert new(1, augs=(), crop_type=CropType.NO) == N
    assert new(2, augs=(), crop_type=CropType.NO) == 0  # both views are the same
    assert len(list((folder / "tmp" / "activations").iterdir())) == 4


class Counted:
    """A learner's rows, and how many images its body has seen."""

    def __init__(self, monkeypatch):
        self.seen = Features(monkeypatch)

    def __call__(self, data):
        before, learn = self.seen.images, tiny_learner(data, precompute=True, act_dtype="float32")
        for ds, dl in ((learn.data.trn_ds, data.fix_dl), (learn.data.val_ds, data.val_dl)):
            new = self.seen.images
            np.testing.assert_allclose(ds.rows, expected(learn, dl), rtol=1e-5, atol=1e-6)
            before += self.seen.images - new
        return self.seen.images - before


def test_only_images_that_nobody_has_seen_are_computed(folder, monkeypatch):
    """Splits, folds, names, places, labels and sets do not matter; what is in the store does."""
    new, total = Counted(monkeypatch), N + 18
    assert new(image_data(folder, test_name=None)) == total
    assert new(image_data(folder, test_name="test")) == 5
    for place, n in ((folder / "train" / "red", 4), (folder / "valid" / "blue", 3)):
        for i in range(n):
            pixels = np.random.default_rng(n * 10 + i).integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"new{i}.png")
    assert new(image_data(folder)) == 7
    for i, image in enumerate(sorted((folder / "train" / "green").iterdir())[:6]):  # another split, other names
        image.rename(folder / "valid" / "green" / f"moved{i}.png")
    (folder / "train" / "blue" / "003.png").rename(folder / "train" / "red" / "blue.png")  # and another label
    assert new(image_data(folder)) == 0
    shutil.copy(folder / "valid" / "red" / "001.png", folder / "train" / "red" / "again.png")
    shutil.copy(folder / "valid" / "red" / "001.png", folder / "train" / "red" / "twice.png")
    assert new(image_data(folder)) == 0
    folder.rename(folder.with_name("elsewhere"))
    moved = folder.with_name("elsewhere")
    assert new(image_data(moved)) == 0
    assert (
        new(ImageClassifierData.from_paths(moved, 8, image_data(moved).tfms, trn_name="valid", val_name="train")) == 0
    )
    assert len(list((moved / "tmp" / "activations").iterdir())) == 1


def test_arrays_are_known_by_their_values_and_never_taken_for_files(tmp_path, rng, monkeypatch):
    x = rng.integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    y = np.arange(12) % 3
    new, tfms = Counted(monkeypatch), image_data(three_colours(tmp_path / "x")).tfms

    def data(x, y):
        return ImageClassifierData.from_arrays(tmp_path, (x, y), (x[:3], y[:3]), bs=4, tfms=tfms)

    assert new(data(x, y)) == 12
    assert new(data(x[::-1], y[::-1])) == 0
    assert new(data(x.reshape(12, 24, 20, 3), y)) == 12  # the same bytes
    source = ArraySource(tmp_path, x)
    assert len({source.digest(0), Encoded(tmp_path, source.read(0)).digest(0)}) == 2


class Encoded(Source):
    """One image of the user's own, which `stat` tells nothing about."""

    def __init__(self, root, content):
        super().__init__(root, ["x"])
        self.content = content

    def stat(self, row):
        return Version(len(self.content), 0, 0)

    def read(self, row):
        return self.content


@pytest.mark.parametrize("changed", [False, True])
def test_an_image_is_read_for_its_key_once_and_again_when_it_has_changed(folder, monkeypatch, changed):
    for image in folder.rglob("*.png"):
        os.utime(image, ns=(1, 1))
    later = time.time() + 10
    monkeypatch.setattr(time, "time_ns", lambda: int(later * 1e9))  # later than any tick of the clock
    computed(image_data(folder))
    read, real = [], FileSource.digest
    monkeypatch.setattr(FileSource, "digest", lambda self, row: read.append(self.name(row)) or real(self, row))
    if changed:
        os.utime(folder / "train/blue/000.png", ns=(2, 2))
    seen = Features(monkeypatch)
    computed(image_data(folder))
    assert read == ["train/blue/000.png"] * changed
    assert seen.images == 0


def test_an_image_that_has_just_been_written_is_read_again(folder, monkeypatch):
    """Within one tick of the clock, two versions look the same."""
    monkeypatch.setattr(time, "time_ns", lambda: max(file.stat().st_ctime_ns for file in folder.rglob("*.png")) + 1)
    computed(image_data(folder))
    read, real = [], FileSource.digest
    monkeypatch.setattr(FileSource, "digest", lambda self, row: read.append(row) or real(self, row))
    computed(image_data(folder))
    assert len(read) == N


def test_digests_that_a_weaker_hash_would_give_twice_differ(tmp_path):
    """Two files with the same MD5 and the same length (Wang and Yu, 2005), as prefixes of anything."""
    one = bytes.fromhex(
        "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a"
        "085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
        "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
    )
    other = bytearray(one)
    for at in (19, 45, 59, 83, 109, 123):
        other[at] ^= 0x80
    assert hashlib.md5(one).digest() == hashlib.md5(other).digest()
    assert Encoded(tmp_path, one).digest(0) != Encoded(tmp_path, bytes(other)).digest(0)


def spoil(folder, name="train/red/003.png"):
    (folder / name).write_bytes(b"\x89PNG\r\n")


def test_images_that_are_skipped_have_zeros_and_are_never_served(folder, monkeypatch, capsys):
    spoil(folder)
    spoil(folder, "train/red/011.png")  # the last one
    bad = [27, 35]
    data = image_data(folder, on_bad="skip")
    learn = tiny_learner(data)
    rows = np.asarray(computed(data, learn, 2, data.trn_dl))
    assert sorted(data.trn_ds.bad.reasons) == bad
    assert set(np.flatnonzero((rows == 0).all(axis=1))) == {27, 35, N + 27, N + 35}
    good = np.setdiff1d(np.arange(N), bad)
    data.trn_dl.shuffle = False
    np.testing.assert_allclose(
        rows[np.concatenate([good, N + good])], expected(learn, data.trn_dl, 2), rtol=1e-5, atol=1e-6
    )
    # Another process, which has not scanned them, computes nothing.
    again = image_data(folder, on_bad="skip")
    monkeypatch.setattr(Net, "features", None)
    computed(again, learn, 2, again.trn_dl)
    assert sorted(again.trn_ds.bad.reasons) == bad
    strict = image_data(folder)
    with pytest.raises(BadImageError, match=r"003\.png"):
        computed(strict, learn, 2, strict.trn_dl)


def test_an_image_that_was_repaired_is_computed(folder):
    image = folder / "train/red/003.png"
    good, stat = image.read_bytes(), image.stat()
    image.write_bytes(bytes(len(good)))
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    data = image_data(folder, on_bad="skip")
    assert not computed(data)[27].any()
    image.write_bytes(good)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time say nothing
    again = image_data(folder, on_bad="skip")
    assert computed(again)[27].any()
    assert not again.trn_ds.bad.reasons


def test_an_error_names_the_image_and_keeps_what_is_done(folder, monkeypatch):
    data, learn = image_data(folder), tiny_learner(image_data(folder))
    with monkeypatch.context() as patch, pytest.raises(BadImageError, match=r"003\.png"):
        Features(patch, 2, lambda: spoil(folder))
        computed(data, learn)
    seen = Features(monkeypatch)
    computed(image_data(folder, on_bad="skip"))
    assert seen.images < N - 8  # the batches before were kept


def test_images_that_change_during_the_pass_are_computed_again(folder, monkeypatch, capsys):
    image = folder / "train/blue/000.png"

    def change():
        image.write_bytes((folder / "train/red/000.png").read_bytes())

    data = image_data(folder)
    learn = tiny_learner(data)
    with monkeypatch.context() as patch:
        Features(patch, 3, change)
        rows = computed(data, learn)
    np.testing.assert_allclose(rows, expected(learn, data.fix_dl), rtol=1e-5, atol=1e-6)
    assert "images were changed while" in capsys.readouterr().out
    assert len(list((folder / "tmp" / "activations").iterdir())) == 1


def test_images_that_never_stop_changing_are_an_error(folder, monkeypatch):
    real, calls = Net.features, []

    def features(net, x):
        calls.append(1)
        os.utime(folder / "train/blue/000.png", ns=(len(calls), len(calls)))
        return real(net, x)

    monkeypatch.setattr(Net, "features", features)
    with pytest.raises(ActivationFileError, match="images were changed"):
        computed(image_data(folder))


def test_a_flipped_bit_on_the_disk_is_found_and_repaired(folder, rng, monkeypatch):
    rows = np.array(computed(image_data(folder)))
    (file,) = (folder / "tmp" / "activations").glob("*/*/rows.bin")
    data = bytearray(file.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    segment._checked.clear()
    seen = Features(monkeypatch)
    np.testing.assert_array_equal(computed(image_data(folder)), rows)
    assert seen.images in (4, 8)  # the block alone
