import tracemalloc

import numpy as np
import pytest
from scipy.optimize import curve_fit

from fastclf.interpret.learning_curve import fit_curve, resampled


def test_finds_the_law_that_made_the_errors():
    n = np.geomspace(50, 800, 7)
    curve = fit_curve(n, (0.03 + 1.2 * n**-0.5)[None].repeat(3, 0), 1000)
    np.testing.assert_allclose(curve.fits[0], [0.03, 1.2, 0.5], rtol=0.1)
    assert 1 - curve.at(3200)[0] == pytest.approx(0.03 + 1.2 * 3200**-0.5, abs=0.002)


def test_is_no_worse_than_scipy(rng):
    n = np.geomspace(40, 900, 7)
    errors = 0.05 + 0.9 * n**-0.6 + 0.01 * rng.standard_normal(7)
    fit = fit_curve(n, errors[None].repeat(2, 0), 500).fits[0]

    def law(n, a, b, c):
        return a + b * n**-c

    def loss(theta):
        return (((law(n, *theta) - errors) ** 2) * n).sum()

    try:
        reference, _ = curve_fit(law, n, errors, [0.05, 1, 0.5], sigma=n**-0.5, bounds=([0, 0, 0.05], [1, 50, 1.5]))
    except RuntimeError:
        pytest.skip("scipy does not converge on these errors")
    assert loss(fit) <= loss(reference) * 1.02 + 1e-9


def test_errors_that_do_not_fall_stay():
    n = np.geomspace(50, 800, 7)
    curve = fit_curve(n, np.full((2, 7), 0.2), 100)
    assert curve.at(10_000)[0] == pytest.approx(0.8)
    assert curve.gain(10_000)[0] == pytest.approx(0)


def test_no_parameter_is_negative(rng):
    fits = fit_curve(np.geomspace(20, 300, 7), rng.random((50, 7)), 100).fits
    assert (fits >= 0).all()


def test_resamples_of_many_rows_take_little_memory(rng):
    """Drawn in parts, they are those of one draw."""
    errors, seed = rng.random((3, 40_000)), int(rng.integers(2**31))
    counts = np.random.default_rng(seed).multinomial(40_000, np.full(40_000, 1 / 40_000), 400)
    wanted, whole = counts / 40_000 @ errors.T, counts.nbytes
    del counts
    tracemalloc.start()
    try:
        found = resampled(errors, np.random.default_rng(seed))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert peak < 0.6 * whole
