"""Augmentations of the user's own: functions and classes, on every way to a batch, and what is refused."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fastclf import (
    Cutout,
    GeometricAugmentation,
    ImageClassifierData,
    PixelAugmentation,
    RandomFlip,
    RandomLighting,
    RandomRotate,
    ops,
    report,
    tfms_from_stats,
)
from fastclf.data.decode import renderer
from fastclf.data.decode.graphs import GraphInput
from fastclf.data.decode.native_renderer import NativeRenderer
from fastclf.data.transforms.base import Augmentation, ZoomAugmentation
from fastclf.data.transforms.sampling import Split, sample

STATS = ([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
PLAIN = ([0.0] * 3, [1.0] * 3)


def colour_jitter(x, u):
    """Brightness, contrast and saturation, each by up to 40 %."""
    brightness, contrast, saturation = (1 + 0.8 * (u[:, i, None, None, None] - 0.5) for i in range(3))
    x = x * brightness
    x = (x - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True)
    grey = x.mean(1, keepdim=True)
    return (x - grey) * saturation + grey


@dataclass(frozen=True)
class RandomShear(GeometricAugmentation):
    """Shears along x by up to `most`."""

    most: float
    version = 1

    def parameters(self, u, sz):
        out = np.tile(np.eye(2), (len(u), 1, 1))
        out[:, 0, 1] = (2 * u[:, 0] - 1) * self.most
        return out

    def reach(self):
        return 1 + self.most


@dataclass(frozen=True)
class Posterise(PixelAugmentation):
    """2 to `most` grey values."""

    most: int
    version = "2026-11"

    def parameters(self, u, sz):
        return 2 + (u[:, 0] * (self.most - 1)).astype(np.int64)

    def pixels(self, x, levels):
        steps = levels[:, None, None, None] - 1
        return (x * steps).round() / steps


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)


def test_a_function_changes_crops_of_0_to_1(image):
    """The same crop without it, changed by hand."""
    trn, _ = tfms_from_stats(PLAIN, 32, [RandomFlip(), colour_jitter], 1.2)
    without, _ = tfms_from_stats(PLAIN, 32, [RandomFlip()], 1.2)
    seen = set()
    for row in range(4):
        u = torch.from_numpy(sample(trn, 3, 1, Split.TRAIN, np.array([row]))["aug1"])
        assert u.shape == (1, 16)
        crop = torch.from_numpy(without(image, seed=3, epoch=1, row=row))[None]
        expected = colour_jitter(crop, u).clamp(0, 1)[0]
        np.testing.assert_allclose(trn(image, seed=3, epoch=1, row=row), expected, atol=1e-6)
        seen.add(u.numpy().tobytes())
    assert len(seen) == 4


def test_normalisation_comes_last(image):
    trn, _ = tfms_from_stats(STATS, 32, [lambda x, u: 1 - x])
    without, _ = tfms_from_stats(STATS, 32)
    np.testing.assert_allclose(trn.denorm(trn(image)), 1 - without.denorm(without(image)), atol=1e-6)


def test_a_class_with_geometry_stays_native(image):
    """A shear's matrix is composed with the others; the crop is that of the float64 map."""
    trn, _ = tfms_from_stats(PLAIN, 32, [RandomShear(0.4), RandomLighting(0.1, 0.1)])
    assert isinstance(renderer.cpu_renderer(trn, GraphInput(), 4, 1), NativeRenderer)
    x = np.linspace(0, 1, 64, dtype=np.float32)
    ramp = np.broadcast_to(x[None, :, None], (64, 64, 3))  # values rise along x
    trn, _ = tfms_from_stats(PLAIN, 32, [RandomShear(0.4)])
    for row in range(5):
        shear = sample(trn, 0, 0, Split.TRAIN, np.array([row]))["linear"][0, 0, 1]
        crop = trn(np.ascontiguousarray(ramp), row=row)[0]
        slope = (crop[24, 16] - crop[8, 16]) / (crop[16, 24] - crop[16, 8])
        assert slope == pytest.approx(shear, abs=1e-3)


