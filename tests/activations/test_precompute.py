"""The pass over images: interrupted and gone on with, images that cannot be decoded or that change meanwhile."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_data, three_colours, tiny_learner

from fastclf.activations.fill import places_for
from fastclf.activations.precompute import _features, _InOrder, activations
from fastclf.errors import ActivationFileError, BadImageError
from fastclf.models.net import Net

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
    with torch.no_grad():
        return torch.cat([learn.model.features(x) for epoch in range(epochs) for x, _ in dl.batches(epoch)]).numpy()


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
    for number, (values, rows) in enumerate(_features(learn.model, _InOrder(data.fix_dl, 0), 0, behind=behind), 1):
        ahead.append(len(started) - number)
        found.append((values, rows))
    assert np.concatenate([rows for _, rows in found]).tolist() == list(range(N))
    assert max(ahead) == min(behind, len(found) - 1)
    np.testing.assert_allclose(np.concatenate([values for values, _ in found]), expected(learn, data.fix_dl), rtol=1e-5)


@pytest.mark.parametrize("bs", [8, 5])
def test_an_interrupted_pass_goes_on_where_it_stopped(folder, monkeypatch, bs):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        Features(patch, 3, raise_interrupt)
        computed(image_data(folder))
    data = image_data(folder, bs=bs)  # other batches do not matter
    learn = tiny_learner(data)
    with monkeypatch.context() as patch:
        seen = Features(patch)
        rows = computed(data, learn)
        assert seen.images == N - 2 * 8
    np.testing.assert_allclose(rows, expected(learn, data.fix_dl), rtol=1e-5, atol=1e-6)


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
    ended = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True, check=False)
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


def test_the_key_covers_views_seed_and_training_transforms(folder):
    def files():
        return set((folder / "tmp" / "activations").iterdir())

    def new(views, **kwargs):
        before = files() if (folder / "tmp").exists() else set()
        data = image_data(folder, **kwargs)
        computed(data, views=views, dl=data.trn_dl)
        return len(files() - before)

    assert new(2) == 1
    assert new(2) == 0
    assert new(3) == 1
    assert new(2, seed=7) == 1
    assert new(2, augs=()) == 1
    assert new(2, sz=20) == 1
    assert new(2, bs=5) == 0


def spoil(folder, name="train/red/003.png"):
    (folder / name).write_bytes(b"\x89PNG\r\n")


def test_images_that_are_skipped_have_zeros_and_are_never_served(folder, monkeypatch, capsys):
    spoil(folder)
    spoil(folder, "train/red/011.png")  # the last one
    bad = [27, 35]
    data = image_data(folder, on_bad="skip")
    learn = tiny_learner(data)
    rows = computed(data, learn, 2, data.trn_dl)
    assert sorted(data.trn_ds.bad.reasons) == bad
    assert set(np.flatnonzero((rows == 0).all(axis=1))) == {27, 35, N + 27, N + 35}
    good = np.setdiff1d(np.arange(N), bad)
    data.trn_dl.shuffle = False
    np.testing.assert_allclose(
        rows[np.concatenate([good, N + good])], expected(learn, data.trn_dl, 2), rtol=1e-5, atol=1e-6
    )
    # Another process, which has not scanned them, learns it from the file.
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
    spoil(folder)
    with pytest.raises(BadImageError, match=r"003\.png"):
        computed(image_data(folder))
    seen = Features(monkeypatch)
    with pytest.raises(BadImageError, match=r"003\.png"):
        computed(image_data(folder))
    assert seen.images == 0  # the batches before were kept


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


def test_a_flipped_bit_on_the_disk_is_found_and_repaired(folder, rng):
    from fastclf.activations import store

    rows = np.array(computed(image_data(folder)))
    (file,) = (folder / "tmp" / "activations").glob("*/rows.bin")
    data = bytearray(file.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    store._checked.clear()
    np.testing.assert_array_equal(computed(image_data(folder)), rows)
