import copy
import math
import signal
from contextlib import nullcontext
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from cycles import MULTIPLIERS, exact_epochs, exact_starts
from helpers import row_data
from kinks import linear_relus
from torch import nn

from fastclf import Callback, CheckpointError, HeadLearner, Learner, ops
from fastclf.ops import rate
from fastclf.schedules import (
    Constant,
    Cosine,
    Function,
    OneCycle,
    RangeTest,
    Table,
    Triangle,
    as_schedule,
    from_description,
)
from fastclf.training.cycles import check_whole_cycles, make_schedule, n_epochs
from fastclf.training.optimizer import SGDR

# The lesson's reference numbers for lr0 = 1, nb = 10.
COSINE_10 = [0.01, 0.97553, 0.90451, 0.79389, 0.65451, 0.5, 0.34549, 0.20611, 0.09549, 0.02447]
COSINE_20 = [1.0, 0.99384, 0.97553, 0.9455, 0.90451, 0.85355]


def factors(schedule, n):
    return [rate(schedule, step)[0] for step in range(n)]


@pytest.mark.parametrize(("asked", "epochs"), [((3, 1, 2), 7), ((3, 2, 2), 14), ((2, 4, 2), 12), ((3, 2, 1), 6)])
def test_epochs(asked, epochs):
    assert n_epochs(*asked) == epochs


@pytest.mark.parametrize("cycle_mult", MULTIPLIERS)
def test_epochs_are_those_of_exact_arithmetic(cycle_mult):
    asked = [(n_cycle, cycle_len) for n_cycle in range(1, 6) for cycle_len in range(1, 51)]
    found = [n_epochs(*each, float(cycle_mult)) for each in asked]
    assert found == [exact_epochs(*each, cycle_mult) for each in asked]


@pytest.mark.parametrize("cycle_mult", MULTIPLIERS)
def test_whole_cycles_are_those_of_exact_arithmetic(cycle_mult):
    for n_cycle in range(1, 6):
        for cycle_len in range(1, 51):
            whole = all(cycle_len * Fraction(cycle_mult) ** cycle % 1 == 0 for cycle in range(n_cycle))
            with nullcontext() if whole else pytest.raises(ValueError, match="cycles of whole epochs"):
                check_whole_cycles(n_cycle, cycle_len, float(cycle_mult))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("cycle_mult", MULTIPLIERS)
def test_cycles_start_where_exact_arithmetic_has_them(cycle_mult, backend):
    with ops.use_backend(backend):
        for batches in range(1, 51):
            schedule = Cosine(batches, float(cycle_mult))
            starts = exact_starts(batches, cycle_mult, 5)
            assert [rate(schedule, start)[0] for start in starts] == [1] * 5
            ends = [step for step in range(starts[2]) if schedule.ends_cycle(step)]
            assert ends == [start - 1 for start in starts[:3]]


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("cycle_mult", MULTIPLIERS)
def test_the_highest_rate_is_where_exact_arithmetic_has_it(cycle_mult, backend, rng):
    """Of a triangle, and of 1cycle: a whole number of batches after a cycle's start, rounded down."""
    with ops.use_backend(backend):
        for batches in range(20, 60):
            cycle, cut_div, pct = int(rng.integers(4)), f"{rng.integers(11, 60) / 10}", int(rng.integers(30))
            length = batches * Fraction(cycle_mult) ** cycle
            start = [0, *exact_starts(batches, cycle_mult, 4)][cycle]
            tops = {
                Triangle(batches, float(cycle_mult), 8, float(cut_div)): math.floor(length / Fraction(cut_div)),
                OneCycle(batches, float(cycle_mult), 8, pct): math.floor(length * (100 - pct) / 200),
            }
            for schedule, top in tops.items():
                assert rate(schedule, start + top)[0] == 1
                assert rate(schedule, start + top - 1)[0] < 1


def test_a_model_is_saved_after_each_whole_cycle(tmp_path, rng):
    data = row_data(tmp_path, rng, device="cpu", n=50, bs=10)
    learn = HeadLearner(data, xtra_fc=[4])
    assert len(data.trn_dl) == 5
    learn.fit(1e-3, 2, cycle_len=10, cycle_mult=1.1, cycle_save_name="c")
    assert len(learn.sched.val_losses) == 21
    assert {p.name.split(".")[0] for p in (data.path / "models").iterdir()} == {"c_cyc_0", "c_cyc_1"}


def test_epochs_without_cycle_len():
    assert n_epochs(5, None, 1) == 5


def test_sgdr_reference_numbers():
    assert factors(Cosine(10), 11) == pytest.approx([*COSINE_10, 1.0], abs=5e-6)
    assert factors(Cosine(10, 2), 16) == pytest.approx([*COSINE_10, *COSINE_20], abs=5e-6)


def test_sgdr_warms_up_for_a_twentieth_once():
    rates = factors(Cosine(360, 2), 361)
    assert rates[:18] == [0.01] * 18
    assert rates[18] == pytest.approx(0.99384, abs=5e-6)
    assert rates[360] == 1.0


