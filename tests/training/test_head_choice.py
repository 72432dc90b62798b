"""The choice of a head's setting for each fold: by others, on any number of threads."""

import gc
import signal
import weakref

import numpy as np
import pytest
import torch
from helpers import out_of_fold, row_data

from fastclf import NLL, HeadLearner
from fastclf.training import head_choice
from fastclf.training import linear_heads as linear_module
from fastclf.training.folds import make_folds
from fastclf.training.head_choice import (
    Choice,
    Fold,
    choose,
    clearly_above,
    for_fewer,
    head_at,
    mean_loss,
    predict_splits,
    splits_of,
    trained_settings,
    try_settings,
    usual_settings,
)
from fastclf.training.head_runs import HeadRun, HeadSetting, HeadTraining, predict_rows, train_heads
from fastclf.training.linear_heads import LinearSetting, linear_heads

TRAINED = [HeadSetting(0.05, wd, 2, xtra_fc=(7,)) for wd in (1e-3, 1e-1)]
LINEAR = [LinearSetting(decay, "pareto") for decay in (10.0, 0.5)]
TRAINING = HeadTraining(NLL(), 16)


@pytest.fixture
def ds(tmp_path, rng):
    data = row_data(tmp_path, rng, n=70, f=12)
    data.trn_ds.labels.y[::5] = rng.integers(3, size=14)
    return data.trn_ds


def losses_of(ds, splits, settings):
    """Every setting on every split, one after another."""
    found = np.empty((len(splits), len(settings)))
    for f, split in enumerate(splits):
        for s, setting in enumerate(settings):
            if isinstance(setting, LinearSetting):
                (head,) = linear_heads(ds, split.train, [setting], crit=NLL())
            else:
                (head,) = train_heads(ds, [HeadRun(setting, split.train, split.seed)], TRAINING)
            logits = predict_rows(head, ds, split.held_out)
            found[f, s] = mean_loss(NLL(), logits, ds.y[split.held_out])
    return found


@pytest.mark.parametrize("enough", [1, 500])
def test_a_fold_gets_what_is_best_on_the_others(ds, enough, monkeypatch):
    monkeypatch.setattr(head_choice, "_ENOUGH", enough)
    settings = [*TRAINED, *LINEAR]
    splits = splits_of(ds, make_folds(ds.labels, 4, seed=3), 5)
    found = choose(ds, Choice(splits, settings), TRAINING)
    losses = losses_of(ds, splits, settings)
    tried = losses[: 2 if enough == 1 else 4]
    for f, (setting, logits) in enumerate(zip(found.settings, found.logits, strict=True)):
        others = np.delete(tried, f, 0) if f < len(tried) else tried
        assert setting == settings[others.mean(0).argmin()]
        own = mean_loss(NLL(), logits, ds.y[splits[f].held_out])
        assert own == pytest.approx(losses[f, settings.index(setting)], rel=1e-3)
    assert found.best == settings[tried.mean(0).argmin()]


def test_labels_of_a_fold_have_no_part_in_its_choice(ds):
    """The other split is judged by rows that both train on, so that no head has seen the fold's labels."""
    fold, *_ = splits_of(ds, make_folds(ds.labels, 2, seed=3), 5)
    choice = Choice([fold, Fold(fold.train, fold.train, 5)], [*TRAINED, *LINEAR])
    before = choose(ds, choice, TRAINING)
    ds.labels.y[fold.held_out] = (ds.labels.y[fold.held_out] + 1) % 3
    after = choose(ds, choice, TRAINING)
    assert before.settings[0] == after.settings[0]
    np.testing.assert_allclose(before.logits[0], after.logits[0], atol=1e-3)  # a path ends sooner or later


def test_labels_of_held_out_rows_have_no_part_in_their_predictions(ds):
    ds.bad.reasons = {7: "broken"}
    folds = make_folds(ds.labels, 3, seed=1)
    settings = [*TRAINED, *LINEAR]
    splits = splits_of(ds, folds, 4)
    assert not any(7 in rows for split in splits for rows in (split.train, split.held_out))
    jobs = [(setting, split) for setting in settings for split in splits]
    before = try_settings(ds, jobs, TRAINING)
    ds.labels.y[splits[1].held_out] = (ds.labels.y[splits[1].held_out] + 1) % 3
    after = try_settings(ds, jobs, TRAINING)
    for i, (one, other) in enumerate(zip(before, after, strict=True)):
        assert one.shape == (len(jobs[i][1].held_out), 3)
        assert one.dtype == np.float32
        assert np.array_equal(one, other) == (i % 3 == 1)
    for one, other in zip(try_settings(ds, jobs[:3], TRAINING), after[:3], strict=True):  # alone as with others
        np.testing.assert_array_equal(one, other)


def test_one_setting_is_no_choice(ds):
    folds = make_folds(ds.labels, 3, seed=1)
    splits = splits_of(ds, folds, 9)
    found = choose(ds, Choice(splits, TRAINED[:1]), TRAINING)
    expected = out_of_fold(ds, TRAINED[0], folds, 9, TRAINING)
    np.testing.assert_array_equal(found.all_logits(splits, ds), expected)
    assert {*found.settings, found.best} == {TRAINED[0]}


