import numpy as np
import pytest
import torch
from helpers import row_data
from torch import nn

from fastclf import BCE, NLL, Callback, HeadLearner, ImageClassifierData
from fastclf.learners import fine_tuning
from fastclf.training.head_choice import Fold
from fastclf.training.head_runs import HeadSetting, HeadTraining
from fastclf.training.linear_heads import LinearSetting, linear_heads


def rows_of(folder, rng, n=60, features=90, c=3, several=False, spread=2):
    """Rows around a centre per class, more features than rows."""
    centres = rng.standard_normal((c, features))
    labels = np.arange(n + 24) % c
    x = (centres[labels] + spread * rng.standard_normal((n + 24, features))).astype(np.float32)
    y = np.eye(c, dtype=np.float32)[labels] if several else labels
    names = [f"c{k}" for k in range(c)]
    return ImageClassifierData.from_arrays(folder, (x[:n], y[:n]), (x[n:], y[n:]), classes=names, bs=16)


@pytest.fixture
def few(monkeypatch):
    """Two candidates to choose from."""
    monkeypatch.setattr(fine_tuning, "_LINEAR", [LinearSetting(decay, "pareto") for decay in (0.1, 0.01)])
    monkeypatch.setattr(fine_tuning, "_HIDDEN", [HeadSetting(0.03, 1e-2, 2, 0.5, (8,))])
    monkeypatch.setattr(fine_tuning, "_HIDDEN_OF_FEW", HeadSetting(0.1, 1e-2, 2, 0.5, (8,)))


def test_a_linear_head_is_the_minimum_of_the_weighted_loss(tmp_path, rng):
    data = rows_of(tmp_path, rng, several=True)
    ds, crit = data.trn_ds, BCE(weight=torch.tensor([1.0, 2.0, 0.5]))
    (head,) = linear_heads(ds, np.arange(60), [LinearSetting(0.1, "standard")], crit=crit)
    bn, linear = head.layers.double()
    linear.requires_grad_(True)
    loss = 3 * crit.from_logits(linear(bn(torch.from_numpy(ds.rows).double())), torch.from_numpy(ds.y))
    (gradient,) = torch.autograd.grad(loss, linear.weight)
    assert float((gradient + 0.1 * linear.weight).detach().abs().max()) < 1e-3


def test_no_validation_label_has_a_part_in_the_choice(tmp_path, rng, few):
    data = rows_of(tmp_path, rng)
    x, y = data.val_ds.rows, data.val_y
    other = ImageClassifierData.from_arrays(
        tmp_path, (data.trn_ds.rows, data.trn_y), (x, (y + 1) % 3), classes=data.classes, bs=16
    )
    made = [HeadLearner(each) for each in (data, other)]
    scores = [learn.fine_tune() for learn in made]
    assert scores[0] != scores[1]
    for one, two in zip(made[0].model.state_dict().values(), made[1].model.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_one_row_per_class_is_enough(tmp_path, rng, capsys):
    x = rng.standard_normal((6, 9)).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x[:3], np.arange(3)), (x[3:], np.arange(3)), classes=list("abc"))
    learn = HeadLearner(data)
    learn.fine_tune()
    assert "no class has two training rows" in capsys.readouterr().out
    assert (learn.predict_dl(data.fix_dl).argmax(1) == np.arange(3)).all()
    with pytest.raises(ValueError, match="no class has two rows"):
        learn.sweep(lr=0.1, wd=0)


@pytest.mark.parametrize("grid", [{"lr": []}, {"wd": ()}, {"ps": []}, {"epochs": []}, {"xtra_fc": []}])
def test_a_sweep_needs_values(tmp_path, rng, grid):
    learn = HeadLearner(rows_of(tmp_path, rng))
    with pytest.raises(ValueError, match="must each have a value to try"):
        learn.sweep(**grid)


WRONG_GRIDS = {
    "xtra_fc": [512, [512], "512", ["512"], None],
    "epochs": [0, [0], -1, 1.5, "2"],
    "lr": ["0.1", None, np.array(0.1), torch.tensor(0.1), [True]],
}


