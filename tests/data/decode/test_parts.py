"""Batches are decoded in parts of bounded size; the pixels are those of one part."""

import numpy as np
import pytest
import torch

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode import renderer as drawing
from fastclf.data.transforms.augmentations import Cutout, RandomFlip
from fastclf.data.transforms.spec import tfms_from_stats

HALF = ([0.5] * 3, [0.5] * 3)


def batches(data):
    return [x for dl in (data.trn_dl, data.val_dl, data.test_dl) if dl is not None for x, _ in dl.batches(3)]


@pytest.mark.parametrize("augs", [[RandomFlip()], [RandomFlip(), Cutout(2, 4)]], ids=["drawn", "graph"])
@pytest.mark.parametrize("part", [1, 2500, 3700])
def test_parts_give_the_same_batches(folders, monkeypatch, augs, part):
    tfms = tfms_from_stats(HALF, 16, aug_tfms=augs, pad=2)
    data = ImageClassifierData.from_paths(folders, 5, tfms, device="cpu")
    want = batches(data)
    monkeypatch.setattr(drawing, "_PART", part)
    monkeypatch.setattr(drawing, "_IN_FLIGHT", 2 * part)
    got = batches(ImageClassifierData.from_paths(folders, 5, tfms, device="cpu"))
    assert [len(x) for x in got] == [len(x) for x in want]
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_parts_of_arrays(tmp_path, rng, monkeypatch):
    x, y = rng.integers(0, 256, (12, 20, 30, 3), dtype=np.uint8), np.arange(12) % 2
    tfms = tfms_from_stats(HALF, 16)
    want = batches(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), 5, tfms, device="cpu"))
    monkeypatch.setattr(drawing, "_PART", 1300)
    got = batches(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), 5, tfms, device="cpu"))
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_never_more_in_flight_than_the_bound(monkeypatch, rng):
    monkeypatch.setattr(drawing, "_PART", 100)
    monkeypatch.setattr(drawing, "_IN_FLIGHT", 200)
    running, largest, given = [], [], []
    sizes = rng.integers(1, 150, 40).tolist()

    def run(pictures, parameters):
        assert list(pictures) == list(parameters["row"])
        running.append(sum(sizes[i] for i in pictures))
        largest.append((sum(running), len(running)))

    parts = drawing._Parts(run)
    for start in range(0, 40, 10):
        rows = list(range(start, start + 10))
        parts.feed(rows, {"row": np.array(rows)}, [sizes[i] for i in rows])
    for start in range(0, 40, 10):
        rows = []
        for pixels, parameters in parts.take(lambda: running.pop(0)):
            part = parameters["row"].tolist()
            assert pixels == sum(sizes[i] for i in part)
            assert pixels <= 100 or len(part) == 1
            rows += part
        assert rows == list(range(start, start + 10))
        given += rows
    assert len(given) == 40
    assert all(pixels <= 200 or n == 1 for pixels, n in largest)


def test_ordinary_photographs_are_one_part():
    assert len(list(drawing._split([640 * 480] * 64))) == 1
    assert [part.stop - part.start for part in drawing._split([48_000_000] * 3)] == [1, 1, 1]
