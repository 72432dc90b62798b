import numpy as np
import pytest

from fastclf.ops import rate
from fastclf.schedules import Cosine, OneCycle, RangeTest
from fastclf.training.recorder import Recorder


def filled(schedule, n, rng, lr=0.3):
    recorder = Recorder(schedule, lr)
    raw = rng.uniform(0, 2, n)
    for loss in raw:
        recorder.batch(float(loss), len(recorder.lrs))
    return recorder, raw


def test_loss_is_smoothed_and_debiased(rng):
    recorder, raw = filled(Cosine(10), 30, rng)
    for n in (1, 2, 30):
        weights = 0.02 * 0.98 ** np.arange(n)[::-1]
        expected = (weights * raw[:n]).sum() / (1 - 0.98**n)
        assert recorder.losses[n - 1] == pytest.approx(expected, rel=1e-9)
    assert recorder.losses[0] == pytest.approx(raw[0])


def test_rates_are_the_last_groups(rng):
    recorder, _ = filled(Cosine(10), 12, rng)
    assert recorder.lrs == pytest.approx([0.3 * rate(Cosine(10), step)[0] for step in range(12)])


@pytest.mark.parametrize(("n", "shown"), [(5, 5), (29, 29), (30, 15), (100, 85)])
def test_plot_skips_ends_only_when_enough_remain(rng, n, shown):
    recorder, _ = filled(RangeTest(n, 1e6), n, rng, lr=1e-5)
    ax = recorder.plot()
    assert len(ax.lines[0].get_xdata()) == shown
    assert ax.get_xscale() == "log"


def test_plots_draw_every_batch(rng):
    recorder, _ = filled(OneCycle(20, 1, 10, 10, 0.95, 0.85), 20, rng)
    assert len(recorder.plot_loss().lines[0].get_ydata()) == 20
    ax = recorder.plot_lr()
    assert len(ax.lines[0].get_ydata()) == 20
    assert len(recorder.momentums) == 20
    assert len(ax.figure.axes) == 2
