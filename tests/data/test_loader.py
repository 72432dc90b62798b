"""The loaders: order, last batch, repeatability, and batches that stay what they are."""

import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
from devices import on_both_devices

from fastclf import (
    CropType,
    Cutout,
    RandomBlur,
    RandomDihedral,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    ops,
    tfms_from_stats,
    transforms_side_on,
)
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode import renderer
from fastclf.data.decode.gpu_tuning import Tuning
from fastclf.data.image import open_image

STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
EVERYTHING = [
    RandomRotate(20),
    RandomStretch(0.2),
    RandomDihedral(),
    RandomLighting(0.2, 0.2),
    RandomBlur(2),
    Cutout(1, 4),
]
LOADERS = ("trn_dl", "fix_dl", "val_dl", "aug_dl", "test_dl", "test_aug_dl")


@pytest.fixture
def make(folders):
    def make(bs=5, **options):
        tfms = tfms_from_stats(STATS, 24, options.pop("augs", transforms_side_on), 1.2, options.pop("pad", 0))
        return ImageClassifierData.from_paths(folders, bs, tfms, **options)

    return make


def epoch_of(dl, epoch):
    batches = list(dl.batches(epoch))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_six_loaders(make):
    data = make()
    trn, val = data.tfms
    expected = [(trn, 12, True), (val, 12, False), (val, 8, False), (trn, 8, False), (val, 5, False), (trn, 5, False)]
    for name, (tfms, n, shuffle) in zip(LOADERS, expected, strict=True):
        dl = getattr(data, name)
        assert (dl.tfms, dl.n, dl.bs, dl.shuffle, len(dl)) == (tfms, n, 5, shuffle, math.ceil(n / 5)), name
        x, y = epoch_of(dl, 0)
        assert (x.shape, x.dtype, x.device.type) == ((n, 3, 24, 24), torch.float32, data.device.type), name
        assert y.dtype == torch.int64, name
        np.testing.assert_array_equal(y, dl.ds.y[dl.order(0)])
        if not shuffle:
            np.testing.assert_array_equal(dl.order(7), np.arange(n))


