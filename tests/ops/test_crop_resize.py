"""The native crops: against a float64 computation, the GPU's kernel against the processor, and when misused.

FASTCLF_KERNEL_CASES says how many batches are sampled for the kernel.
"""

import os

import numpy as np
import pytest
import torch
from instruction_sets import instruction_set, instruction_sets

from fastclf.ops import use_backend
from fastclf.ops.crop_resize import CropFormat, Crops, PixelOp, crop_resize, has_crop_resize

pytestmark = pytest.mark.skipif(not has_crop_resize(torch.device("cpu")), reason="the native module is not built")

CASES = int(os.environ.get("FASTCLF_KERNEL_CASES", "12"))
CPU = torch.device("cpu")


def matrix_of(low, high, n, source):
    """The matrix [n, source] of an antialiased resampling of low..high; the outermost values go on outside."""
    step = (high - low) / n
    reach = max(1.0, step)
    weights = np.zeros((n, source))
    for i in range(n):
        middle = low + (i + 0.5) * step
        for k in range(int(np.floor(middle - reach)) - 1, int(middle + reach) + 2):
            weights[i, min(max(k, 0), source - 1)] += max(0.0, 1 - abs(k + 0.5 - middle) / reach)
    return weights / weights.sum(1, keepdims=True)


def changed(numbers):
    """One change of brightness and contrast of each image."""
    return PixelOp.BRIGHTNESS_CONTRAST, numbers.astype(np.float32)


def mirrored(i, n):
    i = np.where(i < 0, -1 - i, i)
    return np.where(i >= n, 2 * n - 1 - i, i).clip(0, n - 1)


def expected(image, crops, i, form):
    """One crop in float64."""
    low_y, low_x, high_y, high_x = crops.part[i].astype(np.float64)
    rows, cols = crops.size[i]
    y, x = matrix_of(low_y, high_y, rows, image.shape[0]), matrix_of(low_x, high_x, cols, image.shape[1])
    out = np.einsum("iy,yxc,jx->ijc", y, image.astype(np.float64), x, optimize=True)
    if crops.matrix is not None:
        middles = np.arange(form.sz) + 0.5
        grid = np.stack([*np.meshgrid(middles, middles), np.ones((form.sz, form.sz))])
        px, py = np.einsum("rk,kij->rij", crops.matrix[i].astype(np.float64), grid) - 0.5
        ix, iy = np.floor(px).astype(int), np.floor(py).astype(int)
        fx, fy = (px - ix)[..., None], (py - iy)[..., None]
        at = [[out[mirrored(iy + b, rows), mirrored(ix + a, cols)] for a in (0, 1)] for b in (0, 1)]
        out = (at[0][0] * (1 - fx) + at[0][1] * fx) * (1 - fy) + (at[1][0] * (1 - fx) + at[1][1] * fx) * fy
    for _, numbers in crops.pixel_ops:
        brightness, contrast = numbers[i].astype(np.float64)
        out = ((out - out.mean()) * contrast + out.mean() + brightness * form.white).clip(0, form.white)
    return ((out / form.white - form.mean) / form.std).transpose(2, 0, 1)


def some_crops(rng, shapes, sz, geometry, changes):
    n = len(shapes)
    corner = rng.uniform(-0.1, 0.4, (n, 2)) * shapes
    part = np.concatenate([corner, corner + rng.uniform(0.3, 0.8, (n, 2)) * shapes + 0.5], axis=1).astype(np.float32)
    size = rng.integers(1, 2 * sz, (n, 2)) if geometry else np.full((n, 2), sz)
    turn = rng.uniform(-1, 1, (n, 2, 2))
    shift = size[:, ::-1, None] / 2 - (turn @ np.full((2, 1), sz / 2))  # the middle stays in the middle
    matrix = np.concatenate([turn, shift], axis=2).astype(np.float32) if geometry else None
    return Crops(part, size, matrix, [changed(rng.uniform((-0.3, 0.5), (0.3, 1.5), (n, 2))) for _ in range(changes)])


@pytest.fixture(params=instruction_sets())
def every_instruction_set(request):
    with instruction_set(request.param):
        yield


