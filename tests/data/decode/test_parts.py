"""Batches are decoded in parts of bounded size; the pixels are those of one part."""

import numpy as np
import pytest
import torch

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode import parts
from fastclf.data.transforms.augmentations import Cutout, RandomFlip

HALF = ([0.5] * 3, [0.5] * 3)


def batches(data):
    return [x for dl in (data.trn_dl, data.val_dl, data.test_dl) if dl is not None for x, _ in dl.batches(3)]


@pytest.mark.parametrize("augs", [[RandomFlip()], [RandomFlip(), Cutout(2, 4)]], ids=["native", "graph"])
@pytest.mark.parametrize("part", [1, 2500, 3700])
def test_parts_give_the_same_batches(folders, monkeypatch, augs, part):
    tfms = tfms_from_stats(HALF, 16, aug_tfms=augs, pad=2)
    data = ImageClassifierData.from_paths(folders, 5, tfms, device="cpu")
    want = batches(data)
    monkeypatch.setattr(parts, "_PART", part)
    monkeypatch.setattr(parts, "_IN_FLIGHT", 2 * part)
    got = batches(ImageClassifierData.from_paths(folders, 5, tfms, device="cpu"))
    assert [len(x) for x in got] == [len(x) for x in want]
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_parts_of_arrays(tmp_path, rng, monkeypatch):
    x, y = rng.integers(0, 256, (12, 20, 30, 3), dtype=np.uint8), np.arange(12) % 2
    tfms = tfms_from_stats(HALF, 16)
    want = batches(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), 5, tfms, device="cpu"))
    monkeypatch.setattr(parts, "_PART", 1300)
    got = batches(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), 5, tfms, device="cpu"))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_never_more_in_flight_than_the_bound(monkeypatch, rng):
    monkeypatch.setattr(parts, "_PART", 100)
    monkeypatch.setattr(parts, "_IN_FLIGHT", 200)
    running, largest, given = [], [], []
    sizes = rng.integers(1, 150, 40).tolist()

    def run(images, parameters):
        assert list(images) == list(parameters["row"])
        running.append(sum(sizes[i] for i in images))
        largest.append((sum(running), len(running)))

    queue = parts.Parts(run)
    for start in range(0, 40, 10):
        rows = list(range(start, start + 10))
        queue.feed(rows, {"row": np.array(rows)}, [sizes[i] for i in rows])
    for start in range(0, 40, 10):
        rows = []
        for pixels, parameters in queue.take(lambda: running.pop(0)):
            part = parameters["row"].tolist()
            assert pixels == sum(sizes[i] for i in part)
            assert pixels <= 100 or len(part) == 1
            rows += part
        assert rows == list(range(start, start + 10))
        given += rows
    assert len(given) == 40
    assert all(pixels <= 200 or n == 1 for pixels, n in largest)


def test_ordinary_photographs_are_one_part():
    assert len(list(parts.split([640 * 480] * 64))) == 1
    assert [part.stop - part.start for part in parts.split([48_000_000] * 3)] == [1, 1, 1]