@on_both_devices
def test_every_row_is_served_once_whatever_the_last_batch(make):
    for bs in (1, 5, 6, 7, 12):
        data = make(bs)
        sizes = [len(x) for x, _ in data.fix_dl]
        assert sizes == [bs] * (12 // bs) + [12 % bs] * (12 % bs > 0)
        assert len(data.fix_dl) == len(sizes)


@on_both_devices
def test_a_last_training_batch_of_one_is_dropped(make):
    data = make(11)
    assert [len(x) for x, _ in data.trn_dl] == [11]
    assert len(data.trn_dl) == 1
    assert [len(x) for x, _ in data.fix_dl] == [11, 1]


def test_a_loader_counts_its_epochs(make):
    dl = make().trn_dl
    first, second = ([x for x, _ in dl] for _ in range(2))
    for batches, epoch in ((first, 0), (second, 1)):
        assert torch.equal(torch.cat(batches), epoch_of(dl, epoch)[0])


def test_order_and_augmentations_are_new_in_every_epoch(make):
    dl = make().trn_dl
    orders = [dl.order(epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    by_row = [epoch_of(dl, epoch)[0][np.argsort(dl.order(epoch))] for epoch in range(2)]
    for row in range(12):
        assert not torch.equal(by_row[0][row], by_row[1][row])


def test_augmentations_differ_between_rows(tmp_path, rng):
    x = np.repeat(rng.integers(0, 256, (1, 30, 30, 3), dtype=np.uint8), 8, axis=0)
    data = ImageClassifierData.from_arrays(
        tmp_path, (x, np.arange(8) % 2), (x, np.arange(8) % 2), 4, tfms_from_stats(STATS, 16, transforms_side_on)
    )
    seen = [row.numpy().tobytes() for name in ("trn_dl", "aug_dl") for row in epoch_of(getattr(data, name), 0)[0]]
    assert len(set(seen)) == 16


def inverted(x, u):
    return torch.where(u[:, 0, None, None, None] < 0.5, x, 1 - x)


@pytest.mark.parametrize("augs", [transforms_side_on, [*transforms_side_on, inverted], EVERYTHING])
@pytest.mark.parametrize("crop", list(CropType))
def test_threads_prefetch_and_batches_do_not_matter(folders, crop, augs, monkeypatch):
    """In the native renderer, in that and torch, and in DALI's graph."""
    tfms = tfms_from_stats(STATS, 24, augs, 1.3, 2, crop)
    made = []
    for threads, ahead, bs in ((1, 0, 5), (2, 2, 5), (2, 1, 3)):
        monkeypatch.setattr(renderer, "AHEAD", ahead)
        monkeypatch.setattr(renderer, "Tuning", partial(Tuning, ahead=ahead))
        data = ImageClassifierData.from_paths(folders, bs, tfms, num_workers=threads)
        made.append([epoch_of(getattr(data, name), 1) for name in LOADERS])
    for other in made[1:]:
        for (x, y), (other_x, other_y) in zip(made[0], other, strict=True):
            assert torch.equal(x, other_x)
            assert torch.equal(y, other_y)


def test_seed_decides(make):
    first, same, other = (epoch_of(make(seed=seed).trn_dl, 0)[0] for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@on_both_devices
def test_a_batch_is_never_overwritten(make):
    dl = make(3).aug_dl
    held = [(x, x.clone()) for epoch in range(4) for x, _ in dl.batches(epoch)]
    assert len({x.data_ptr() for x, _ in held}) == len(held)
    for x, copy in held:
        assert torch.equal(x, copy)
    held[0][0].zero_()  # a batch may be written to
    for x, copy in held[1:]:
        assert torch.equal(x, copy)


def test_memory_of_a_batch_is_used_again_only_when_nobody_holds_it(make):
    dl = make(4).fix_dl
    whole, epoch = epoch_of(dl, 0)[0], dl.batches(0)
    part = next(epoch)[0][1:2].numpy()  # neither the batch nor its tensor is held
    for x, _ in [*epoch, *dl.batches(0)]:
        assert not np.shares_memory(x.numpy(), part)
    np.testing.assert_array_equal(part, whole[1:2])


def test_epochs_may_be_left_early_and_run_at_once(make):
    dl = make(3).trn_dl
    whole = epoch_of(dl, 0)[0]
    for x, _ in dl.batches(0):
        assert torch.equal(x, whole[:3])
        break
    for (a, _), (b, _) in zip(dl.batches(0), dl.batches(1), strict=True):
        assert not torch.equal(a, b)
    assert torch.equal(epoch_of(dl, 0)[0], whole)


def test_an_image_by_itself_equals_the_loaders(make):
    data = make()
    for name in ("val_dl", "test_dl"):
        dl = getattr(data, name)
        x = epoch_of(dl, 0)[0]
        alone = [data.tfms[1](open_image(dl.ds.path / fn)) for fn in dl.ds.fnames]
        np.testing.assert_allclose(x, np.stack(alone), atol=5e-6)
        shown = dl.ds.denorm(x)
        assert shown.shape == (len(x), 24, 24, 3)
        np.testing.assert_allclose(shown[0], data.tfms[1].denorm(alone[0]), atol=5e-6)


def test_images_in_arrays_equal_images_in_files(folders, make):
    files = make().val_dl
    names = files.ds.fnames
    same_size = [name for name in names if name.endswith("0.png")]
    x = np.stack([np.rint(open_image(folders / name) * 255).astype(np.uint8) for name in same_size])
    tfms = tfms_from_stats(STATS, 24)
    rows = [names.index(name) for name in same_size]
    for images in (x, (x / 255).astype(np.float32)):
        data = ImageClassifierData.from_arrays(folders, (images, [0, 1]), (images, [0, 1]), 2, tfms)
        np.testing.assert_allclose(epoch_of(data.val_dl, 0)[0], epoch_of(files, 0)[0][rows], atol=5e-6)


def test_grey_arrays_are_expanded(tmp_path, rng):
    x = rng.integers(0, 256, (4, 20, 20, 1), dtype=np.uint8)
    y = [0, 1, 0, 1]
    tfms = tfms_from_stats(STATS, 16)
    one, three = (ImageClassifierData.from_arrays(tmp_path, (v, y), (v, y), 4, tfms) for v in (x, x.repeat(3, axis=3)))
    assert torch.equal(epoch_of(one.val_dl, 0)[0], epoch_of(three.val_dl, 0)[0])


def test_nothing_is_started_before_the_first_batch(make):
    before = threading.active_count()
    data = make()
    assert all(not getattr(data, name)._idle for name in LOADERS)
    next(iter(data.val_dl))
    assert threading.active_count() == before  # DALI's threads are not Python's


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("mapped", [True, False])
def test_rows(tmp_path, rng, dtype, mapped):
    x, y = rng.standard_normal((23, 7)).astype(dtype), rng.permutation(np.arange(23) % 3)
    if mapped:
        np.save(tmp_path / "x.npy", x)
    given = tmp_path / "x.npy" if mapped else x
    data = ImageClassifierData.from_arrays(tmp_path, (given, y), (given, y), 11, test=given)
    assert data.has_rows
    assert data.sz is None
    assert data.tfms is None
    assert [len(b) for b, _ in data.trn_dl] == [11, 11]
    for name in ("fix_dl", "val_dl", "aug_dl", "test_dl", "test_aug_dl"):
        got, targets = epoch_of(getattr(data, name), 0)
        np.testing.assert_array_equal(got, x.astype(np.float32))
        np.testing.assert_array_equal(targets, y * ("test" not in name))
    order = data.trn_dl.order(3)[:22]
    got, targets = epoch_of(data.trn_dl, 3)
    np.testing.assert_array_equal(got, x[order].astype(np.float32))
    np.testing.assert_array_equal(targets, y[order])
    assert got.dtype == torch.float32
    with pytest.raises(ValueError, match="rows of activations"):
        data.trn_ds.denorm(got)


def test_images_with_rows(make, rng):
    data = make()
    rows = [rng.standard_normal((len(ds), 6)).astype(np.float16) for ds in (data.trn_ds, data.val_ds, data.test_ds)]
    cached = data.with_rows(*rows)
    assert cached.has_rows
    assert not data.has_rows
    assert (cached.classes, cached.c, cached.seed, cached.bs) == (data.classes, data.c, data.seed, data.bs)
    for epoch in range(2):
        np.testing.assert_array_equal(cached.trn_dl.order(epoch), data.trn_dl.order(epoch))
    x, y = epoch_of(cached.val_dl, 0)
    assert torch.equal(x, ops.gather_rows(rows[1], np.arange(8)))
    np.testing.assert_array_equal(y, data.val_y)
    assert data.with_rows(*rows[:2]).test_dl is None


def test_shuffling_mixes_the_classes(tmp_path):
    """Rows sorted by class: every batch must hold about its share of each."""
    y = np.arange(4000) // 1000
    data = ImageClassifierData.from_arrays(tmp_path, (np.zeros((4000, 2)), y), (np.zeros((4, 2)), np.arange(4)), 400)
    for epoch in range(3):
        for _, targets in data.trn_dl.batches(epoch):
            assert np.abs(np.bincount(targets, minlength=4) - 100).max() < 45