@pytest.fixture(params=["emulated", "cuda"])
def kernel_device(request):
    """Runs the test for the GPU's kernel: where its tensors must be."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")
        yield torch.device("cuda", 0)
        return
    request.getfixturevalue("emulated_module")
    with use_backend("emulated"):
        yield CPU


def made(images, what, form, threads=1, offset=0, device=CPU):
    """The crops, in memory that begins `offset` values after a line of the cache."""
    n = len(images) * 3 * form.sz**2
    memory = torch.full((n + 16,), torch.nan, device=device)
    out = memory[offset : offset + n].view(len(images), 3, form.sz, form.sz)
    crop_resize([torch.from_numpy(image).to(device) for image in images], what, form, out, threads)
    assert memory[:offset].isnan().all()
    assert memory[offset + n :].isnan().all()
    return out.cpu()


def some_images(rng, shapes, top):
    images = [rng.random((*shape, 3), np.float32) for shape in shapes]
    return [np.rint(image * 255).astype(np.uint8) for image in images] if top == 255 else images


def check_against_float64(rng, sz, geometry, top, threads, device=CPU):
    shapes = np.array([(1, 1), (1, 90), (70, 2), (40, 55), (131, 77), (13, 300)])
    images = some_images(rng, shapes, top)
    form = CropFormat(sz, float(top), (0.4, 0.5, 0.6), (0.2, 0.5, 1.0))
    for changes in (0, 1, 2):
        what = some_crops(rng, shapes, sz, geometry, changes)
        got = made(images, what, form, device=device)
        for i, image in enumerate(images):
            np.testing.assert_allclose(got[i], expected(image, what, i, form), atol=3e-4)  # float32 positions
        for n in threads:
            assert torch.equal(got, made(images, what, form, n))


@pytest.mark.usefixtures("every_instruction_set")
@pytest.mark.parametrize("sz", [1, 5, 33, 64])
@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("top", [255, 1])
def test_crops_equal_float64(rng, sz, geometry, top):
    check_against_float64(rng, sz, geometry, top, (2, 3))


@pytest.mark.parametrize("sz", [1, 33])
@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("top", [255, 1])
def test_kernel_equals_float64(rng, kernel_device, sz, geometry, top):
    check_against_float64(rng, sz, geometry, top, (), kernel_device)


def any_crops(rng):
    """A batch of any size, also none: images, crops and form. Parts reach over the border, sides shrink and grow."""
    n, sz, top = rng.integers(0, 4), int(rng.integers(1, 49)), int(rng.choice([255, 1]))
    shapes = np.exp(rng.uniform(0, np.log(200), (n, 2))).astype(np.int64)
    low = rng.uniform(-0.9, 0.9, (n, 2)) * rng.integers(0, 2, (n, 2)) * shapes
    high = low + (2 * shapes - low) * rng.uniform(0.01, 1, (n, 2))
    moves = rng.random() < 0.7
    angle, zoom = rng.uniform(-np.pi, np.pi, n), np.exp(rng.uniform(-1, 1, n))
    turn = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], axis=1).reshape(n, 2, 2)
    turn *= zoom[:, None, None] * rng.choice([-1, 1], (n, 2, 1))  # flips
    turn[rng.random(n) < 0.2] = np.eye(2)
    matrix = np.concatenate([turn, rng.uniform(-0.5, 1.5, (n, 2, 1)) * sz], axis=2).astype(np.float32)
    size = rng.integers(1, 2 * sz + 9, (n, 2)) if moves else np.full((n, 2), sz)
    changes = [changed(rng.uniform((-0.4, 0.3), (0.4, 1.8), (n, 2))) for _ in range(rng.integers(0, 3))]
    part = np.concatenate([low, high], axis=1).astype(np.float32)
    form = CropFormat(sz, float(top), (0.4, 0.5, 0.6), (0.2, 0.5, 1.0))
    return some_images(rng, shapes, top), Crops(part, size, matrix if moves else None, changes), form


def test_kernel_equals_the_processor(rng, kernel_device):
    """Bit for bit where neither multiplies and adds in one instruction, but for the mean of a crop, and to float32
    positions on a GPU, which does."""
    for _ in range(CASES):
        images, what, form = any_crops(rng)
        found = made(images, what, form, device=kernel_device)
        assert torch.equal(found, made(images, what, form, device=kernel_device))
        with use_backend("native"), instruction_set("baseline"):
            want = made(images, what, form)
        if what.pixel_ops or kernel_device.type == "cuda":
            np.testing.assert_allclose(found, want, rtol=0, atol=2e-5 if kernel_device.type == "cpu" else 1e-3)
        else:
            assert torch.equal(found, want)


@pytest.mark.usefixtures("every_instruction_set")
def test_crops_written_past_the_caches(rng):
    """Large batches are, where lines of the cache are filled: the same values as one by one and elsewhere."""
    shapes = rng.integers(20, 90, (100, 2))
    images = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    form = CropFormat(64, 255.0, (0.4, 0.5, 0.6), (0.2, 0.5, 1.0))
    what = some_crops(rng, shapes, 64, False, 0)
    together = made(images, what, form, 2)
    assert torch.equal(together, made(images, what, form, 2, offset=3))
    for i in (0, 57, 99):
        one = Crops(what.part[i : i + 1], what.size[i : i + 1], None)
        assert torch.equal(together[i], made([images[i]], one, form)[0])


def test_nothing_outside_the_image_is_read(rng):
    """The same crop of an image that lies alone, and of one between NaN."""
    around = np.full((3, 20, 31, 3), np.nan, np.float32)
    around[1] = rng.random((20, 31, 3))
    part, size = np.array([[-3, -2, 25, 40]], np.float32), np.array([[16, 16]])
    what = Crops(part, size, None)
    form = CropFormat(16, 1.0, (0, 0, 0), (1, 1, 1))
    alone = made([around[1].copy()], what, form)
    assert torch.equal(made([around[1]], what, form), alone)
    assert torch.isfinite(alone).all()


def test_images_are_arrays_or_tensors(rng):
    """Of one array a tensor and an array, which may be mixed; a tensor elsewhere than the crops is refused."""
    image, form = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), CropFormat(4, 255.0, (0, 0, 0), (1, 1, 1))
    what = Crops(np.array([[0, 0, 9, 7]] * 2, np.float32), np.full((2, 2), 4), None)
    out = torch.empty(2, 3, 4, 4)
    crop_resize([image, torch.from_numpy(image)], what, form, out, 1)
    assert torch.equal(out[0], out[1])
    elsewhere = torch.from_numpy(image).to("meta")
    for images in ([image, elsewhere], [image, torch.from_numpy(image).mT.contiguous().mT]):
        with pytest.raises(ValueError, match=r"images must be contiguous \[H, W, 3\] on cpu"):
            crop_resize(images, what, form, out, 1)


def test_no_image():
    none = np.empty((0, 4), np.float32)
    what = Crops(none, np.empty((0, 2), np.int64), None, [changed(none[:, :2])])
    assert made([], what, CropFormat(8, 255.0, (0, 0, 0), (1, 1, 1))).shape == (0, 3, 8, 8)


def test_misuse(rng):
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    form = CropFormat(8, 255.0, (0, 0, 0), (1, 1, 1))
    part, size = np.array([[0, 0, 20, 30]], np.float32), np.array([[8, 8]])
    eye = np.eye(2, 3, dtype=np.float32)[None]
    good = {"images": [image], "part": part, "size": size, "matrix": None, "pixel_ops": ()}
    wrong = {
        "part must be finite": {"part": part * np.nan},
        "part must be finite float32": {"part": part.astype(np.float64)},
        "part must not be empty": {"part": part[:, [2, 1, 0, 3]]},
        "part must lie within": {"part": part * 3},
        "matrix must keep positions": {"matrix": eye * 1e9},
        "size must be 8": {"size": size + 1},
        "size must be finite int64": {"size": size.astype(np.int32)},
        "size from 1": {"size": size * 0, "matrix": eye},
        "to 16384": {"size": size * 4000, "matrix": eye},
        "matrix must be finite": {"matrix": eye + np.inf},
        "pixel_ops must be finite": {"pixel_ops": [changed(part)]},
        "images must all be uint8": {"images": [image.astype(np.int16)]},
        "images must be contiguous": {"images": [image[:, ::2]]},
    }
    for message, change in wrong.items():
        images, *rest = (good | change).values()
        with pytest.raises(ValueError, match=message):
            crop_resize(images, Crops(*rest), form, torch.empty(1, 3, 8, 8), 1)
    for out in (torch.empty(1, 3, 8, 9), torch.empty(1, 3, 8, 8, dtype=torch.float64), torch.empty(1, 8, 8, 3).mT):
        with pytest.raises(ValueError, match="out must be contiguous"):
            crop_resize([image], Crops(part, size, None), form, out, 1)
