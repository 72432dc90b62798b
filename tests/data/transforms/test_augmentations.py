"""The augmentations' own parameters: ranges, shares, and what the arguments must be."""

import numpy as np
import pytest

from fastclf.data.transforms.augmentations import (
    Cutout,
    RandomBlur,
    RandomDihedral,
    RandomFlip,
    RandomLighting,
    RandomRotate,
    RandomStretch,
    RandomZoom,
    transforms_basic,
    transforms_side_on,
    transforms_top_down,
)

N, SZ = 20_000, 20


@pytest.fixture
def uniform(rng):
    return lambda aug: rng.random((N, aug.n_uniforms))


def test_the_lists():
    assert transforms_basic == [RandomRotate(10), RandomLighting(0.05, 0.05)]
    assert transforms_side_on == [*transforms_basic, RandomFlip()]
    assert transforms_top_down == [*transforms_basic, RandomDihedral()]


def test_flip(uniform):
    matrices = RandomFlip().parameters(uniform(RandomFlip()), SZ)
    assert set(matrices[:, 0, 0]) == {-1, 1}
    assert (matrices[:, 1, 1] == 1).all()
    assert abs((matrices[:, 0, 0] < 0).mean() - 0.5) < 0.03


def test_dihedral(uniform):
    matrices = RandomDihedral().parameters(uniform(RandomDihedral()), SZ)
    kinds, counts = np.unique(matrices.reshape(N, 4), axis=0, return_counts=True)
    assert len(kinds) == 8
    assert np.abs(counts / N - 1 / 8).max() < 0.02
    np.testing.assert_array_equal(np.abs(matrices).sum(axis=2), 1)


def test_rotate(uniform):
    aug = RandomRotate(30)
    matrices = aug.parameters(uniform(aug), SZ)
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(2), (N, 1, 1)), atol=1e-12)
    degrees = np.rad2deg(np.arctan2(matrices[:, 0, 1], matrices[:, 0, 0]))
    turned = degrees[degrees != 0]
    assert abs(len(turned) / N - 0.75) < 0.02
    assert np.abs(turned).max() <= 30
    assert np.abs(np.histogram(turned, 6, (-30, 30))[0] / len(turned) - 1 / 6).max() < 0.02
    assert np.abs(matrices).sum(axis=2).max() <= aug.reach() + 1e-12


def test_stretch(uniform):
    aug = RandomStretch(0.5)
    matrices = aug.parameters(uniform(aug), SZ)
    shrink = matrices[:, [0, 1], [0, 1]]
    assert (shrink.max(axis=1) == 1).all()
    factor = 1 / shrink.min(axis=1)
    assert factor.min() >= 1
    assert factor.max() <= 1.5
    assert abs(factor.mean() - 1.25) < 0.01
    assert abs((shrink[:, 0] < 1).mean() - 0.5) < 0.03


def test_zoom(uniform):
    factor = RandomZoom(0.4, 0.1).parameters(uniform(RandomZoom(0.4)), SZ)
    assert factor.min() >= 1.1
    assert factor.max() <= 1.4
    assert abs(factor.mean() - 1.25) < 0.01


def test_lighting(uniform):
    aug = RandomLighting(0.2, 0.5)
    u = uniform(aug)
    brightness, contrast = aug.parameters(u, SZ).T
    np.testing.assert_allclose(brightness, (2 * u[:, 0] - 1) * 0.2)
    change = (2 * u[:, 1] - 1) * 0.5
    np.testing.assert_allclose(contrast, [1 + c if c >= 0 else 1 / (1 - c) for c in change])


def test_blur(uniform):
    aug = RandomBlur([1, 2, 4], p=0.6)
    widths, counts = np.unique(aug.parameters(uniform(aug), SZ), return_counts=True)
    assert widths.tolist() == [1, 3, 7]
    assert np.abs(counts / N - [0.6, 0.2, 0.2]).max() < 0.02


def test_cutout(uniform):
    aug = Cutout(2, 6)
    corners = aug.parameters(uniform(aug), SZ)
    assert corners.shape == (N, 4)
    assert set(np.unique(corners)) == set(range(-3, 17))


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: RandomRotate(181), "deg"),
        (lambda: RandomRotate("10"), "deg"),
        (lambda: RandomRotate(10, p=1.5), "p "),
        (lambda: RandomLighting(2, 0), "balance"),
        (lambda: RandomLighting(0, float("nan")), "contrast"),
        (lambda: RandomZoom(-0.1), "zoom_max"),
        (lambda: RandomZoom(0.1, -0.2), "zoom_min"),
        (lambda: RandomStretch(-1), "max_stretch"),
        (lambda: RandomBlur(0), "strengths"),
        (lambda: RandomBlur([]), "strengths"),
        (lambda: RandomBlur(2, p=-1), "p "),
        (lambda: Cutout(0, 3), "n_holes"),
        (lambda: Cutout(1, 2.5), "length"),
    ],
)
def test_arguments_out_of_range(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()