@pytest.mark.parametrize(
    ("schedule", "ends"), [(Cosine(10, 2), [9, 29, 69]), (Cosine(3), [2, 5, 8]), (Cosine(1), [0, 1, 2])]
)
def test_cycles_end_with_their_last_batch(schedule, ends):
    assert [step for step in range(ends[-1] + 1) if schedule.ends_cycle(step)] == ends


def test_one_batch_per_epoch_restarts():
    assert factors(Cosine(1), 4) == [0.01, 1.0, 1.0, 1.0]


def test_clr_is_a_slanted_triangle(rng):
    div, cut_div = float(rng.uniform(2, 40)), int(rng.integers(2, 12))
    nb = int(rng.integers(40, 200))
    cut = nb // cut_div
    expected = [
        (1 + (step / cut if step <= cut else 1 - (step - cut) / (nb - cut)) * (div - 1)) / div for step in range(nb)
    ]
    schedule = Triangle(nb, 1, div, cut_div)
    assert factors(schedule, 2 * nb) == pytest.approx(expected * 2, rel=1e-12)
    assert max(expected) == 1.0
    assert expected[0] == pytest.approx(1 / div)


def test_clr_beta_mirrors_momentum():
    schedule = OneCycle(100, 1, 10, 10, 0.95, 0.85)
    rates, momenta = factors(schedule, 100), [rate(schedule, step)[1] for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[45] == pytest.approx(1.0)
    assert rates[90] == pytest.approx(0.1)
    assert rates[99] == pytest.approx(0.1 * (1 - 0.99 * 0.9))
    assert (momenta[0], momenta[45], momenta[95]) == pytest.approx((0.95, 0.85, 0.95))


def test_finder_ends_at_the_last_rate():
    start, end, nb = 1e-5, 10.0, 50
    schedule = RangeTest(nb, end / start)
    expected = start * (end / start) ** (np.arange(nb) / nb)
    np.testing.assert_allclose(start * np.array(factors(schedule, nb)), expected, rtol=1e-12)
    linear = RangeTest(nb, end / start, linear=True)
    np.testing.assert_allclose(start * np.array(factors(linear, nb)), start + (end - start) * np.arange(nb) / nb)


def test_constant():
    assert factors(Constant(), 3) == [1.0] * 3
    assert not Constant().ends_cycle(2)


def test_fractional_multiplier_has_whole_batches():
    schedule = Cosine(10, 1.5)
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


SCHEDULES = [
    Constant(),
    Cosine(10),
    Cosine(7, 2),
    Cosine(360, 1.5),
    Triangle(40, 1, 32, 10),
    Triangle(23, 2, 8, 4),
    Triangle(11, 1, 8, 1.1),
    OneCycle(50, 1, 10, 12.5, 0.95, 0.85),
    OneCycle(33, 2, 5, 0),
    RangeTest(100, 1e6),
    RangeTest(30, 50.0, True),
]


@pytest.mark.parametrize("schedule", [*SCHEDULES, Table.of(lambda step: (1 / (1 + step), step / 9), 9)], ids=repr)
def test_native_code_equals_the_reference_implementation(schedule):
    found = []
    for backend in ("reference", "native"):
        with ops.use_backend(backend):
            found.append(np.array([rate(schedule, step) for step in range(500)], float))
    np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_saved_schedule_is_the_same(schedule):
    assert from_description(schedule.describe()) == schedule


@pytest.mark.parametrize("saved", [[9.0] * 8, [float("nan")] * 8, [1.0] * 7])
def test_an_unknown_saved_schedule_is_named(saved):
    with pytest.raises(ValueError, match="SGDR: schedule must be"):
        from_description(saved)


def test_a_table_holds_its_last_values():
    table = Table.of(lambda step: (0.5**step, 0.1 * step), 4)
    assert [rate(table, step) for step in (0, 2, 3, 4, 10**9)] == [
        (1, 0),
        (0.25, 0.2),
        (0.125, pytest.approx(0.3)),
        (0.125, pytest.approx(0.3)),
        (0.125, pytest.approx(0.3)),
    ]


@pytest.mark.parametrize("given", [-1, math.inf, math.nan, None, "fast", (1, 1), (1, -0.1), (1, 0.5, 2)])
def test_what_a_function_may_not_give_is_named_with_its_step(given):
    with pytest.raises(ValueError, match=r"schedule\(3\) must give a factor"):
        Table.of(lambda step: given if step == 3 else 1.0, 5)


def test_what_is_no_schedule_is_named():
    with pytest.raises(ValueError, match=r"a fastclf\.schedules object or a function of the step, got 'fast'"):
        as_schedule("fast")
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.1)
    for wrong in (torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), Cosine):
        with pytest.raises(ValueError, match="A scheduler of torch goes with an optimizer"):
            as_schedule(wrong)
    with pytest.raises(ValueError, match="in every step, or in none"):
        Table.of(lambda step: (1, 0.5) if step else 1, 3)
    with pytest.raises(ValueError, match="factors must be"):
        Table(np.empty(0))


# fit(schedule=...)


def decay(step):
    return 0.8**step


