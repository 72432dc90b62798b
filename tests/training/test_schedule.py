import math

import numpy as np
import pytest

from fastclf.training.schedule import CLR, SGDR, CLRBeta, Constant, Finder, make_schedule, n_epochs

# The lesson's reference numbers for lr0 = 1, nb = 10.
COSINE_10 = [0.01, 0.97553, 0.90451, 0.79389, 0.65451, 0.5, 0.34549, 0.20611, 0.09549, 0.02447]
COSINE_20 = [1.0, 0.99384, 0.97553, 0.9455, 0.90451, 0.85355]


def factors(schedule, n):
    return [schedule.factor(step) for step in range(n)]


@pytest.mark.parametrize(("asked", "epochs"), [((3, 1, 2), 7), ((3, 2, 2), 14), ((2, 4, 2), 12), ((3, 2, 1), 6)])
def test_epochs(asked, epochs):
    assert n_epochs(*asked) == epochs


def test_epochs_without_cycle_len():
    assert n_epochs(5, None, 1) == 5


def test_sgdr_reference_numbers():
    assert factors(SGDR(10), 11) == pytest.approx([*COSINE_10, 1.0], abs=5e-6)
    assert factors(SGDR(10, 2), 16) == pytest.approx([*COSINE_10, *COSINE_20], abs=5e-6)


def test_sgdr_warms_up_for_a_twentieth_once():
    rates = factors(SGDR(360, 2), 361)
    assert rates[:18] == [0.01] * 18
    assert rates[18] == pytest.approx(0.99384, abs=5e-6)
    assert rates[360] == 1.0


@pytest.mark.parametrize(("schedule", "ends"), [(SGDR(10, 2), [9, 29, 69]), (SGDR(3), [2, 5, 8]), (SGDR(1), [0, 1, 2])])
def test_cycles_end_with_their_last_batch(schedule, ends):
    assert [step for step in range(ends[-1] + 1) if schedule.ends_cycle(step)] == ends


def test_one_batch_per_epoch_restarts():
    assert factors(SGDR(1), 4) == [0.01, 1.0, 1.0, 1.0]


def test_clr_is_a_slanted_triangle(rng):
    div, cut_div = float(rng.uniform(2, 40)), int(rng.integers(2, 12))
    nb = int(rng.integers(40, 200))
    cut = nb // cut_div
    expected = [
        (1 + (step / cut if step <= cut else 1 - (step - cut) / (nb - cut)) * (div - 1)) / div for step in range(nb)
    ]
    schedule = CLR(nb, 1, div, cut_div)
    assert factors(schedule, 2 * nb) == pytest.approx(expected * 2, rel=1e-12)
    assert max(expected) == 1.0
    assert expected[0] == pytest.approx(1 / div)


def test_clr_beta_mirrors_momentum():
    schedule = CLRBeta(100, 1, 10, 10, 0.95, 0.85)
    rates, momenta = factors(schedule, 100), [schedule.momentum(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[45] == pytest.approx(1.0)
    assert rates[90] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.1 * (1 - 0.99 * 0.9))
    assert (momenta[0], momenta[45], momenta[95]) == pytest.approx((0.95, 0.85, 0.95))


def test_finder_ends_at_the_last_rate():
    start, end, nb = 1e-5, 10.0, 50
    schedule = Finder(nb, end / start)
    expected = start * (end / start) ** (np.arange(nb) / nb)
    np.testing.assert_allclose(start * np.array(factors(schedule, nb)), expected, rtol=1e-12)
    linear = Finder(nb, end / start, linear=True)
    np.testing.assert_allclose(start * np.array(factors(linear, nb)), start + (end - start) * np.arange(nb) / nb)


def test_constant():
    assert factors(Constant(), 3) == [1.0] * 3
    assert not Constant().ends_cycle(2)


def test_fractional_multiplier_has_whole_batches():
    schedule = SGDR(10, 1.5)
    ends = [step for step in range(60) if schedule.ends_cycle(step)]
    assert ends == [9, 24, 24 + math.ceil(22.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cycle_len": 0}, "cycle_len"),
        ({"cycle_len": None, "cycle_mult": 2}, "cycle_len"),
        ({"cycle_len": None, "use_clr": (32, 10)}, "cycle_len"),
        ({"cycle_len": 1, "use_clr": (32,)}, "use_clr"),
        ({"cycle_len": 1, "use_clr": (32, 1)}, "use_clr"),
        ({"cycle_len": 1, "use_clr_beta": (10, 10, 0.95)}, "use_clr_beta"),
        ({"cycle_len": 1, "use_clr": (32, 10), "use_clr_beta": (10, 10)}, "exclude"),
        ({"cycle_len": 1, "cycle_mult": 0.5}, "cycle_mult"),
    ],
)
def test_what_fit_cannot_do_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(10, **arguments)
