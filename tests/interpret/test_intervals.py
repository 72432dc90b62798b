"""How often intervals hold what they should: simulated with fixed seeds."""

import numpy as np
import pytest

from fastclf.interpret import intervals, measures


def rows(rng, n, c=3):
    """Rows of a known kind: rare and frequent classes, 70 to 80 % of them right."""
    y = rng.choice(c, n, p=[0.5, 0.3, 0.2])
    logits = rng.standard_normal((n, c))
    logits[np.arange(n), y] += 1.6
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


@pytest.mark.slow
def test_bootstrap_intervals_hold_the_truth_in_95_of_100_sets():
    p, y = rows(np.random.default_rng(0), 300_000)
    truth = measures.of_one_label(p, y, topk=2).overall
    rng = np.random.default_rng(1)
    sets, n = 250, 500
    held = {}
    for _ in range(sets):
        p, y = rows(rng, n)
        for name, (low, high) in intervals.bootstrap(intervals.of_one_label(p, y), n, resamples=250).items():
            held[name] = held.get(name, 0) + (low <= truth[name] <= high)
    print({name: count / sets for name, count in held.items()})
    assert len(held) == 9
    # The standard deviation of a share of 250 sets is .014 at .95.
    for name, count in held.items():
        assert 0.9 <= count / sets <= 0.99, name


@pytest.mark.parametrize("share", [0.8, 0.97])
def test_intervals_of_shares_hold_the_truth(share):
    rng = np.random.default_rng(2)
    ends = [intervals.of_share(int(hits), 100) for hits in rng.binomial(100, share, 2000)]
    assert 0.92 <= np.mean([low <= share <= high for low, high in ends]) <= 0.99


def test_a_share_of_all_rows_is_not_certain():
    low, high = intervals.of_share(200, 200)
    # Wilson: 1 / (1 + z² / n)
    assert low == pytest.approx(1 / (1 + 1.959963984540054**2 / 200))
    assert high == 1
    assert np.isnan(intervals.of_share(0, 0)).all()


def test_bootstrap_is_repeatable_and_needs_rows(rng):
    p, y = rows(rng, 40)
    statistic = intervals.of_one_label(p, y)
    assert intervals.bootstrap(statistic, 40) == intervals.bootstrap(statistic, 40)
    assert intervals.bootstrap(statistic, 40) != intervals.bootstrap(statistic, 40, seed=1)
    assert intervals.bootstrap(intervals.of_one_label(p[:9], y[:9]), 9) == {}


def test_parts_of_resamples_give_what_all_at_once_do(rng, monkeypatch):
    p, y = rows(rng, 50)
    statistic = intervals.of_one_label(p, y)
    whole = intervals.bootstrap(statistic, 50, resamples=100)
    monkeypatch.setattr(intervals, "_AT_ONCE", 50 * 7)
    parts = intervals.bootstrap(statistic, 50, resamples=100)
    for name, ends in whole.items():
        assert parts[name] == pytest.approx(ends, rel=1e-12)


def test_what_is_mostly_undefined_has_no_interval():
    def statistic(counts):
        return {"mean": np.where(counts[:, 0] == 1, counts.mean(1), np.nan)}

    assert np.isnan(intervals.bootstrap(statistic, 10, resamples=100)["mean"]).all()
