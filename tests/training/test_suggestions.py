"""Rates read off curves: known ones, and those of no use."""

import numpy as np
import pytest

from fastclf.training.suggestions import RateSuggestions, _valley, suggest


def smoothed(raw):
    average, found = 0.0, []
    for i, loss in enumerate(raw):
        average = 0.98 * average + 0.02 * loss
        found.append(average / (1 - 0.98 ** (i + 1)))
    return found


def longest_fall(losses):
    """The longest strictly decreasing subsequences, by comparing every pair; all (first, last) of that length."""
    best = [(1, {i}) for i in range(len(losses))]
    for i in range(len(losses)):
        for j in range(i):
            if losses[i] < losses[j]:
                length, starts = best[j][0] + 1, best[j][1]
                if length > best[i][0]:
                    best[i] = (length, set(starts))
                elif length == best[i][0]:
                    best[i] = (length, best[i][1] | starts)
    top = max(length for length, _ in best)
    return {(start, i) for i, (length, starts) in enumerate(best) if length == top for start in starts}


def test_the_valley_is_the_middle_of_the_longest_fall(rng):
    for _ in range(30):
        losses = rng.integers(0, 12, rng.integers(1, 40)) + rng.uniform(0, 3) * np.linspace(1, 0, 1)
        assert _valley(losses) in {(first + last) // 2 for first, last in longest_fall(losses)}


@pytest.mark.parametrize("n", [30, 100, 1001])
def test_a_clean_curve(n):
    """Flat, a fall around .01, lowest at .1, then a steep rise."""
    rates = np.geomspace(1e-5, 10, n, endpoint=False)
    z = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-6 * (z + 2))) + np.where(z > -1, (z + 1) ** 2, 0)
    found = suggest(rates.tolist(), losses.tolist())
    step = (1e6 ** (1 / n)) ** 1.01
    assert found.minimum == pytest.approx(rates[losses.argmin()])
    assert 0.01 / step**2 < found.steepest < 0.01 * step**2
    first = int(0.1 * n)
    assert np.sqrt(rates[first] * 0.1) / step**2 < found.valley < np.sqrt(rates[first] * 0.1) * step**2
    assert str(found).startswith("steepest ")


def test_noise_moves_the_rates_little(rng):
    rates = np.geomspace(1e-5, 10, 100, endpoint=False)
    z = np.log10(rates)
    raw = 2 - 1.5 / (1 + np.exp(-4 * (z + 3))) + np.where(z > 0, 30 * z**2, 0)
    clean = suggest(rates, smoothed(raw))
    noisy = suggest(rates, smoothed(raw * rng.uniform(0.85, 1.15, len(raw))))
    for name in ("steepest", "valley", "minimum"):
        assert abs(np.log10(getattr(noisy, name) / getattr(clean, name))) < 1


@pytest.mark.parametrize(
    "losses",
    [
        [],
        [1.0],
        [1.0, 0.9, 0.8],
        np.linspace(1, 4, 50),  # rises
        np.ones(50),
        [1.0] * 12 + [np.nan],
        [np.nan],
        [np.inf] * 30,
    ],
    ids=["none", "one", "short", "rises", "flat", "flat then nan", "nan", "infinite"],
)
def test_a_curve_that_shows_nothing_suggests_nothing(losses):
    found = suggest(np.geomspace(1e-5, 1, max(len(losses), 1))[: len(losses)], losses)
    assert found == RateSuggestions(None, None, None)
    assert "no rate suggested" in str(found)
    assert found.rates() == {}


def test_pure_noise_mostly_suggests_nothing(rng):
    rates = np.geomspace(1e-5, 10, 100)
    curves = [smoothed(1 + 0.2 * rng.standard_normal(100)) for _ in range(60)]
    assert sum(suggest(rates, losses).valley is None for losses in curves) > 40


def test_a_loss_that_still_falls_at_the_end_has_no_minimum():
    rates = np.geomspace(1e-5, 10, 60)
    found = suggest(rates, np.linspace(3, 1, 60) ** 2)
    assert found.minimum is None
    assert found.valley is not None
    assert "minimum" not in str(found)


def test_what_follows_divergence_does_not_matter(rng):
    rates = np.geomspace(1e-5, 10, 60)
    losses = np.concatenate([np.linspace(3, 1, 50) ** 2, np.geomspace(1.1, 50, 10)])
    broken = losses.copy()
    broken[-4:] = np.inf, np.nan, np.nan, np.inf
    assert suggest(rates, broken) == suggest(rates, losses)