def test_a_class_with_pixels():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3)).copy()
    trn, _ = tfms_from_stats(PLAIN, 32, [Posterise(5)])
    counts = {len(np.unique(trn(ramp, row=row))) for row in range(30)}
    assert counts == {2, 3, 4, 5}


def test_ours_come_first_then_the_users_in_their_order(image):
    def halved(x, u):
        return x / 2

    def squared(x, u):
        return x**2

    hole = Cutout(1, 8)
    tfms, other = (tfms_from_stats(PLAIN, 32, augs)[0] for augs in ([halved, squared, hole], [squared, hole, halved]))
    without = tfms_from_stats(PLAIN, 32, [RandomFlip(), RandomFlip(), hole])[0]  # the hole's number decides its place
    holes = sample(without, 0, 0, Split.TRAIN, np.array([0]))["aug2"]
    np.testing.assert_array_equal(sample(tfms, 0, 0, Split.TRAIN, np.array([0]))["aug2"], holes)
    first, second = tfms(image), other(image)
    assert first.max() <= 0.25
    assert 0.25 < second.max() <= 0.5


@pytest.mark.parametrize("augs", [[RandomRotate(10), colour_jitter, Posterise(9)], [Cutout(1, 4), colour_jitter]])
def test_loaders_serve_what_one_call_gives(tmp_path, rng, augs):
    """Whatever the batches are, with the native renderer and with DALI's graph."""
    x, y = rng.integers(0, 256, (12, 30, 40, 3), dtype=np.uint8), np.arange(12) % 2
    tfms = tfms_from_stats(STATS, 24, augs, 1.2)
    for bs in (5, 12):
        data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs, tfms, device="cpu", seed=7)
        batches = torch.cat([batch for batch, _ in data.trn_dl.batches(2)])
        for got, row in zip(batches, data.trn_dl.order(2), strict=True):
            np.testing.assert_allclose(got, tfms[0](x[row], seed=7, epoch=2, row=row), atol=1e-5)


def test_native_and_graph_give_the_same(image):
    tfms, _ = tfms_from_stats(PLAIN, 32, [RandomShear(0.2), RandomLighting(0.2, 0.2), colour_jitter], 1.2, pad=2)
    made = []
    for backend in ("native", "reference"):
        with ops.use_backend(backend):
            one = renderer.cpu_renderer(tfms, GraphInput(files=False), 1, 1)
        one.feed([image], sample(tfms, 0, 0, Split.TRAIN, np.array([4])), [3000])
        made.append(one.take())
    torch.testing.assert_close(*made, atol=5e-3, rtol=0)


def test_leaving_the_native_path_is_logged_once(capsys):
    report._logged.clear()
    for _ in range(2):
        renderer.cpu_renderer(tfms_from_stats(PLAIN, 16, [colour_jitter, Posterise(3)])[0], GraphInput(), 2, 1)
    line = "colour_jitter, Posterise: not in the native renderer; run in torch after it, on every batch"
    assert capsys.readouterr().out.splitlines() == [line]


def test_an_error_of_a_function_is_the_users_and_no_bad_image(folders):
    """A RuntimeError among them, as torch raises it: images are not blamed, and nothing is in the making any more."""
    fails = []

    def moody(x, u):
        if fails:
            raise RuntimeError("shapes of the user's own")
        return x

    tfms = tfms_from_stats(PLAIN, 16, [moody])
    data = ImageClassifierData.from_paths(folders, 3, tfms, device="cpu", on_bad="skip")
    fails.append(True)
    with pytest.raises(RuntimeError, match="shapes of the user's own"):
        list(data.trn_dl.batches(0))
    fails.clear()
    assert sum(len(x) for x, _ in data.trn_dl.batches(0)) == 12


def test_a_function_that_returns_something_else_later():
    def odd(x, u):
        return x if len(x) <= 4 else x[:, :1]

    one = renderer.cpu_renderer(tfms := tfms_from_stats(PLAIN, 16, [odd])[0], GraphInput(files=False), 5, 1)
    one.feed(np.zeros((5, 20, 20, 3), np.uint8), sample(tfms, 0, 0, Split.TRAIN, np.arange(5)), [400] * 5)
    with pytest.raises(
        ValueError, match=r"odd must return torch.float32 \[5, 3, 16, 16\].*got torch.float32 \[5, 1, 16"
    ):
        one.take()