@pytest.mark.parametrize("name", WRONG_GRIDS)
def test_what_a_sweep_does_not_take_is_named(tmp_path, rng, name):
    learn = HeadLearner(rows_of(tmp_path, rng))
    for wrong in WRONG_GRIDS[name]:
        with pytest.raises(ValueError, match=f"{name} must be a"):
            learn.sweep(**{name: wrong})


def test_a_sweep_takes_anything_that_holds_several(tmp_path, rng):
    learn = HeadLearner(rows_of(tmp_path, rng))
    widths = (np.array([[4], [8]]), ([n] for n in (4, 8)), ((4,), [8]))
    found = [learn.sweep(lr=np.array([0.1]), wd=0.01, xtra_fc=given, epochs=range(1, 2)) for given in widths]
    assert {setting.xtra_fc for setting in found[0].settings} == {(4,), (8,)}
    for other in found[1:]:
        assert other.settings == found[0].settings
        np.testing.assert_array_equal(other.losses, found[0].losses)


def test_what_was_chosen_is_the_learner(tmp_path, rng, capsys):
    data = rows_of(tmp_path, rng)
    learn = HeadLearner(data)
    scores = learn.fine_tune(LinearSetting(0.1, "common"))
    assert capsys.readouterr().out.splitlines()[0].split() == ["epoch", "trn_loss", "val_loss", "accuracy"]
    assert scores == learn.sched.last()
    before = learn.predict()
    learn.save("m")
    again = HeadLearner(data, xtra_fc=[], ps=0)
    again.load("m")
    np.testing.assert_array_equal(again.predict(), before)
    learn.fit(1e-3, 1)
    assert not np.array_equal(learn.predict(), before)


@pytest.mark.parametrize("given", [0, "", [], 3, "best", [LinearSetting(0.1, "common")]])
def test_what_is_no_setting_is_named(tmp_path, rng, given):
    with pytest.raises(ValueError, match=r"setting must be a HeadSetting or LinearSetting.*sweep\(\)\.best"):
        HeadLearner(rows_of(tmp_path, rng)).fine_tune(given)


class Diary(Callback):
    def __init__(self, *, full_disk=False):
        self.lines, self.full_disk = [], full_disk

    def on_train_begin(self):
        self.lines.append("begin")

    def on_epoch_end(self, metrics):
        self.lines.append(metrics)
        if self.full_disk:
            raise OSError(28, "No space left on device")

    def on_train_end(self):
        self.lines.append("end")


def test_a_head_that_was_solved_calls_callbacks_as_a_fit_does(tmp_path, rng):
    learn, diary = HeadLearner(rows_of(tmp_path, rng)), Diary()
    scores = learn.fine_tune(LinearSetting(0.1, "common"), callbacks=[diary])
    assert diary.lines == ["begin", scores, "end"]
    with pytest.warns(UserWarning, match="Diary could not be written.*No space left"):
        learn.fine_tune(LinearSetting(0.1, "common"), callbacks=[Diary(full_disk=True)])


def test_a_search_within_a_solved_head_leaves_its_record(tmp_path, rng):
    class Searches(Callback):
        def on_epoch_end(self, metrics):
            learn.lr_find(1e-4, 1)

    learn = HeadLearner(rows_of(tmp_path, rng))
    scores = learn.fine_tune(LinearSetting(0.1, "common"), callbacks=[Searches()])
    assert learn.sched.val_losses == [scores[0]]


def test_a_sweep_is_sorted_and_leaves_the_learner_alone(tmp_path, rng):
    learn = HeadLearner(rows_of(tmp_path, rng))
    before = learn.predict()
    found = learn.sweep(lr=[0.01, 0.1], wd=1e-2, epochs=3, xtra_fc=[[], [8]])
    assert len(found.settings) == 4
    assert (np.diff(found.losses.mean(1)) >= 0).all()
    assert str(found).splitlines()[3].startswith(str(found.best))
    np.testing.assert_array_equal(learn.predict(), before)
    assert len(found.plot().get_yticklabels()) == 4
    learn.fine_tune(found.best)
    assert learn.head.widths == list(found.best.xtra_fc)
    assert isinstance(found.best, HeadSetting)


