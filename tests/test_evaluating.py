"""`learn.evaluate`, `calibrate` and `tune_thresholds`, on sets of every kind, and what of it is saved."""

import json

import numpy as np
import pytest
import torch
from helpers import image_data, row_data, three_colours, tiny_learner, write_images
from scipy.special import log_softmax
from sklearn import metrics as reference

from fastclf import CheckpointError, ConvLearner, HeadLearner, ImageClassifierData
from fastclf.checkpoint import _checksum
from fastclf.decision import Decision


def overconfident(learn, times=4.0):
    """Makes the model's logits larger, which changes no answer."""
    last = learn.head.layers[-1]
    with torch.no_grad():
        last.weight.mul_(times)
        last.bias.mul_(times)


@pytest.fixture
def learn(tmp_path, rng):
    """A head on rows of three classes that overlap, with a test set."""
    sets = []
    for n in (90, 120, 60):
        y = np.arange(n) % 3
        x = rng.standard_normal((n, 6)).astype(np.float32)
        x[np.arange(n), y] += 1.5
        sets.append((x, y))
    train, valid, test = sets
    data = ImageClassifierData.from_arrays(tmp_path, train, valid, test=test, classes=["ant", "bee", "cat"], bs=16)
    learn = HeadLearner(data, xtra_fc=[8])
    learn.fit(0.01, 2)
    return learn


@pytest.fixture
def several(tmp_path, rng):
    """A head on rows of three labels, the last of them rare."""
    y = (rng.random((260, 3)) < [0.5, 0.3, 0.1]).astype(np.float32)
    y[:2] = [[1, 1, 1], [0, 0, 0]]
    y[160:162] = [[1, 1, 1], [0, 0, 0]]
    x = rng.standard_normal((260, 6)).astype(np.float32)
    x[:, :3] += 1.5 * y
    data = ImageClassifierData.from_arrays(
        tmp_path, (x[:160], y[:160]), (x[160:], y[160:]), classes=["x", "y", "z"], bs=16
    )
    learn = HeadLearner(data, xtra_fc=[8])
    learn.fit(0.1, 5)  # enough that every label's probabilities rise with it, whatever the random rows
    return learn


@pytest.mark.parametrize("is_test", [False, True])
def test_evaluate_measures_what_predict_gives(learn, is_test):
    log_preds, y = learn.predict_with_targs(is_test)
    found = learn.evaluate(is_test)
    guess = log_preds.argmax(1)
    assert found["accuracy"] == reference.accuracy_score(y, guess)
    assert found["f1_macro"] == pytest.approx(reference.f1_score(y, guess, average="macro"), abs=1e-12)
    probs = np.exp(log_softmax(log_preds.astype(np.float64), axis=1))
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, probs), abs=1e-12)
    assert found["roc_auc_macro"] == pytest.approx(reference.roc_auc_score(y, probs, multi_class="ovr"), abs=1e-12)
    assert found.title == f"{len(y)} rows, {'test' if is_test else 'validation'} set, 3 classes"


def test_a_test_set_is_there_and_has_labels(tmp_path, rng):
    three_colours(tmp_path)
    learn = tiny_learner(image_data(tmp_path, test_name="test"))
    with pytest.raises(ValueError, match=r"the test set has no labels. Make the data with test_with_labels=True"):
        learn.evaluate(is_test=True)
    with pytest.raises(ValueError, match="needs data with a test set"):
        HeadLearner(row_data(tmp_path, rng)).evaluate(is_test=True)


@pytest.mark.parametrize("precompute", [False, True])
def test_bad_images_count_nowhere_and_views_are_averaged(tmp_path, precompute):
    three_colours(tmp_path, n=4)
    files = sorted((tmp_path / "valid").rglob("*.png"))
    for file in files[1:3]:
        file.write_bytes(b"broken")
    learn = tiny_learner(image_data(tmp_path, on_bad="skip"), precompute=precompute)
    plain, averaged = learn.evaluate(), learn.evaluate(tta=True)
    assert (plain.n, plain.left_out) == (averaged.n, averaged.left_out) == (16, 2)
    assert "2 of 18 rows have no prediction and are left out" in repr(plain)
    views, y = learn.TTA()
    known = y >= 0
    probs = np.exp(views.astype(np.float64)).mean(0)[known]
    assert averaged["accuracy"] == reference.accuracy_score(y[known], probs.argmax(1))
    assert averaged["log_loss"] == pytest.approx(reference.log_loss(y[known], probs / probs.sum(1)[:, None]), abs=1e-7)
    assert "mean of augmented views" in averaged.title


