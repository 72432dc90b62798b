"""Images that stay decoded: the memory's bookkeeping, and loaders that use it, here in the processor's memory."""

import copy
import gc
import os
import pickle
import tarfile
import weakref

import numpy as np
import pytest
import torch
from devices import GPU
from helpers import image_data, packed_data, three_colours, tiny_learner, write_images
from PIL import Image

from fastclf import ImageClassifierData, RandomBlur, RandomFlip, RandomLighting, RandomRotate, tfms_from_stats
from fastclf.data import data_loaders
from fastclf.data.decode import kept_images
from fastclf.data.decode.graphs import DecodePipeline
from fastclf.data.decode.kept_images import ImageMemory
from fastclf.data.sources.source import Version
from fastclf.data.validation import verified
from fastclf.errors import BadImageError
from fastclf.ops import use_backend
from fastclf.ops.crop_resize import has_crop_resize

pytestmark = pytest.mark.skipif(not has_crop_resize(torch.device("cpu")), reason="the native module is not built")

STATS = ([0.5] * 3, [0.5] * 3)
CPU = torch.device("cpu")
PLENTY = (1 << 40, 1 << 40)
ON_GPU = pytest.param("native", "cuda", marks=GPU.marks)
LOADERS = ("trn_dl", "fix_dl", "val_dl", "aug_dl", "test_dl", "test_aug_dl")
OLD, NEW = Version(1, 2, 3, 4), Version(1, 2, 9, 4)


def unlimited():
    return PLENTY


def never():
    raise AssertionError("nothing is to be decoded")


def pixels_of(rng, *size):
    return torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture
def memory_on_processor(monkeypatch):
    """Data on the processor keep images as on a GPU, whose free memory may be set; files may be new."""
    limits = [PLENTY]
    monkeypatch.setattr(data_loaders, "memory_of", lambda device: ImageMemory(device, lambda: limits[0]))
    monkeypatch.setattr(verified, "_TICK_NS", 0)
    return limits


@pytest.fixture
def decoded(monkeypatch):
    """The number of images of each batch that decoders are fed."""
    fed, feed = [], DecodePipeline.feed

    def counted(pipe, images):
        fed.append(len(images))
        feed(pipe, images)

    monkeypatch.setattr(DecodePipeline, "feed", counted)
    return fed


def epochs_of(data, n=3):
    loaders = [dl for dl in (getattr(data, name) for name in LOADERS) if dl is not None]
    return [torch.cat([x for x, _ in dl.batches(epoch)]) for epoch in range(n) for dl in loaders]


def test_an_image_of_the_same_version_is_kept(rng):
    memory, pixels = ImageMemory(CPU, unlimited), pixels_of(rng, 5, 7)
    first = memory.image("a", OLD, never)
    assert first.pixels is None
    first.keep(pixels)
    first.keep(pixels_of(rng, 5, 7))  # of another batch that was in the making: the same image
    kept = memory.image("a", OLD, never).pixels
    assert torch.equal(kept, pixels)
    assert kept.data_ptr() != pixels.data_ptr()
    for key, version in (("a", NEW), ("a", None), ("b", OLD)):
        assert memory.image(key, version, never).pixels is None
    memory.image("a", NEW, never).keep(pixels + 1)
    assert memory.image("a", OLD, never).pixels is None
    assert torch.equal(memory.image("a", NEW, never).pixels, pixels + 1)
    memory.image("b", None, never).keep(pixels)
    assert len(memory) == 1


def test_memory_that_torch_holds_for_nobody_is_free(rng, monkeypatch):
    """That of the images of other data, which are gone: after `set_data` those of the new data are kept."""
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
    memory = ImageMemory(CPU, lambda: PLENTY if freed else (0, 1 << 40))
    for name in "abc":
        memory.image(name, OLD, never).keep(pixels_of(rng, 5, 7))
    assert (len(memory), len(freed)) == (3, 1)


def test_half_of_the_memory_stays_free(rng, monkeypatch, capsys):
    """Taken in slabs; an image larger than one has its own."""
    monkeypatch.setattr(kept_images, "_SLAB", 100)
    total, taken = 1000, []

    def limits():
        return total - sum(taken), total

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def empty(n, **how):
            taken.append(n)
            return torch.empty(n, **how)

    monkeypatch.setattr(kept_images, "torch", Torch())
    memory = ImageMemory(CPU, limits)
    sizes = [(1, 10), (2, 10), (8, 10), (1, 3), (3, 10), (1, 1), (1, 2)]  # 30, 60, 240, 9, 90, 3, 6 bytes
    images = [pixels_of(rng, *size) for size in sizes]
    for i, image in enumerate(images):
        memory.image(i, OLD, never).keep(image)
    assert taken == [0, 100, 240, 100]  # one more would leave less than 500
    kept = [memory.image(i, OLD, never).pixels for i in range(len(images))]
    assert [i for i, one in enumerate(kept) if one is None] == []
    memory.image("more", OLD, never).keep(pixels_of(rng, 2, 2))
    memory.image("most", OLD, never).keep(pixels_of(rng, 2, 2))
    assert memory.image("more", OLD, never).pixels is None
    for one, image in zip(kept, images, strict=True):
        assert torch.equal(one, image)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("7 decoded images stay in the memory of cpu, half of which is left free; the others are")