def with_momentum(step):
    return 1 / (1 + step), 0.9 - step / 100


def trained_by_hand(data, model, epochs, function, lrs):
    """The same fit in float64, by torch's SGD."""
    layers = [nn.Sequential(*group) for group in (model[:1], model[1:])]
    optimizer = torch.optim.SGD([{"params": group.parameters()} for group in layers], lr=1, momentum=0.9)
    step = 0
    for epoch in range(epochs):
        for x, y in data.trn_dl.batches(epoch):
            given = function(step)
            factor, momentum = given if isinstance(given, tuple) else (given, 0.9)
            for lr, group in zip(lrs, optimizer.param_groups, strict=True):
                group["lr"], group["momentum"] = lr * factor, momentum
            optimizer.zero_grad()
            nn.functional.nll_loss(layers[1](layers[0](x.double())), y).backward()
            optimizer.step()
            step += 1


@pytest.mark.parametrize("function", [decay, with_momentum])
def test_any_function_moves_the_rates_of_all_groups(tmp_path, rng, function):
    data = row_data(tmp_path, rng, device="cpu")
    model = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3), nn.LogSoftmax(1))
    learn = Learner.from_model_data(model, data, groups=[model[:1], model[1:]])
    exact = copy.deepcopy(model).double()
    learn.fit([0.02, 0.2], 3, schedule=function)
    trained_by_hand(data, exact, 3, function, [0.02, 0.2])
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    values = [function(step) for step in range(3 * len(data.trn_dl))]
    factors = [v[0] if isinstance(v, tuple) else v for v in values]
    assert learn.sched.lrs == pytest.approx([0.2 * factor for factor in factors])
    assert learn.sched.momentums == pytest.approx([v[1] for v in values if isinstance(v, tuple)])
    axes = learn.sched.plot_lr()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), learn.sched.lrs)


@pytest.mark.parametrize("function", [decay, with_momentum])
def test_the_engine_and_autograd_agree(tmp_path, rng, function):
    data = row_data(tmp_path, rng, device="cpu")
    learns = [HeadLearner(data, xtra_fc=[8], ps=0, opt_fn=o) for o in (None, partial(torch.optim.SGD, momentum=0.9))]
    for learn in learns:
        linear_relus(learn.head.layers)
        learn.fit(0.05, 2, schedule=function)
    for a, b in zip(*(learn.model.parameters() for learn in learns), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert learns[0].sched.lrs == learns[1].sched.lrs


def test_a_schedule_object_or_one_of_the_cycles(tmp_path, rng):
    data = row_data(tmp_path, rng, device="cpu")
    nb = len(data.trn_dl)
    learn, same = (HeadLearner(data, xtra_fc=[8]) for _ in range(2))
    assert learn.fit(0.1, 2, schedule=Cosine(nb)) == same.fit(0.1, 2, cycle_len=1)
    assert learn.sched.lrs == same.sched.lrs
    with pytest.raises(ValueError, match="schedule replaces cycle_len"):
        learn.fit(0.1, 2, cycle_len=1, schedule=decay)
    with pytest.raises(ValueError, match="Adagrad has no momentum that a schedule could set"):
        HeadLearner(data, opt_fn=torch.optim.Adagrad).fit(0.1, 1, schedule=with_momentum)


def test_a_fit_goes_on_with_its_function_and_with_no_other(tmp_path, rng):
    data = row_data(tmp_path, rng, device="cpu")
    fit = {"lrs": 0.1, "n_cycle": 3, "schedule": decay, "state_name": "run"}
    through = HeadLearner(data, xtra_fc=[8])
    through.fit(0.1, 3, schedule=decay)
    with pytest.raises(KeyboardInterrupt):
        HeadLearner(data, xtra_fc=[8]).fit(**fit, callbacks=[StopAt(5)])
    with pytest.raises(CheckpointError, match="these differ: schedule: table of "):
        HeadLearner(data, xtra_fc=[8]).fit(
            **fit | {"schedule": lambda step: 0.7**step}, callbacks=[StopAt()], resume=True
        )
    last = HeadLearner(data, xtra_fc=[8])
    last.fit(**fit, callbacks=[StopAt()], resume=True)
    for a, b in zip(through.model.parameters(), last.model.parameters(), strict=True):
        assert torch.equal(a, b)


class StopAt(Callback):
    def __init__(self, batches=None):
        self.batches, self.seen = batches, 0

    def on_batch_end(self, loss):
        self.seen += 1
        if self.seen == self.batches:
            signal.raise_signal(signal.SIGINT)


def test_the_state_of_an_optimizer_with_a_function():
    p = nn.Parameter(torch.ones(3))
    optimizer = SGDR([p], 0.1, schedule=decay)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    again = SGDR([p], 0.1, schedule=decay)
    again.load_state_dict(state)
    assert again.rates() == [pytest.approx(0.1 * 0.8**3)]
    with pytest.raises(ValueError, match="schedule must be the function that the state was saved with"):
        SGDR([p], 0.1).load_state_dict(state)
    assert isinstance(again.param_groups[0]["schedule"], Function)
