"""What is tuned, against a search of everything that could be chosen."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax
from sklearn.metrics import accuracy_score, balanced_accuracy_score, fbeta_score, log_loss

from fastclf.interpret.tuning import best_temperature, best_thresholds, thinned

SCORES = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "f1": lambda y, chosen: fbeta_score(y, chosen, beta=1, zero_division=0),
    "f2": lambda y, chosen: fbeta_score(y, chosen, beta=2, zero_division=0),
}


def sure_rows(rng, n, c, scale):
    """Logits that are ``scale`` times as sure as the truth they were sampled with."""
    z = rng.standard_normal((n, c)) * 2
    y = (log_softmax(z, axis=1) + rng.gumbel(size=(n, c))).argmax(1)
    return z * scale, y


@pytest.mark.parametrize("scale", [0.4, 1, 3])
def test_the_temperature_that_probabilities_lack_is_found(rng, scale):
    z, y = sure_rows(rng, 4000, 5, scale)
    found = best_temperature(log_softmax(z, axis=1).astype(np.float32), y)
    assert found == pytest.approx(scale, rel=0.15)
    odds = rng.standard_normal((3000, 2)) * 2
    labels = (rng.random((3000, 2)) < expit(odds)).astype(np.float32)
    assert best_temperature(expit(odds * scale), labels) == pytest.approx(scale, rel=0.2)


def test_no_other_temperature_has_a_lower_loss(rng):
    z, y = sure_rows(rng, 60, 3, 2)
    found = best_temperature(log_softmax(z, axis=1), y)

    def loss(temperature):
        return log_loss(y, np.exp(log_softmax(z / temperature, axis=1)), labels=range(3))

    assert loss(found) <= min(map(loss, np.geomspace(0.1, 20, 400))) + 1e-12


def test_where_all_answers_are_right_no_temperature_is_best():
    assert best_temperature(np.log([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 1])) is None
    assert best_temperature(np.array([[0.9, 0.1]]), np.array([[1.0, 0.0]])) is None


def test_certain_mistakes_leave_a_finite_temperature():
    probs = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]], np.float32)
    found = best_temperature(probs, np.array([[1, 0], [0, 0], [1, 1]], np.float32))
    assert 1 < found <= 100


def labelled(rng, n, rate, shift):
    """Probabilities of a label that a share of rows has, right but for a shift of their log-odds."""
    y = rng.random(n) < rate
    z = 1.8 * (rng.standard_normal(n) + 1.8 * y) - 1.8**2 / 2 + np.log(rate / (1 - rate))
    return expit(z + shift)[:, None], y[:, None].astype(np.float32)


@pytest.mark.parametrize("metric", SCORES)
@pytest.mark.parametrize(("rate", "shift"), [(0.3, 0), (0.3, -2), (0.05, 1)])
def test_hardly_any_threshold_is_better_on_other_rows(metric, rate, shift):
    rng = np.random.default_rng(4)
    (threshold,) = best_thresholds(*labelled(rng, 3000, rate, shift), metric)
    probs, y = labelled(rng, 100_000, rate, shift)
    value = SCORES[metric](y > 0, probs > threshold)
    others = [SCORES[metric](y > 0, probs > other) for other in expit(np.linspace(-6, 4, 41))]
    assert max(others) - 0.01 <= value
    assert value >= SCORES[metric](y > 0, probs > 0.5) - 0.002


def test_thresholds_of_few_rows_are_better_than_those_that_fit_them_best():
    rng = np.random.default_rng(5)
    tuned, fitted = [], []
    for _ in range(40):
        probs, y = labelled(rng, 150, 0.15, 0)
        candidates = np.unique(probs)
        best = candidates[np.argmax([SCORES["f1"](y > 0, probs > t) for t in candidates])]
        others, true = labelled(rng, 10_000, 0.15, 0)
        tuned.append(SCORES["f1"](true > 0, others > best_thresholds(probs, y)[0]))
        fitted.append(SCORES["f1"](true > 0, others > best))
    assert np.mean(tuned) > np.mean(fitted) + 0.005


def test_certain_and_separable_labels_have_a_threshold_between(rng):
    y = (np.arange(40) % 2).astype(np.float32)[:, None]
    (threshold,) = best_thresholds(0.2 + 0.3 * y + rng.uniform(0, 0.1, y.shape), y)
    assert 0.3 < threshold < 0.5
    (threshold,) = best_thresholds(y.copy(), y)
    assert 0 < threshold < 1


def test_labels_of_which_probabilities_say_nothing_keep_a_half(rng):
    y = np.stack([np.zeros(9), np.ones(9)], 1)
    assert best_thresholds(rng.random((9, 2)), y) == (0.5, 0.5)
    some = np.array([[1], [0], [1], [1]])
    assert best_thresholds(np.full((4, 1), 0.3), some) == (0.5,)
    assert best_thresholds(0.5 - 0.4 * some, some) == (0.5,)


def test_metrics_are_named():
    with pytest.raises(ValueError, match="metric must be one of accuracy, balanced_accuracy, f1, f2, got 'f3'"):
        best_thresholds(np.zeros((2, 1)), np.array([[1], [0]]), "f3")


def test_confidences_are_all_kept_or_evenly_thinned(rng):
    few = rng.random(30)
    assert thinned(few) == tuple(np.sort(few))
    many = rng.permutation(np.arange(1, 20_000) / 20_000)  # a value tells its rank
    kept = np.array(thinned(many))
    assert len(kept) == 1000
    np.testing.assert_allclose(kept, np.arange(1, 1001) / 1001, atol=1 / 20_000)
    assert (kept <= np.arange(1, 1001) / 1001).all()