def test_copies_begin_empty_and_memory_is_freed_with_its_object(rng):
    memory = ImageMemory(CPU, unlimited)
    memory.image("a", OLD, never).keep(pixels_of(rng, 4, 4))
    for other in (copy.deepcopy(memory), copy.copy(memory), pickle.loads(pickle.dumps(memory))):
        assert (len(other), len(memory)) == (0, 1)
    kept = weakref.ref(memory.image("a", OLD, never).pixels)
    del memory, other
    assert kept() is None


def test_images_are_kept_in_any_mode(rng):
    memory = ImageMemory(CPU, unlimited)
    with torch.inference_mode():
        memory.image("a", OLD, never).keep(pixels_of(rng, 4, 4))
    memory.image("b", OLD, never).keep(pixels := pixels_of(rng, 4, 4))
    with torch.inference_mode():
        memory.image("c", OLD, never).keep(pixels)
    assert torch.equal(memory.image("c", OLD, never).pixels, pixels)


@pytest.mark.usefixtures("emulated_module", "memory_on_processor")
@pytest.mark.parametrize(("backend", "device"), [("native", "cpu"), ("emulated", "cpu"), ON_GPU])
@pytest.mark.parametrize("own", [False, True])
def test_every_image_is_decoded_once(folders, decoded, backend, device, own):
    """Whatever loader asks for it; all batches are those of data that keep nothing."""
    augs = [RandomRotate(20), RandomFlip(), RandomLighting(0.2, 0.2), *([lambda x, u: 1 - x] if own else [])]
    tfms = tfms_from_stats(STATS, 24, augs, 1.3)
    with use_backend(backend):
        data, other = (
            ImageClassifierData.from_paths(folders, 5, tfms, device=device, keep_decoded=keep) for keep in (True, False)
        )
        found = epochs_of(data)
        assert sum(decoded) == 25
        decoded.clear()
        want = epochs_of(other)
        assert sum(decoded) == 3 * 2 * 25
        decoded.clear()
        again = epochs_of(data)
    assert decoded == []
    for x, y, z in zip(found, want, again, strict=True):
        assert torch.equal(x, y) if device == "cpu" else (x - y).abs().mean() < 0.02  # a GPU has several decoders
        assert torch.equal(x, z)


def test_those_without_room_are_decoded_in_every_epoch(folders, memory_on_processor, decoded, monkeypatch):
    monkeypatch.setattr(kept_images, "_SLAB", 1 << 14)
    tfms = tfms_from_stats(STATS, 24, [RandomRotate(20)], 1.3)
    data, other = (ImageClassifierData.from_paths(folders, 5, tfms, keep_decoded=keep) for keep in (True, False))
    first = [x for x, _ in data.fix_dl]
    memory_on_processor[0] = (0, 1 << 40)
    kept = len(data.options.memory)
    assert sum(decoded) == kept == 12
    decoded.clear()
    found = epochs_of(data)
    all_kept = len(data.options.memory)
    assert 12 <= all_kept < 25
    decoded.clear()
    assert all(torch.equal(x, y) for x, y in zip(epochs_of(data), found, strict=True))
    assert sum(decoded) == 3 * 2 * (25 - all_kept)
    for x, y in zip(found, epochs_of(other), strict=True):
        assert torch.equal(x, y)
    assert len(torch.cat(first)) == 12


