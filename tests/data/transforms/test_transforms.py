"""Declared transforms: their arguments, their description, and one picture through them."""

import json

import numpy as np
import pytest
import torch

from fastclf.data.transforms.spec import (
    CropType,
    Cutout,
    RandomFlip,
    RandomRotate,
    tfms_from_stats,
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)

STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_training_and_validation():
    trn, val = tfms_from_stats(STATS, 64, transforms_side_on, 1.1, pad=4)
    assert (trn.crop_type, trn.train, trn.augments) == (CropType.RANDOM, True, True)
    assert (val.crop_type, val.train, val.augments) == (CropType.CENTER, False, False)
    assert (val.augs, val.max_zoom, val.pad) == ((), None, 0)
    assert tfms_from_stats(STATS, 64, RandomFlip())[0].augs == (RandomFlip(),)


@pytest.mark.parametrize(
    ("crop", "val_crop", "augments"),
    [
        (CropType.RANDOM, CropType.CENTER, True),
        (CropType.CENTER, CropType.CENTER, False),
        (CropType.NO, CropType.NO, False),
        (CropType.GOOGLENET, CropType.CENTER, True),
    ],
)
def test_crop_types(crop, val_crop, augments):
    trn, val = tfms_from_stats(STATS, 64, crop_type=crop)
    assert (trn.crop_type, val.crop_type, trn.augments) == (crop, val_crop, augments)


def test_description_is_json_and_tells_everything_apart():
    variants = [
        tfms_from_stats(STATS, 64)[0],
        tfms_from_stats(STATS, 65)[0],
        tfms_from_stats(([0.5] * 3, STATS[1]), 64)[0],
        tfms_from_stats((STATS[0], [0.5] * 3), 64)[0],
        tfms_from_stats(STATS, 64, max_zoom=1.1)[0],
        tfms_from_stats(STATS, 64, pad=1)[0],
        tfms_from_stats(STATS, 64, transforms_basic)[0],
        tfms_from_stats(STATS, 64, transforms_side_on)[0],
        tfms_from_stats(STATS, 64, transforms_top_down)[0],
        tfms_from_stats(STATS, 64, [Cutout(1, 8)])[0],
        tfms_from_stats(STATS, 64, [Cutout(2, 8)])[0],
        tfms_from_stats(STATS, 64)[1],
        *(tfms_from_stats(STATS, 64, crop_type=crop)[0] for crop in CropType if crop is not CropType.RANDOM),
    ]
    texts = [json.dumps(tfms.describe(), sort_keys=True, allow_nan=False) for tfms in variants]
    assert len(set(texts)) == len(variants)
    assert texts[0] == json.dumps(tfms_from_stats(STATS, 64)[0].describe(), sort_keys=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sz": 0}, "sz must be a whole number"),
        ({"sz": 22.5}, "sz must be a whole number"),
        ({"max_zoom": 0.9}, "max_zoom must be"),
        ({"pad": -1}, "pad must be"),
        ({"pad": 33}, "pad must be a number from 0 to 32"),
        ({"aug_tfms": [RandomFlip]}, "aug_tfms must hold augmentations"),
        ({"aug_tfms": [RandomRotate(90)] * 4}, "aug_tfms must not turn so often"),
        ({"stats": ([0.5] * 3, [0.5, 0.5, 0])}, "stats must be"),
        ({"stats": ([0.5], [0.5])}, "stats must be"),
        *(({"crop_type": wrong}, "crop_type must be a CropType such as") for wrong in ("center", 1, CropType)),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        tfms_from_stats(**{"stats": STATS, "sz": 64, **arguments})


def test_denorm_undoes_normalise(rng):
    tfms = tfms_from_stats(STATS, 16)[1]
    picture = rng.random((16, 16, 3), np.float32)
    x = tfms(picture)
    assert x.dtype == np.float32
    assert x.shape == (3, 16, 16)
    np.testing.assert_allclose(tfms.denorm(x), picture, atol=1e-6)
    batch = torch.from_numpy(np.stack([x, x, x * 100]))
    pictures = tfms.denorm(batch)
    assert pictures.dtype == np.float32
    np.testing.assert_allclose(pictures[1], picture, atol=1e-6)
    assert pictures.min() == 0
    assert pictures.max() == 1


@pytest.mark.parametrize("shape", [(3, 16), (1, 3, 3, 16, 16), (16, 16, 3)])
def test_denorm_of_other_shapes(shape):
    with pytest.raises(ValueError, match="denorm: x must be"):
        tfms_from_stats(STATS, 16)[1].denorm(np.zeros(shape))


def test_one_picture_of_bytes_and_of_floats_agree(rng):
    tfms = tfms_from_stats(STATS, 32)[1]
    picture = rng.integers(0, 256, (50, 71, 3), dtype=np.uint8)
    np.testing.assert_allclose(tfms(picture), tfms(picture.astype(np.float64) / 255), atol=2e-6)
    np.testing.assert_array_equal(tfms(picture), tfms(np.asfortranarray(picture)))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((5, 5)), "H, W, 3"),
        (np.zeros((3, 5, 5)), "H, W, 3"),
        (np.zeros((0, 5, 3)), "H, W, 3"),
        (np.full((5, 5, 3), 255.0), "in 0..1"),
        (np.full((5, 5, 3), np.nan), "in 0..1"),
    ],
)
def test_one_picture_of_another_form(picture, message):
    with pytest.raises(ValueError, match=message):
        tfms_from_stats(STATS, 32)[1](picture)
