import json

import numpy as np
import pytest
import torch

from fastclf.decision import UNKNOWN, Decision
from fastclf.interpret.tuning import thinned


def test_temperature_divides_logits(rng):
    logits = torch.from_numpy(rng.standard_normal((20, 4)).astype(np.float32) * 3)
    decision = Decision(temperature=2.5)
    tempered = decision.tempered(torch.log_softmax(logits, 1).numpy(), several=False)
    np.testing.assert_allclose(tempered, torch.log_softmax(logits / 2.5, 1).numpy(), atol=1e-6)
    several = decision.tempered(torch.sigmoid(logits).numpy(), several=True)
    np.testing.assert_allclose(several, torch.sigmoid(logits / 2.5).numpy(), atol=1e-4)
    assert tempered.dtype == several.dtype == np.float32


def test_certain_and_missing_predictions_are_tempered():
    several = Decision(temperature=2).tempered(np.array([[0.0, 1.0, np.nan]], np.float32), several=True)
    assert several[0, 0] == 0
    assert 0.9997 < several[0, 1] < 1
    assert np.isnan(several[0, 2])
    assert np.isnan(Decision(temperature=2).tempered(np.full((1, 2), np.nan), several=False)).all()


def test_the_default_changes_no_bit(rng):
    preds = rng.random((5, 3))
    assert Decision().tempered(preds, several=True) is preds
    assert (Decision().labels(preds) == (preds > 0.5)).all()
    assert Decision().answers(preds).tolist() == preds.argmax(1).tolist()


def test_another_temperature_keeps_the_chosen_labels(rng):
    probs = rng.random((50, 3))
    decision = Decision(2.0, thresholds=(0.1, 0.5, 0.93))
    other = decision.with_temperature(0.7)
    chosen = decision.labels(decision.tempered(probs, several=True))
    assert (other.labels(other.tempered(probs, several=True)) == chosen).all()
    assert other.thresholds[1] == 0.5


@pytest.mark.parametrize("n", [19, 39, 200, 5000])
def test_refusals_of_new_rows_are_as_rare_as_asked(n):
    rng = np.random.default_rng(3)
    refused = []
    for _ in range(400):
        decision = Decision(confidences=thinned(rng.beta(5, 1, n)))
        refused.append((rng.beta(5, 1, 500) < decision.least_confidence(0.05)).mean())
    assert 0.035 <= np.mean(refused) <= 0.055


def test_few_rows_cannot_tell_a_rare_refusal(capsys, monkeypatch):
    monkeypatch.setattr("fastclf.report._logged", set())
    assert Decision(confidences=(0.4, 0.6, 0.9)).least_confidence(0.05) == 0
    assert "needs 19 validation rows, and the model was calibrated on 3" in capsys.readouterr().out
    assert Decision(confidences=(0.5,) * 19).least_confidence(0.05) == 0.5
    assert Decision(confidences=(0.5,) * 19).least_confidence(np.float32(0.05)) == 0.5
    assert Decision(confidences=(0.5,)).least_confidence(0) == 0
    assert Decision(confidences=(0.4, 0.6, 0.9)).least_confidence(0.25) == 0.4


def test_answers_are_classes_none_of_these_or_no_prediction():
    probs = np.array([[0.9, 0.1], [0.45, 0.55], [np.nan, np.nan], [0.4, 0.6]])
    decision = Decision(confidences=(0.6, 0.7, 0.8))
    assert decision.answers(probs).tolist() == [0, 1, -1, 1]
    assert decision.answers(probs, unknown=0.25).tolist() == [0, UNKNOWN, -1, 1]


def test_answers_need_a_calibration_and_a_share():
    with pytest.raises(ValueError, match=r"Call learn.calibrate\(\)"):
        Decision().answers(np.ones((1, 2)) / 2, unknown=0.05)
    with pytest.raises(ValueError, match=r"share of false refusals in 0..1, such as .05, got 5"):
        Decision(confidences=(0.5,)).answers(np.ones((1, 2)) / 2, unknown=5)


def test_json_brings_back_every_bit(rng):
    decision = Decision(float(rng.uniform(0.5, 3)), tuple(rng.random(4).tolist()), tuple(rng.random(9).tolist()))
    for one in (decision, Decision(), Decision(temperature=1.5)):
        assert Decision.from_dict(json.loads(json.dumps(one.to_dict())), 4) == one
    assert Decision().to_dict() == {}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 0},
        {"temperature": float("nan")},
        {"temperature": True},
        {"temperature": "1"},
        {"thresholds": [0.5]},
        {"thresholds": [0.5, 2]},
        {"thresholds": [0.5, None]},
        {"thresholds": None},
        {"confidences": "0.5"},
        {"other": 1},
        [],
        None,
    ],
)
def test_anything_else_is_refused(values):
    with pytest.raises(ValueError):
        Decision.from_dict(values, 2)


def test_thresholds_follow_the_classes():
    assert Decision(thresholds=(0.1, 0.2, 0.3)).reordered([2, 0, 1]).thresholds == (0.3, 0.1, 0.2)
    assert Decision(temperature=2).reordered([1, 0]) == Decision(temperature=2)