def test_a_class_of_one_row_is_learnt(tmp_path, rng, few):
    x = rng.standard_normal((12, 5)).astype(np.float32)
    y = np.array([0] * 6 + [1] * 5 + [2])
    data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=["a", "b", "c"], bs=4)
    learn = HeadLearner(data)
    with pytest.warns(UserWarning, match="all rows of the class"):
        learn.fine_tune()
    assert np.isfinite(learn.predict()).all()


def test_what_cannot_be_chosen_says_why(tmp_path, rng):
    own = nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1))
    data = row_data(tmp_path, rng)
    own[0] = nn.Linear(data.trn_ds.rows.shape[1], data.c)
    with pytest.raises(ValueError, match="custom_head"):
        HeadLearner(data, custom_head=own).fine_tune()


def test_epochs_of_a_sweep_follow_the_number_of_rows(tmp_path, rng):
    tried = []
    for n in (60, 1600):
        found = HeadLearner(row_data(tmp_path / str(n), rng, n=n)).sweep(0.1, 1e-2, xtra_fc=[[]])
        tried += [setting.epochs for setting in found.settings]
    assert tried == [30, 5]  # of 4 and 100 batches
    assert [HeadSetting().epochs_of(batches) for batches in (1, 13, 14, 40, 80, 81, 10_000)] == [
        30,
        30,
        29,
        10,
        5,
        5,
        5,
    ]
    assert HeadSetting(epochs=3).epochs_of(1) == 3


def test_hopeless_decays_are_not_tried(tmp_path, rng):
    """What is tried has the loss of a head solved by itself; the choice is that of trying everything."""
    data = rows_of(tmp_path, rng, n=90, spread=6)
    ds, crit = data.trn_ds, NLL()
    settings = [LinearSetting(10.0**-power, scaling) for scaling in ("common", "standard") for power in range(-2, 7)]
    parts = np.split(rng.permutation(90), [25, 52])
    splits = [Fold(np.setdiff1d(np.arange(90), part), part, 0) for part in parts]
    found = fine_tuning._losses(ds, settings, splits, HeadTraining(crit, 64), race=True)
    everything = np.empty_like(found)
    for fold, part in enumerate(parts):
        heads = linear_heads(ds, np.setdiff1d(np.arange(90), part), settings, crit=crit)
        x, y = (torch.from_numpy(each[part]) for each in (ds.rows, ds.y))
        everything[:, fold] = [float(crit.from_logits(head.logits(x).detach().double(), y)) for head in heads]
    tried = np.isfinite(found)
    # A step that lowers the loss by 1e-7 may move a weight under a penalty of `decay` by sqrt(2e-7 / decay).
    near = np.array([[1e-3 * (1 + setting.decay**-0.5)] for setting in settings])
    assert (np.abs(found / everything - 1) <= near)[tried].all()
    assert tried[:, 0].sum() < len(settings)
    assert tried[:, 1].sum() <= 9
    assert np.nanmin(found.mean(1)) == pytest.approx(everything.mean(1).min(), rel=0.05)


def test_by_many_rows_only_what_may_be_best_is_tried_again(tmp_path, rng):
    """Heads that are trained fall out of a race as solved ones do; of few rows, or without a race, they stay."""
    data = rows_of(tmp_path, rng, n=1100, spread=3)
    ds, crit = data.trn_ds, NLL()
    hopeless = [HeadSetting(1e-5, 1e-3, 1), LinearSetting(1e3, "common")]
    settings = [*hopeless, HeadSetting(0.1, 1e-3, 3), LinearSetting(0.01, "common")]
    rows = rng.permutation(1100)
    for n, race, goes_on in ((500, True, False), (499, True, True), (500, False, True)):
        splits = [Fold(np.setdiff1d(rows, part), part, 0) for part in (rows[:n], rows[-n:])]
        found = fine_tuning._losses(ds, settings, splits, HeadTraining(crit, 64), race=race)
        assert np.isfinite(found[:, 0]).all()
        tried = np.isfinite(found[:, 1])
        assert tried[:2].tolist() == [goes_on] * 2
        assert tried[np.argmin(found[:, 0])]