def noisy(x, u):
    return x + torch.rand_like(x)


def mixed(x, u):
    return (x + x.flip(0)) / 2


class TooFar(RandomShear):
    def reach(self):
        return 1.0


class Unhashable(Posterise):
    __hash__ = None


class NoKind(Augmentation):
    def parameters(self, u, sz):
        return u


class Shrink(ZoomAugmentation):
    def parameters(self, u, sz):
        return u[:, 0]


class WholeBatch(Posterise):
    def parameters(self, u, sz):
        return 2 + (u[:, 0] > u[:, 0].mean()).astype(np.int64)


REFUSED = {
    "other numbers every time": (noisy, "noisy must take its random numbers from what it is given"),
    "images of the batch mixed": (mixed, "mixed must change each image by itself"),
    "no random numbers": (lambda x: x, "TypeError: .*takes 1 positional argument"),
    "nothing returned": (lambda x, u: None, "must return torch.float32 .*, got NoneType"),
    "another shape": (lambda x, u: x[:, :, :-1], r"must return torch.float32 .*, got torch.float32 \[4, 3, 15, 16\]"),
    "another type": (lambda x, u: (x * 255).byte(), "must return torch.float32 .*, got torch.uint8"),
    "not a number": (lambda x, u: x * float("nan"), "must return finite values"),
    "torchvision's": (v2.ColorJitter(0.4), "ColorJitter must return torch.float32 .*, got tuple"),
    "a class": (RandomShear, "must hold augmentations such as"),
    "a text": ("flip", "must hold augmentations such as"),
    "a matrix that reaches further": (TooFar(0.4), r"TooFar.reach must be at least 1\.[34]\d*, .*got 1.0"),
    "no hash": (Unhashable(3), r"Unhashable must be hashable.*@dataclass\(frozen=True\)"),
    "no kind": (NoKind(), "NoKind must derive from"),
    "an image made smaller": (Shrink(), "Shrink.parameters must return factors"),
    "parameters of the whole batch": (WholeBatch(3), "WholeBatch.parameters must take each row of u by itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    aug, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        tfms_from_stats(PLAIN, 16, [RandomFlip(), aug])


def test_fingerprints():
    """Name, arguments and version; without a version there is none."""
    trn = tfms_from_stats(PLAIN, 16, [RandomShear(0.1), Posterise(4), RandomFlip()])[0]
    shear, posterise, flip = trn.describe()["augs"]
    assert shear == [f"{__name__}.RandomShear", {"most": 0.1}, 1]
    assert posterise == [f"{__name__}.Posterise", {"most": 4}, "2026-11"]
    assert flip == ["RandomFlip", {}]
    trn = tfms_from_stats(PLAIN, 16, [colour_jitter])[0]
    with pytest.raises(ValueError, match=r"colour_jitter must have a version.*Set colour_jitter.version = 1"):
        trn.describe()


def test_versions_of_functions_tell_fingerprints_apart(monkeypatch):
    trn = tfms_from_stats(PLAIN, 16, [colour_jitter])[0]
    found = []
    for version in (1, 2, "b"):
        monkeypatch.setattr(colour_jitter, "version", version, raising=False)
        found.append(trn.describe()["augs"])
    assert found == [[[f"{__name__}.colour_jitter", {}, version]] for version in (1, 2, "b")]
    bound = partial(colour_jitter)
    bound.version = 3
    with pytest.raises(ValueError, match="partial has no name of its own"):
        tfms_from_stats(PLAIN, 16, [bound])[0].describe()


def test_arguments_that_are_no_json_have_no_fingerprint():
    @dataclass(frozen=True, eq=False)
    class Weighted(Posterise):
        weights: object = None

    trn = tfms_from_stats(PLAIN, 16, [Weighted(3, torch.ones(3))])[0]
    with pytest.raises(ValueError, match=r"Weighted.weights must be a number, a text or a list of them"):
        trn.describe()