def test_calibrating_lowers_the_loss_and_changes_no_answer(learn, capsys):
    learn.fit(0.1, 5)
    fitting = learn.calibrate()
    learn.decision = Decision()
    overconfident(learn, times=4.0)
    before = learn.predict()
    evaluated = learn.evaluate()
    capsys.readouterr()
    temperature = learn.calibrate()
    line = capsys.readouterr().out
    after = learn.predict()
    assert temperature == learn.decision.temperature == pytest.approx(4 * fitting, rel=1e-4)
    np.testing.assert_allclose(after, log_softmax(before.astype(np.float64) / temperature, axis=1), atol=1e-5)
    assert (after.argmax(1) == before.argmax(1)).all()
    loss = learn.evaluate()["log_loss"]
    assert loss < evaluated["log_loss"]
    assert line.startswith(
        f"calibrate: temperature {temperature:.3f}; log loss {evaluated['log_loss']:.4f} -> {loss:.4f}"
    )
    assert learn.calibrate() == pytest.approx(temperature, rel=1e-6)  # not of what is tempered already


def test_every_prediction_is_tempered(tmp_path):
    three_colours(tmp_path, n=4)
    learn = tiny_learner(image_data(tmp_path))
    batch, _ = next(learn.data.val_dl.batches(0))
    plain = learn.predict(), learn.predict_dl(learn.data.val_dl), learn.predict_array(batch), learn.TTA(1)[0][1]
    learn.decision = Decision(temperature=2.0)
    tempered = learn.predict(), learn.predict_dl(learn.data.val_dl), learn.predict_array(batch), learn.TTA(1)[0][1]
    for old, new in zip(plain, tempered, strict=True):
        np.testing.assert_allclose(new, log_softmax(old / 2.0, axis=1), atol=1e-5)
        assert new.dtype == old.dtype


def test_a_head_of_ones_own_is_tempered(tmp_path, rng):
    data = row_data(tmp_path, rng)
    learn = HeadLearner(data, custom_head=torch.nn.Sequential(torch.nn.Linear(10, 3), torch.nn.LogSoftmax(1)))
    before = learn.predict()
    learn.decision = Decision(temperature=3.0)
    np.testing.assert_allclose(learn.predict(), log_softmax(before / 3.0, axis=1), atol=1e-6)


def test_all_answers_right_leave_the_temperature(tmp_path, rng, capsys):
    y = np.arange(12) % 2
    x = np.eye(2, dtype=np.float32)[y]
    head = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LogSoftmax(1))
    with torch.no_grad():
        head[0].weight.copy_(torch.eye(2))
        head[0].bias.zero_()
    learn = HeadLearner(ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), bs=4), custom_head=head)
    assert learn.calibrate() == 1
    assert "all answers on 12 validation rows are right, so the temperature stays 1" in capsys.readouterr().out
    assert learn.evaluate(unknown=0.1)["refused"] == 0


def test_thresholds_raise_f1_and_are_used(several, capsys):
    with torch.no_grad():
        several.head.layers[-1].bias.sub_(2)  # now hardly anything is above .5
    before = several.evaluate()
    capsys.readouterr()
    thresholds = several.tune_thresholds()
    assert "for 3 labels" in capsys.readouterr().out
    assert list(thresholds) == ["x", "y", "z"]
    after = several.evaluate()
    assert after.each["threshold"].tolist() == list(thresholds.values())
    assert after["f1_micro"] > np.nan_to_num(before["f1_micro"]) + 0.05
    probs, y = several.predict_with_targs()
    chosen = probs > np.array(list(thresholds.values()))
    assert after["f1_macro"] == pytest.approx(reference.f1_score(y, chosen, average="macro"), abs=1e-12)
    assert any("looks better on them" in note for note in after.notes)
    assert not any("looks better on them" in note for note in before.notes)


def test_calibrating_several_labels_keeps_what_is_chosen(several):
    overconfident(several)
    several.tune_thresholds()
    before = several.evaluate()
    assert several.calibrate() > 1
    after = several.evaluate()
    assert after["exact_match"] == before["exact_match"]
    assert after["log_loss"] < before["log_loss"]


def test_unknown_refuses_as_often_as_asked(learn):
    with pytest.raises(ValueError, match=r"Call learn.calibrate\(\)"):
        learn.evaluate(unknown=0.05)
    learn.calibrate()
    found = learn.evaluate(unknown=0.1)
    assert 0.08 <= found["refused"] <= 0.1
    assert found["accuracy_of_answered"] >= found["accuracy"] - 0.05


