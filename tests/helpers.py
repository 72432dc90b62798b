"""Small images and a small network that learner tests share."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastclf import RandomFlip, tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.learners.conv_learner import ConvLearner
from fastclf.models.body import SequentialBody
from fastclf.models.head import Head
from fastclf.models.net import Net
from fastclf.training.callbacks import Callback
from fastclf.training.head_runs import HeadRun, predict_rows, train_heads
from fastclf.training.loop import derived_seed
from fastclf.training.metrics import accuracy

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TFMS = tfms_from_stats(HALF, 16)
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}


def write_images(folder, counts, seed=0):
    """Noisy images of a few sizes, ``{"train/red": 5, ...}``; a class's colour shows through the noise."""
    rng = np.random.default_rng(seed)
    for place, n in ((place, n) for place, n in counts.items() if n):
        target = folder / place
        target.mkdir(parents=True, exist_ok=True)
        colour = COLOURS.get(target.name, (128, 128, 128))
        for i in range(n):
            h, w = rng.integers(20, 48, 2)
            pixels = np.clip(np.array(colour) + rng.normal(0, 60, (h, w, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(target / f"{i:03d}.png")
    return folder


def three_colours(folder, n=12, n_valid=6, n_test=5):
    """Red, green and blue images in train/ and valid/, and unlabelled ones in test/."""
    parts = {f"train/{name}": n for name in COLOURS} | {f"valid/{name}": n_valid for name in COLOURS}
    return write_images(folder, parts | {"test": n_test})


def image_data(folder, sz=16, bs=8, augs=(RandomFlip(),), crop_type=None, **kwargs):
    tfms = tfms_from_stats(HALF, sz, aug_tfms=list(augs), crop_type=crop_type)
    return ImageClassifierData.from_paths(folder, bs=bs, tfms=tfms, **kwargs)


def packed_data(folder, bs=8):
    """Images in archives 'train-0.tar', 'train-1.tar', 'train-2.tar' and 'val.tar'."""
    tfms = tfms_from_stats(HALF, 16, aug_tfms=[RandomFlip()])
    return ImageClassifierData.from_shards(folder / "train-{0..2}.tar", bs, tfms, folder / "val.tar")


def tiny_body(seed=0, pretrained=False):
    """Two groups of a convolution with BatchNorm, 6 feature maps; pretrained, on noise that is no image here."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = [
            ("conv1", nn.Conv2d(3, 4, 3, stride=2, bias=False)),
            ("bn1", nn.BatchNorm2d(4)),
            ("relu1", nn.ReLU()),
            ("conv2", nn.Conv2d(4, 6, 3, stride=2, bias=False)),
            ("bn2", nn.BatchNorm2d(6)),
            ("relu2", nn.ReLU()),
        ]
        body = SequentialBody("test:tiny", stages, 3, 6, HALF)
        if pretrained:
            for _ in range(50):
                body(0.5 + 2 * torch.randn(16, 3, 16, 16))
        return body.eval()


def tiny_learner(data, precompute=False, ps=0.2, seed=0, pretrained=False, **kwargs):
    final = "none" if data.is_reg else "sigmoid" if data.is_multi else "log_softmax"
    head = Head(12, data.c, ps=ps, xtra_fc=[8], final=final, seed=seed)
    learn = ConvLearner(
        data, Net(tiny_body(pretrained=pretrained), head), **{"seed": seed, "metrics": [accuracy]} | kwargs
    )
    learn.precompute = precompute
    return learn


def row_data(path, rng, n=60, n_valid=30, f=10, c=3, bs=16, dtype=np.float32, **kwargs):
    """Activations ``[N, F]`` whose first ``c`` columns tell the class."""
    sets = []
    for size in (n, n_valid):
        y = np.arange(size) % c
        x = rng.standard_normal((size, f))
        x[np.arange(size), y] += 5
        sets.append((x.astype(dtype), y))
    return ImageClassifierData.from_arrays(path, *sets, bs=bs, classes=[f"class{i}" for i in range(c)], **kwargs)


def assert_same_batches(files, data):
    """The same classes, images and labels, bit for bit."""
    assert data.classes == files.classes
    for name in ("trn_dl", "val_dl"):
        for (x, y), (x_own, y_own) in zip(getattr(files, name), getattr(data, name), strict=True):
            assert torch.equal(x, x_own)
            assert torch.equal(y, y_own)


class Watches(Callback):
    """Does something amid an epoch, such as to predict."""

    def __init__(self, act):
        self.act = act

    def on_batch_begin(self):
        self.act()

    def on_batch_end(self, loss):
        self.act()


def state_of(learn):
    """A copy of a learner's weights and statistics."""
    return {name: tensor.clone() for name, tensor in learn.model.state_dict().items()}


def assert_same(a, b):
    """The second state has all of the first, bit for bit."""
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def out_of_fold(ds, setting, folds, seed, training):
    """The logits of every row by a head that trained on the other folds, one after another; NaN for bad rows."""
    logits = np.full((len(ds), ds.c), np.nan, np.float32)
    good = ds.bad.good_rows()
    for fold in np.unique(folds).tolist():
        run = HeadRun(setting, np.flatnonzero(folds != fold), derived_seed(seed, "fold", fold))
        rows = good[folds[good] == fold]
        logits[rows] = predict_rows(*train_heads(ds, [run], training), ds, rows)
    return logits


def memory_of(folders):
    """What scans of a folder have left."""
    own = hashlib.sha256(os.fsencode(folders)).hexdigest()[:16]
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "fastclf" / "scans" / own
    (file,) = folder.glob("scanned-*.sqlite")
    return file