def test_a_head_that_diverges_is_not_chosen(ds):
    splits = splits_of(ds, make_folds(ds.labels, 3, seed=1), 9)
    hopeless = HeadSetting(1e30, 1e-2, 1, xtra_fc=(7,))
    found = choose(ds, Choice(splits, [hopeless, TRAINED[0]]), TRAINING)
    assert {*found.settings, found.best} == {TRAINED[0]}
    bad, good = try_settings(ds, [(hopeless, splits[0]), (TRAINED[0], splits[0])], TRAINING)
    assert np.isnan(bad).all()
    np.testing.assert_array_equal(good, *try_settings(ds, [(TRAINED[0], splits[0])], TRAINING))
    alone = choose(ds, Choice(splits, [hopeless, hopeless]), TRAINING)
    assert not any(np.isfinite(each).all() for each in alone.logits)


def test_answers_do_not_depend_on_the_number_of_threads(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng, n=420, f=220))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((learn.audit(), learn.learning_curve(2)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    (audit, curve), *others = found
    for other, other_curve in others:
        for name, preds in audit.preds.items():
            np.testing.assert_array_equal(preds, other.preds[name])
        np.testing.assert_array_equal(curve.overall.accuracy, other_curve.overall.accuracy)


def test_what_is_given_is_taken(rng):
    n = int(rng.integers(50, 2400))
    assert trained_settings(n, bs=64, wd=0.2, lr=0.3) == [HeadSetting(0.3, 0.2)]
    assert {setting.epochs for setting in trained_settings(n, bs=64, epochs=3)} == {3}
    assert trained_settings(10_000, bs=64, wd=0.2, epochs=3) == [HeadSetting(wd=0.2, epochs=3)]
    assert [(s.wd, s.epochs) for s in trained_settings(8000, bs=64)] == [(1e-3, 16), (1e-2, None)]
    assert {s.epochs for n in (2600, 10**6) for s in trained_settings(n, bs=64)} == {20, 5, None}
    assert all(isinstance(setting, LinearSetting) for setting in usual_settings(n, 64))
    assert usual_settings(8000, 64) == trained_settings(8000, bs=64)


def test_a_prior_weighs_more_beside_fewer_rows():
    assert for_fewer(LinearSetting(0.1, "pareto"), 1000, 250, 64) == LinearSetting(0.4, "pareto")
    assert for_fewer(HeadSetting(wd=1e-3), 8000, 800, 64) == HeadSetting(wd=1e-2)
    assert for_fewer(HeadSetting(wd=1e-3, epochs=16), 8000, 800, 64) == HeadSetting(wd=1e-2, epochs=30)


def test_a_head_of_all_rows(ds, rng):
    rows = rng.permutation(70)[:60]
    for setting in (HeadSetting(0.05, 1e-3, 20, xtra_fc=(7,)), LINEAR[1]):
        head = head_at(setting, ds, rows, 4, TRAINING)
        assert (predict_rows(head, ds, rows).argmax(1) == ds.y[rows]).mean() > 0.5


def test_what_chance_explains_is_not_clearly_above(rng):
    lowest = rng.exponential(size=2000)
    noise = rng.standard_normal(2000)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(2000)
    assert clearly_above(lowest + noise + 3.01 * error, lowest)
    assert not clearly_above(lowest + noise + 2.99 * error, lowest)
    assert not clearly_above(lowest, lowest)
    assert not clearly_above(lowest[:499] + 1, lowest[:499])  # few rows are never clear


def test_rows_are_centred_once_per_split_and_let_go(ds, monkeypatch):
    """The scalings of a split share its rows, which no one holds when those of the next are read."""
    made = []

    class Counted(linear_module._Centred):
        def __init__(self, *args):
            assert not any(other() for other in made)
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(linear_module, "_Centred", Counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    splits = splits_of(ds, make_folds(ds.labels, 3, seed=1), 4)
    settings = [LinearSetting(decay, scaling) for decay in (1.0, 0.5) for scaling in ("common", "pareto", "standard")]
    jobs = [(setting, split) for setting in settings for split in splits]
    gc.disable()
    try:
        together = try_settings(ds, jobs, TRAINING)
        assert len(made) == 3
        assert not any(other() for other in made)
    finally:
        gc.enable()
    for job, logits in zip(jobs[:9], together, strict=False):  # alone as with others
        np.testing.assert_array_equal(logits, *try_settings(ds, [job], TRAINING))


def test_an_interrupt_ends_logistic_regressions_within_a_pass(ds, monkeypatch):
    real_call, real_loss, stops, passes = head_choice._Path.__call__, linear_module._Problem._loss, [], []

    def call(path, stop):
        stops.append(stop)
        real_call(path, stop)

    def loss(problem, flat, decay):
        passes.append(decay)
        if len(passes) == 2:
            signal.raise_signal(signal.SIGINT)
            assert stops[0].wait(60)
        return real_loss(problem, flat, decay)

    monkeypatch.setattr(head_choice._Path, "__call__", call)
    monkeypatch.setattr(linear_module._Problem, "_loss", loss)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    (split, *_) = splits_of(ds, make_folds(ds.labels, 3, seed=1), 4)
    jobs = [(LinearSetting(1e-3, scaling), split) for scaling in ("common", "pareto", "standard")]
    with pytest.raises(KeyboardInterrupt):
        try_settings(ds, jobs, TRAINING)
    assert len(passes) == 2
    assert len(stops) == 1  # what has not begun does not begin


def test_a_split_without_a_prediction_is_an_error(ds):
    (split, *_) = splits_of(ds, make_folds(ds.labels, 3, seed=1), 4)
    with pytest.raises(AssertionError, match="hopeless"):
        predict_splits(ds, [(setting, split) for setting in LINEAR], TRAINING)