def test_calls_that_make_no_sense(learn, several, tmp_path, rng):
    with pytest.raises(ValueError, match="tune_thresholds: rows must have several labels"):
        learn.tune_thresholds()
    with pytest.raises(ValueError, match="unknown is for one label"):
        several.evaluate(unknown=0.05)
    for wrong in (1, 2.5, True, "5"):
        with pytest.raises(ValueError, match="evaluate: topk must be a whole number of at least 2"):
            learn.evaluate(topk=wrong)
    for name in ("is_test", "tta"):
        with pytest.raises(ValueError, match=f"evaluate: {name} must be True or False, got 'no'"):
            learn.evaluate(**{name: "no"})
    learn.calibrate()
    for wrong in (-0.1, 1, "5 %", True):
        with pytest.raises(ValueError, match="unknown must be a share of false refusals"):
            learn.evaluate(unknown=wrong)
    with pytest.raises(ValueError, match="TTA: needs "):
        learn.evaluate(tta=True)
    x = rng.standard_normal((40, 5)).astype(np.float32)
    data = ImageClassifierData.from_arrays(tmp_path, (x, x[:, :2]), (x, x[:, :2]), continuous=True, bs=8)
    numbers = HeadLearner(data, xtra_fc=[4])
    assert numbers.evaluate().overall.keys() == {"r2", "mae", "rmse"}
    with pytest.raises(ValueError, match="calibrate: the targets are numbers"):
        numbers.calibrate()


def test_fit_forgets_what_was_tuned_for_earlier_weights(learn, capsys):
    learn.calibrate()
    learn.lr_find()
    assert learn.decision != Decision()
    capsys.readouterr()
    learn.fit(0.01, 1)
    assert learn.decision == Decision()
    assert "were tuned for the earlier weights and are forgotten" in capsys.readouterr().out
    learn.fit(0.01, 1)
    assert "forgotten" not in capsys.readouterr().out


def test_saved_and_loaded(learn):
    overconfident(learn)
    learn.save("plain")
    learn.calibrate()
    learn.save("tuned")
    kept, predictions = learn.decision, learn.predict()
    learn.load("plain")
    assert learn.decision == Decision()
    learn.load("tuned")
    assert learn.decision == kept
    np.testing.assert_array_equal(learn.predict(), predictions)


def test_a_model_without_tuning_is_saved_as_ever(learn, tmp_path):
    learn.save("plain")
    assert "decision" not in json.loads((tmp_path / "models" / "plain.json").read_text())


def test_thresholds_follow_classes_in_another_order(several, tmp_path):
    several.tune_thresholds()
    several.save("m")
    data = several.data
    order = [2, 0, 1]
    sets = [(ds.rows, ds.y[:, order]) for ds in (data.trn_ds, data.val_ds)]
    other = HeadLearner(ImageClassifierData.from_arrays(tmp_path, *sets, classes=["z", "x", "y"], bs=16), xtra_fc=[8])
    with pytest.warns(UserWarning, match="its classes are in another order"):
        other.load("m")
    assert other.decision.thresholds == tuple(several.decision.thresholds[k] for k in order)
    assert other.evaluate()["exact_match"] == several.evaluate()["exact_match"]


def test_a_decision_that_cannot_be_leaves_the_learner_as_it_is(learn, tmp_path):
    learn.calibrate()
    learn.save("m")
    path = tmp_path / "models" / "m.json"
    info = json.loads(path.read_text())
    info["decision"] = {"temperature": -1}
    del info["check"]
    path.write_text(json.dumps(info | {"check": _checksum(info)}))
    overconfident(learn)
    before, decision = learn.predict(), learn.decision
    with pytest.raises(CheckpointError, match="has a decision that cannot be read: temperature must be"):
        learn.load("m")
    np.testing.assert_array_equal(learn.predict(), before)
    assert learn.decision == decision


def test_resuming_a_fit_after_calibrating(learn):
    learn.fit(0.01, 2, state_name="run")
    learn.calibrate()
    learn.fit(0.01, 2, state_name="run", resume=True)
    assert learn.decision == Decision()


def test_two_classes_of_which_one_is_absent_in_valid(tmp_path):
    write_images(tmp_path, {"train/red": 6, "train/blue": 6, "valid/red": 5})
    with pytest.warns(UserWarning, match="'blue'"):
        data = image_data(tmp_path)
    found = tiny_learner(data).evaluate()
    assert any("no row is of blue" in note for note in found.notes)
    assert repr(found)


def test_calls_are_those_of_every_learner():
    for cls in (HeadLearner, ConvLearner):
        for name in ("evaluate", "calibrate", "tune_thresholds"):
            assert getattr(cls, name).__doc__
