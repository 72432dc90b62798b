"""The native drawing of windows: against a float64 computation, against the DALI graph, and when misused."""

import numpy as np
import pytest
import torch
from instruction_sets import instruction_set, instruction_sets

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode.graphs import Source
from fastclf.data.decode.renderer import batch_maker
from fastclf.data.transforms.spec import (
    CropType,
    Cutout,
    RandomBlur,
    RandomDihedral,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    tfms_from_stats,
)
from fastclf.ops import use_backend
from fastclf.ops.crop_resize import Canvas, Windows, can_draw, draw_windows

pytestmark = pytest.mark.skipif(not can_draw(), reason="the native module is not built")

STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


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


def mirrored(i, n):
    i = np.where(i < 0, -1 - i, i)
    return np.where(i >= n, 2 * n - 1 - i, i).clip(0, n - 1)


def expected(picture, drawn, i, canvas):
    """One window in float64."""
    low_y, low_x, high_y, high_x = drawn.part[i].astype(np.float64)
    rows, cols = drawn.size[i]
    y, x = matrix_of(low_y, high_y, rows, picture.shape[0]), matrix_of(low_x, high_x, cols, picture.shape[1])
    out = np.einsum("iy,yxc,jx->ijc", y, picture.astype(np.float64), x, optimize=True)
    if drawn.matrix is not None:
        middles = np.arange(canvas.sz) + 0.5
        grid = np.stack([*np.meshgrid(middles, middles), np.ones((canvas.sz, canvas.sz))])
        px, py = np.einsum("rk,kij->rij", drawn.matrix[i].astype(np.float64), grid) - 0.5
        ix, iy = np.floor(px).astype(int), np.floor(py).astype(int)
        fx, fy = (px - ix)[..., None], (py - iy)[..., None]
        at = [[out[mirrored(iy + b, rows), mirrored(ix + a, cols)] for a in (0, 1)] for b in (0, 1)]
        out = (at[0][0] * (1 - fx) + at[0][1] * fx) * (1 - fy) + (at[1][0] * (1 - fx) + at[1][1] * fx) * fy
    for brightness, contrast in drawn.light[i].astype(np.float64):
        out = ((out - out.mean()) * contrast + out.mean() + brightness * canvas.top).clip(0, canvas.top)
    return ((out / canvas.top - canvas.mean) / canvas.std).transpose(2, 0, 1)


def some_windows(rng, shapes, sz, geometry, lights):
    n = len(shapes)
    corner = rng.uniform(-0.1, 0.4, (n, 2)) * shapes
    part = np.concatenate([corner, corner + rng.uniform(0.3, 0.8, (n, 2)) * shapes + 0.5], axis=1).astype(np.float32)
    size = rng.integers(1, 2 * sz, (n, 2)) if geometry else np.full((n, 2), sz)
    turn = rng.uniform(-1, 1, (n, 2, 2))
    shift = size[:, ::-1, None] / 2 - (turn @ np.full((2, 1), sz / 2))  # the middle stays in the middle
    matrix = np.concatenate([turn, shift], axis=2).astype(np.float32) if geometry else None
    return Windows(part, size, matrix, rng.uniform((-0.3, 0.5), (0.3, 1.5), (n, lights, 2)).astype(np.float32))


@pytest.fixture(params=instruction_sets())
def every_instruction_set(request):
    with instruction_set(request.param):
        yield


def drawn(pictures, what, canvas, threads=1, offset=0):
    """The windows, in memory that begins `offset` values after a line of the cache."""
    n = len(pictures) * 3 * canvas.sz**2
    out = torch.full((n + 16,), torch.nan)[offset : offset + n].view(len(pictures), 3, canvas.sz, canvas.sz)
    draw_windows(pictures, what, canvas, out, threads)
    return out


@pytest.mark.usefixtures("every_instruction_set")
@pytest.mark.parametrize("sz", [1, 5, 33, 64])
@pytest.mark.parametrize("geometry", [False, True])
@pytest.mark.parametrize("top", [255, 1])
def test_windows_equal_float64(rng, sz, geometry, top):
    shapes = np.array([(1, 1), (1, 90), (70, 2), (40, 55), (131, 77), (13, 300)])
    pictures = [rng.random((*shape, 3), np.float32) for shape in shapes]
    if top == 255:
        pictures = [np.rint(picture * 255).astype(np.uint8) for picture in pictures]
    canvas = Canvas(sz, float(top), (0.4, 0.5, 0.6), (0.2, 0.5, 1.0))
    for lights in (0, 1, 2):
        what = some_windows(rng, shapes, sz, geometry, lights)
        got = drawn(pictures, what, canvas)
        for i, picture in enumerate(pictures):
            np.testing.assert_allclose(got[i], expected(picture, what, i, canvas), atol=3e-4)  # float32 positions
        for threads in (2, 3):
            assert torch.equal(got, drawn(pictures, what, canvas, threads))


