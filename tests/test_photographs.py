"""The main job on photographs: accuracy through every way in, and a second start from the cache."""

import sys
import time

import numpy as np
import pytest
from PIL import Image

from fastclf import (
    ConvLearner,
    HeadLearner,
    ImageClassifierData,
    accuracy_thresh,
    efficientnet_lite0,
    fbeta,
    get_cv_idxs,
    tfms_from_model,
    transforms_side_on,
    transforms_top_down,
)
from fastclf.models.net import Net

ARCH = efficientnet_lite0


def tfms(sz, augs=transforms_side_on):
    return tfms_from_model(ARCH, sz, aug_tfms=augs, max_zoom=1.1)


@pytest.mark.slow
def test_cats_and_dogs_at_224_and_a_second_learner_from_the_cache(catsdogs, monkeypatch):
    data = ImageClassifierData.from_paths(catsdogs, tfms=tfms(224))
    learn = ConvLearner.pretrained(ARCH, data, precompute=True)
    scores = [learn.fit(1e-2, 3)[1]]
    scores += [HeadLearner(learn.data, seed=seed).fit(1e-2, 3)[1] for seed in range(4)]
    print("accuracy of five seeds:", scores)
    assert np.median(scores) >= 0.98

    monkeypatch.setattr(Net, "features", None)  # the body must not run again
    start = time.perf_counter()
    again = ConvLearner.pretrained(ARCH, ImageClassifierData.from_paths(catsdogs, tfms=tfms(224)), precompute=True)
    x, _ = next(iter(again.data.trn_dl))
    print(f"second learner: first batch after {time.perf_counter() - start:.2f} s", file=sys.stderr)
    assert x.shape == (64, 2560)
    np.testing.assert_array_equal(again.data.trn_ds.rows, learn.data.trn_ds.rows)


def test_the_same_images_through_paths_csv_and_arrays_give_the_same_predictions(catsdogs):
    sz, bs = 64, 50
    paths = ImageClassifierData.from_paths(catsdogs, bs=bs, tfms=tfms(sz))
    sets = (paths.trn_ds, paths.val_ds)
    names = [f"{name},{paths.classes[y]}" for ds in sets for name, y in zip(ds.fnames, ds.y, strict=True)]
    (catsdogs / "all.csv").write_text("file,label\n" + "\n".join(names) + "\n")
    table = ImageClassifierData.from_csv(
        catsdogs, ".", catsdogs / "all.csv", bs, tfms(sz), val_idxs=np.arange(700, 900)
    )
    assert list(table.val_ds.fnames) == list(paths.val_ds.fnames)

    def square(name):
        image = Image.open(catsdogs / name).convert("RGB")
        return np.asarray(image.resize((sz, sz), Image.Resampling.BILINEAR))

    squares = [(np.stack([square(n) for n in ds.fnames]), ds.y) for ds in sets]
    arrays = ImageClassifierData.from_arrays(catsdogs, *squares, bs=bs, tfms=tfms(sz), classes=paths.classes)

    scores = []
    for data in (paths, table, arrays):
        learn = ConvLearner.pretrained(ARCH, data, precompute=True)
        scores.append(learn.fit(1e-2, 3)[1])
    assert scores[0] == scores[1]
    assert scores[2] == pytest.approx(scores[0], abs=0.08)  # squashed, not cropped
    assert min(scores) > 0.7


def test_breeds_from_csv(dogbreeds):
    n = len((dogbreeds / "labels.csv").read_text().splitlines()) - 1
    data = ImageClassifierData.from_csv(
        dogbreeds, "train", dogbreeds / "labels.csv", 58, tfms(96), val_idxs=get_cv_idxs(n), suffix=".jpg"
    )
    assert (len(data.trn_ds) + len(data.val_ds), data.c) == (172, 12)
    learn = ConvLearner.pretrained(ARCH, data, precompute=True)
    assert learn.fit(1e-2, 5)[1] > 3 / 12


def test_scenes_with_several_labels(scenes):
    augs = transforms_top_down
    csv = scenes / "train_tags.csv"
    data = ImageClassifierData.from_csv(scenes, "train", csv, tfms=tfms(64, augs), suffix=".jpg")
    assert (data.is_multi, data.c, len(data.trn_ds)) == (True, 5, 1600)
    learn = ConvLearner.pretrained(ARCH, data, precompute=True, metrics=[fbeta(2, 0.2), accuracy_thresh(0.5)])
    _, f2, acc = learn.fit(1e-2, 3)
    assert f2 > 0.75
    assert acc > 0.85