def test_a_file_that_changes_is_decoded_again(folders, save_image, memory_on_processor, decoded):
    tfms = tfms_from_stats(STATS, 24)
    data = ImageClassifierData.from_paths(folders, 5, tfms)
    before = torch.cat([x for x, _ in data.fix_dl])
    decoded.clear()
    save_image(folders / "train" / "dog" / "dog2.png", (47, 36))
    after = torch.cat([x for x, _ in data.fix_dl])
    (row,) = ((before != after).any(dim=(1, 2, 3))).nonzero().flatten().tolist()
    assert data.trn_ds.fnames[row] == "train/dog/dog2.png"
    assert decoded == [1]
    status = (file := folders / "train" / "cat" / "cat1.png").stat()
    pixels = 255 - np.asarray(Image.open(file))  # of the same size and time of modification
    Image.fromarray(pixels).save(file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = torch.cat([x for x, _ in data.fix_dl])
    assert decoded == [1, 1]
    want = torch.cat([x for x, _ in ImageClassifierData.from_paths(folders, 5, tfms, keep_decoded=False).fix_dl])
    assert torch.equal(again, want)
    (folders / "train" / "cat" / "cat0.png").unlink()
    with pytest.raises(BadImageError, match=r"train/cat/cat0.png: not found"):
        list(data.fix_dl)


def test_a_file_that_was_just_written_is_not_kept(folders, memory_on_processor, decoded, monkeypatch):
    """A change within the same tick of the clock would not show."""
    monkeypatch.setattr(verified, "_TICK_NS", 10**15)
    data = ImageClassifierData.from_paths(folders, 5, tfms_from_stats(STATS, 24))
    epochs_of(data, 2)
    assert sum(decoded) == 2 * 2 * 25
    assert len(data.options.memory) == 0


def test_images_of_graphs_arrays_and_trials_are_not_kept(folders, memory_on_processor, rng):
    """A graph of DALI's takes none; arrays may change; a trial measures decoding."""
    blurred = ImageClassifierData.from_paths(folders, 5, tfms_from_stats(STATS, 24, [RandomBlur(3)]))
    epochs_of(blurred, 2)
    assert len(blurred.options.memory) == 12 + 8 + 5  # of the loaders without augmentations
    arrays = rng.integers(0, 256, (6, 20, 20, 3), dtype=np.uint8), np.arange(6) % 2
    data = ImageClassifierData.from_arrays(folders, arrays, arrays, tfms=tfms_from_stats(STATS, 16))
    list(data.fix_dl)
    tried = ImageClassifierData.from_paths(folders, 5, tfms_from_stats(STATS, 24))
    tried.fix_dl._try(tried.fix_dl.take_renderer())
    assert len(data.options.memory) == len(tried.options.memory) == 0


def test_archives_are_read_once(tmp_path, memory_on_processor, decoded, monkeypatch):
    files = sorted(write_images(tmp_path / "images", {"red": 8, "blue": 8}).glob("*/*.png"))
    for k, name in enumerate(("train-0", "train-1", "train-2", "val")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for file in files[k::4]:
                label = tmp_path / "label"
                label.write_text(file.parent.name)
                archive.add(file, f"{file.parent.name}{file.name}")
                archive.add(label, f"{file.parent.name}{file.stem}.cls")
    data = packed_data(tmp_path, bs=5)
    found = epochs_of(data, 1)
    monkeypatch.setattr(type(data.trn_ds.source), "read", never)
    assert all(torch.equal(x, y) for x, y in zip(epochs_of(data, 1), found, strict=True))
    assert sum(decoded) == 16


def test_learners_decode_once(tmp_path, memory_on_processor, decoded):
    """Cached activations, epochs on images, all layers, predictions and augmented ones."""
    data = image_data(three_colours(tmp_path), augs=[RandomFlip(), RandomLighting(0.1, 0.1)])
    learn = tiny_learner(data, precompute=True)
    learn.fit(0.01, 1)
    n = sum(decoded)
    assert n == 3 * 12 + 3 * 6 + 5
    learn.precompute = False
    learn.fit(0.01, 1)
    learn.unfreeze()
    learn.fit(0.001, 2)
    learn.TTA()
    learn.predict()
    assert sum(decoded) == n


def test_data_made_of_others_share_their_images(folders, memory_on_processor, decoded):
    """Other transforms, or a part of the rows; what one decodes the other knows."""
    data = ImageClassifierData.from_paths(folders, 5, tfms_from_stats(STATS, 24))
    part = data.judged_on(np.arange(3))
    other = data.normalised((0.1, 0.2, 0.3), (1, 1, 1))
    list(part.fix_dl)
    assert sum(decoded) == 12 - 3
    first = torch.cat([x for x, _ in data.fix_dl])
    assert sum(decoded) == 12
    again = torch.cat([x for x, _ in other.fix_dl])
    assert sum(decoded) == 12
    mean = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(again, first * 0.5 + 0.5 - mean)
    kept = [weakref.ref(pixels) for _, pixels in data.options.memory._kept.values()]
    del data, part, other
    gc.collect()
    assert [one() for one in kept] == [None] * 12


def test_it_is_on_where_there_is_a_gpu_and_off_by_an_argument(folders, monkeypatch):
    tfms = tfms_from_stats(STATS, 24)
    assert ImageClassifierData.from_paths(folders, 5, tfms).options.memory is None  # on the processor
    assert kept_images.memory_of(torch.device("cuda"))._limits.func is torch.cuda.mem_get_info
    monkeypatch.setattr(data_loaders, "memory_of", lambda device: ImageMemory(device, unlimited))
    for keep in (True, False):
        data = ImageClassifierData.from_paths(folders, 5, tfms, keep_decoded=keep)
        for one in (data, data.normalised((0, 0, 0), (1, 1, 1)), data.judged_on(np.arange(3))):
            assert (one.options.memory is not None) == keep