@pytest.mark.usefixtures("every_instruction_set")
def test_windows_written_past_the_caches(rng):
    """Large batches are, where lines of the cache are filled: the same values as one by one and elsewhere."""
    shapes = rng.integers(20, 90, (100, 2))
    pictures = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    canvas = Canvas(64, 255.0, (0.4, 0.5, 0.6), (0.2, 0.5, 1.0))
    what = some_windows(rng, shapes, 64, False, 0)
    together = drawn(pictures, what, canvas, 2)
    assert torch.equal(together, drawn(pictures, what, canvas, 2, offset=3))
    for i in (0, 57, 99):
        one = Windows(what.part[i : i + 1], what.size[i : i + 1], None, what.light[i : i + 1])
        assert torch.equal(together[i], drawn([pictures[i]], one, canvas)[0])


def test_nothing_outside_the_picture_is_read(rng):
    """The same window of a picture that lies alone, and of one between NaN."""
    around = np.full((3, 20, 31, 3), np.nan, np.float32)
    around[1] = rng.random((20, 31, 3))
    part, size = np.array([[-3, -2, 25, 40]], np.float32), np.array([[16, 16]])
    what = Windows(part, size, None, np.empty((1, 0, 2), np.float32))
    canvas = Canvas(16, 1.0, (0, 0, 0), (1, 1, 1))
    alone = drawn([around[1].copy()], what, canvas)
    assert torch.equal(drawn([around[1]], what, canvas), alone)
    assert torch.isfinite(alone).all()


def test_no_picture():
    none = np.empty((0, 4), np.float32)
    what = Windows(none, np.empty((0, 2), np.int64), None, np.empty((0, 1, 2), np.float32))
    assert drawn([], what, Canvas(8, 255.0, (0, 0, 0), (1, 1, 1))).shape == (0, 3, 8, 8)


def test_misuse(rng):
    picture = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    canvas = Canvas(8, 255.0, (0, 0, 0), (1, 1, 1))
    part, size = np.array([[0, 0, 20, 30]], np.float32), np.array([[8, 8]])
    dark, eye = np.empty((1, 0, 2), np.float32), np.eye(2, 3, dtype=np.float32)[None]
    good = {"pictures": [picture], "part": part, "size": size, "matrix": None, "light": dark}
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
        "light must be finite": {"light": dark[0]},
        "pictures must all be uint8": {"pictures": [picture.astype(np.int16)]},
        "pictures must be contiguous": {"pictures": [picture[:, ::2]]},
    }
    for message, change in wrong.items():
        pictures, *rest = (good | change).values()
        with pytest.raises(ValueError, match=message):
            drawn(pictures, Windows(*rest), canvas)
    for out in (torch.empty(1, 3, 8, 9), torch.empty(1, 3, 8, 8, dtype=torch.float64), torch.empty(1, 8, 8, 3).mT):
        with pytest.raises(ValueError, match="out must be contiguous"):
            draw_windows([picture], Windows(part, size, None, dark), canvas, out, 1)


@pytest.mark.parametrize("crop", list(CropType))
def test_loaders_serve_what_the_graph_draws(folders, crop):
    """The processor's way and the GPU's way of making a batch, both on the CPU."""
    augs = [RandomRotate(20), RandomStretch(0.2), RandomDihedral(), RandomLighting(0.2, 0.2), RandomLighting(0.1, 0.3)]
    tfms = tfms_from_stats(STATS, 24, augs, 1.3, 2, crop)
    served = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            data = ImageClassifierData.from_paths(folders, 5, tfms, device="cpu")
            served.append([torch.cat([x for x, _ in dl.batches(1)]) for dl in (data.trn_dl, data.fix_dl, data.test_dl)])
    for ours, graphs in zip(*served, strict=True):
        # Positions are float32 in both, lit pixels are stretched by 1 / std.
        assert (ours - graphs).abs().max() < 5e-3
        assert (ours - graphs).abs().mean() < 2e-4


def test_augmentations_that_only_the_graph_knows():
    plain = tfms_from_stats(STATS, 16, [RandomRotate(10)])[0]
    for aug in (RandomBlur(3), Cutout(1, 4)):
        tfms = tfms_from_stats(STATS, 16, [aug, RandomRotate(10)])[0]
        assert not isinstance(batch_maker(tfms, Source(), 4, 1), type(batch_maker(plain, Source(), 4, 1)))
