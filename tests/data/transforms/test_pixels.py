"""The pixels of transformed images, against Pillow and against a float64 computation of the same thing."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from processes import PATIENCE

from fastclf import (
    CropType,
    Cutout,
    RandomBlur,
    RandomDihedral,
    RandomFlip,
    RandomLighting,
    RandomRotate,
    RandomZoom,
    tfms_from_stats,
    transforms_side_on,
)
from fastclf.data.decode.native_renderer import NativeRenderer
from fastclf.data.image import open_image
from fastclf.data.transforms.augmentations import RandomStretch
from fastclf.data.transforms.sampling import Split, sample

PLAIN = ([0.0] * 3, [1.0] * 3)


def parameters(tfms, row, seed=0):
    return {name: value[0] for name, value in sample(tfms, seed, 0, Split.TRAIN, np.array([row])).items()}


def triangle(n, m):
    """The matrix [m, n] that resamples n values to m with an antialiasing triangle; the last value goes on outside."""
    step = n / m
    reach = max(1.0, step)
    weights = np.zeros((m, n))
    for i in range(m):
        middle = (i + 0.5) * step
        for k in range(int(middle - reach) - 2, int(middle + reach) + 2):
            weights[i, min(max(k, 0), n - 1)] += max(0.0, 1 - abs(k + 0.5 - middle) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(image, h, w):
    """Antialiased bilinear, float64."""
    return np.einsum("iy,yxc,jx->ijc", triangle(image.shape[0], h), image, triangle(image.shape[1], w), optimize=True)


def bilinear(image, x, y):
    """Values at continuous coordinates; pixel (0, 0) has its middle at (0.5, 0.5)."""
    x, y = x - 0.5, y - 0.5
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    fx, fy = (x - x0)[..., None], (y - y0)[..., None]
    h, w, _ = image.shape

    def at(yy, xx):
        return image[yy.clip(0, h - 1), xx.clip(0, w - 1)]

    top = at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx
    bottom = at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx
    return top * (1 - fy) + bottom * fy


def reference(tfms, image, row):
    """Scale, mirrored border, crop and geometry; for every crop type but GOOGLENET."""
    values, sz = parameters(tfms, row), tfms.sz
    h, w, _ = image.shape
    scaled = int(values["scaled"])
    size = (scaled, scaled) if tfms.crop_type is CropType.NO else (h * scaled // min(h, w), w * scaled // min(h, w))
    spare = np.array(size) - sz
    last = spare + 2 * tfms.pad
    start = np.floor(values["place"] * (last + 1)) - tfms.pad if "place" in values else np.round(spare / 2)
    border = sz
    wide = np.pad(resized(image, *size), ((border, border), (border, border), (0, 0)), mode="symmetric")
    middle = (start + border + sz / 2)[::-1]
    grid = np.stack(np.meshgrid(np.arange(sz) + 0.5, np.arange(sz) + 0.5), -1) - sz / 2
    place = grid @ values.get("linear", np.eye(2)).astype(np.float64).T + middle
    return bilinear(wide, place[..., 0], place[..., 1])


def photo(fn, sz):
    """The validation image by Pillow alone: shorter side to sz, centre crop."""
    im = ImageOps.exif_transpose(Image.open(fn)).convert("RGB")
    w, h = im.size
    im = im.resize((w * sz // min(w, h), h * sz // min(w, h)), Image.Resampling.BILINEAR)
    left, top = round((im.width - sz) / 2), round((im.height - sz) / 2)
    return np.asarray(im.crop((left, top, left + sz, top + sz)), np.float32) / 255


CASES = {
    "plain": {},
    "centre": {"crop_type": CropType.CENTER},
    "squashed": {"crop_type": CropType.NO},
    "zoom": {"max_zoom": 1.5},
    "pad": {"pad": 9},
    "rotate": {"aug_tfms": [RandomRotate(30, p=1)]},
    "rotate in the centre": {"aug_tfms": [RandomRotate(180, p=1)], "crop_type": CropType.CENTER},
    "rotate squashed": {"aug_tfms": [RandomRotate(45, p=1)], "crop_type": CropType.NO, "max_zoom": 1.3},
    "stretch": {"aug_tfms": [RandomStretch(0.5)]},
    "all": {
        "aug_tfms": [RandomRotate(20, p=1), RandomStretch(0.3), RandomDihedral(), RandomZoom(0.2)],
        "max_zoom": 1.2,
        "pad": 5,
    },
    "all in another order": {"aug_tfms": [RandomDihedral(), RandomStretch(0.3), RandomRotate(20, p=1)]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(57, 91), (200, 150), (31, 31), (20, 333)])
def test_geometry_equals_reference(rng, case, shape):
    tfms = tfms_from_stats(PLAIN, 33, **CASES[case])[0]
    image = rng.random((*shape, 3), np.float32)
    for row in range(3):
        ours = tfms(image, row=row).transpose(1, 2, 0)
        np.testing.assert_allclose(ours, reference(tfms, image, row), atol=2e-4)  # float32 coordinates


def test_symmetries_are_exact(rng):
    tfms = tfms_from_stats(PLAIN, 16, RandomDihedral())[0]
    image = rng.random((16, 16, 3), np.float32)
    plain = tfms_from_stats(PLAIN, 16)[1](image).transpose(1, 2, 0)
    np.testing.assert_allclose(plain, image, atol=1e-7)
    symmetries = [np.rot90(side, k) for side in (plain, plain[:, ::-1]) for k in range(4)]
    seen = set()
    for row in range(60):
        ours = tfms(image, row=row).transpose(1, 2, 0)
        seen.add(next(i for i, s in enumerate(symmetries) if np.array_equal(s, ours)))
    assert len(seen) == 8


def test_flip_is_exact(rng):
    tfms = tfms_from_stats(PLAIN, 16, RandomFlip(), crop_type=CropType.CENTER)[0]
    image = rng.random((40, 30, 3), np.float32)
    plain = tfms_from_stats(PLAIN, 16)[1](image)
    flips = [parameters(tfms, row)["linear"][0, 0] < 0 for row in range(20)]
    for row, flipped in enumerate(flips):
        np.testing.assert_array_equal(tfms(image, row=row), plain[:, :, ::-1] if flipped else plain)
    assert 0 < sum(flips) < 20


@pytest.mark.parametrize("top", [255, 1])
def test_lighting(rng, top):
    tfms = tfms_from_stats(PLAIN, 24, RandomLighting(0.4, 0.8))[0]
    image = rng.random((24, 24, 3), np.float32) ** 2
    if top == 255:
        image = np.rint(image * 255).astype(np.uint8)
    x = image.astype(np.float64) / top
    for row in range(5):
        brightness, contrast = parameters(tfms, row)["aug0"]
        expected = ((x - x.mean()) * contrast + x.mean() + brightness).clip(0, 1)
        np.testing.assert_allclose(tfms(image, row=row).transpose(1, 2, 0), expected, atol=2e-6)


def test_blur(rng):
    tfms = tfms_from_stats(PLAIN, 24, RandomBlur([2, 3]))[0]
    image = rng.random((24, 24, 3), np.float32)
    widths = set()
    for row in range(8):
        width = int(parameters(tfms, row)["aug0"])
        widths.add(width)
        offsets = np.arange(width) - width // 2
        kernel = np.exp(-(offsets**2) / 2 / (0.3 * ((width - 1) / 2 - 1) + 0.8) ** 2) if width > 1 else np.ones(1)
        kernel /= kernel.sum()
        wide = np.pad(image.astype(np.float64), [(width // 2,) * 2] * 2 + [(0, 0)], mode="reflect")
        rows = sum(k * wide[i : i + 24] for i, k in enumerate(kernel))
        expected = sum(k * rows[:, i : i + 24] for i, k in enumerate(kernel))
        np.testing.assert_allclose(tfms(image, row=row).transpose(1, 2, 0), expected, atol=1e-5)
    assert widths == {1, 3, 5}


def test_cutout(rng):
    tfms = tfms_from_stats(PLAIN, 24, Cutout(2, 7))[0]
    image = rng.random((24, 24, 3), np.float32) + 0.01
    image /= image.max()
    for row in range(8):
        expected = image.copy()
        for y, x in parameters(tfms, row)["aug0"].reshape(2, 2).astype(int):
            expected[max(y, 0) : y + 7, max(x, 0) : x + 7] = 0
        np.testing.assert_allclose(tfms(image, row=row).transpose(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 200), (60, 400), (30, 30)])
def test_googlenet_shows_a_rectangle_of_the_image(shape):
    """Each image's values are its own coordinates, so that the output tells where it came from."""
    h, w = shape
    tfms = tfms_from_stats(PLAIN, 32, crop_type=CropType.GOOGLENET)[0]
    y, x = np.meshgrid((np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w, indexing="ij")
    image = np.stack([y, x, y * 0], -1).astype(np.float32)
    shares, aspects = [], []
    for row in range(200):
        v = tfms(image, row=row)
        height = (v[0, 24, 16] - v[0, 8, 16]) * 2 * h
        width = (v[1, 16, 24] - v[1, 16, 8]) * 2 * w
        shares.append(height * width / (h * w))
        aspects.append(width / height)
        assert v.min() >= 0
        assert v.max() <= 1
    assert 0.74 < min(aspects) < 0.85
    assert 1.2 < max(aspects) < 1.35
    if max(shape) < 2 * min(shape):
        assert 0.079 < min(shares) < 0.2
        assert 0.7 < max(shares) < 1.001
    values = sample(tfms, 0, 0, Split.TRAIN, np.arange(20_000))
    assert abs(values["area"].mean() - 0.54) < 0.01
    assert abs(np.log(values["aspect"]).mean()) < 0.01


def test_photographs_equal_pillow(catsdogs, exif_photos):
    _, val = tfms_from_stats(PLAIN, 224)
    files = [*sorted(catsdogs.glob("valid/*/*.jpg"))[::8], *exif_photos]
    differences = [np.abs(val(open_image(fn)).transpose(1, 2, 0) - photo(fn, 224)).mean() for fn in files]
    assert max(differences) < 0.5 / 255


def test_orientation_is_applied(exif_photos):
    """The same photograph is stored in eight orientations."""
    _, val = tfms_from_stats(PLAIN, 64)
    for kind in ("Landscape", "Portrait"):
        images = [val(open_image(fn)) for fn in exif_photos if fn.name.startswith(kind)]
        assert len(images) == 9
        for image in images[1:]:
            assert np.abs(image - images[0]).mean() < 0.02


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_modes_equal_pillow(rng, tmp_path, mode):
    im = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    fn = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    im.save(fn)
    expected = np.asarray(Image.open(fn).convert("RGB"))
    np.testing.assert_array_equal(np.rint(open_image(fn) * 255), expected)


def test_16_bit_is_scaled(rng, tmp_path):
    values = rng.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    image = open_image(tmp_path / "x.png")
    assert np.abs(image - (values / 65535)[..., None]).max() < 0.6 / 255


def test_pil_images_are_taken_as_their_files_are(exif_photos):
    """Upright, whatever their EXIF block says."""
    _, val = tfms_from_stats(PLAIN, 64)
    for fn in exif_photos:
        with Image.open(fn) as im:
            np.testing.assert_allclose(val(im), val(open_image(fn)), atol=1.1 / 255)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK", "I;16"])
def test_pil_images_of_any_mode(rng, tmp_path, mode):
    _, val = tfms_from_stats(PLAIN, 16)
    if mode == "I;16":
        im = Image.fromarray(rng.integers(0, 65536, (16, 16)).astype(np.uint16))
    else:
        im = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
    assert im.mode == mode
    fn = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    im.save(fn)
    with Image.open(fn) as stored:
        np.testing.assert_allclose(val(stored), val(open_image(fn)), atol=1e-6)


@pytest.mark.parametrize(("mode", "top"), [("F", 1), ("F", 65535), ("I", 255), ("I", 65535)])
def test_pil_images_of_many_bits(rng, tmp_path, mode, top):
    _, val = tfms_from_stats(PLAIN, 16)
    values = rng.random((16, 16)) * top
    values[0, 0] = top
    im = Image.fromarray(values.astype(np.float32 if mode == "F" else np.int32))
    assert im.mode == mode
    im.save(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as stored:
        np.testing.assert_allclose(val(stored), val(open_image(tmp_path / "x.tif")), atol=1e-6)
        np.testing.assert_allclose(val(stored)[0], values / top, atol=1 / 255)


def test_what_is_not_an_image_is_refused():
    _, val = tfms_from_stats(PLAIN, 16)
    for name in ("a.jpg", Path("a.jpg")):
        with pytest.raises(
            ValueError, match=r"image must be pixels, got the file name .*a\.jpg.*Pass open_image\(fn\)"
        ):
            val(name)
    with pytest.raises(ValueError, match="a PIL image of mode F has grey values below 0 or not finite"):
        val(Image.new("F", (20, 20), -1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (2, 3)])
@pytest.mark.parametrize("crop", list(CropType))
def test_images_of_any_shape(rng, shape, crop):
    image = rng.random((*shape, 3), np.float32)
    for tfms in tfms_from_stats(PLAIN, 16, transforms_side_on, 1.2, pad=2, crop_type=crop):
        x = tfms(image, row=3)
        assert x.shape == (3, 16, 16)
        assert np.isfinite(x).all()
        assert x.min() >= 0
        assert x.max() <= 1


def test_one_transforms_in_many_threads():
    trn, val = tfms_from_stats(PLAIN, 32, transforms_side_on, 1.1)
    rng = np.random.default_rng()
    images = [rng.integers(0, 256, (40 + i, 60, 3), np.uint8) for i in range(24)]
    alone = [tfms(image, row=i) for tfms in (trn, val) for i, image in enumerate(images)]
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(tfms, image, row=i) for tfms in (trn, val) for i, image in enumerate(images)]
        for expected, call in zip(alone, calls, strict=True):
            np.testing.assert_array_equal(call.result(timeout=PATIENCE), expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("method", ["feed", "take"])
def test_an_image_that_was_left_is_not_the_next_one(monkeypatch, method, error):
    _, val = tfms_from_stats(PLAIN, 24)
    images = np.random.default_rng().integers(0, 256, (2, 30, 30, 3), np.uint8)
    expected = [val(image) for image in images]
    whole = getattr(NativeRenderer, method)

    def left(*args):
        if method == "feed":
            whole(*args)
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(NativeRenderer, method, left)
        with pytest.raises(error):
            val(images[0])
    np.testing.assert_array_equal(val(images[1]), expected[1])
    np.testing.assert_array_equal(val(images[0]), expected[0])
