"""Measures of folds, their means, and the interval of Nadeau and Bengio."""

import json

import numpy as np
import pytest
from scipy import integrate, optimize, special
from sklearn import metrics

from fastclf.data.sources.labels import Labels
from fastclf.interpret.cross_validation import cross_validation, interval

NAMES = ["cat", "dog <b>", "eel"]


def predictions(rng, n=90, k=3):
    y = rng.integers(3, size=n)
    logits = rng.standard_normal((n, 3)) + 1.5 * np.eye(3)[y]
    return special.log_softmax(logits, 1), y, rng.permutation(np.arange(n) % k)


def test_measures_are_those_of_each_fold(rng):
    preds, y, folds = predictions(rng)
    found = cross_validation(preds, y, folds, Labels(y, NAMES))
    for name, measure in [
        ("accuracy", lambda y, p: metrics.accuracy_score(y, p.argmax(1))),
        ("f1_macro", lambda y, p: metrics.f1_score(y, p.argmax(1), average="macro")),
        ("log_loss", lambda y, p: metrics.log_loss(y, np.exp(p), labels=[0, 1, 2])),
    ]:
        exact = [measure(y[folds == fold], preds[folds == fold]) for fold in range(3)]
        np.testing.assert_allclose(found.each[name], exact, rtol=1e-9)
        assert found[name] == pytest.approx(np.mean(exact))
    with pytest.raises(KeyError, match="there is no measure 'acc'; there are accuracy"):
        found["acc"]


def test_several_labels(rng):
    true = rng.random((80, 3)) < 0.4
    probs = np.clip(0.5 * true + 0.6 * rng.random((80, 3)), 0, 1)
    folds = np.arange(80) % 4
    found = cross_validation(probs, true.astype(np.float32), folds, Labels(true, NAMES, is_multi=True))
    exact = [metrics.f1_score(true[folds == f], probs[folds == f] > 0.5, average="macro") for f in range(4)]
    np.testing.assert_allclose(found.each["f1_macro"], exact)


def test_the_interval_is_students_with_the_corrected_variance(rng):
    values = rng.random(5)
    low, high = interval(values, (-np.inf, np.inf))
    density = lambda x: (1 + x * x / 4) ** -2.5 * special.gamma(2.5) / np.sqrt(4 * np.pi) / special.gamma(2)  # noqa: E731
    quantile = optimize.brentq(lambda q: integrate.quad(density, -q, q)[0] - 0.95, 1, 9)
    half = quantile * np.sqrt((1 / 5 + 1 / 4) * ((values - values.mean()) ** 2).sum() / 4)
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], rtol=1e-6)
    assert interval(np.array([0.9, 1.0, 0.98]), (0, 1))[1] == 1
    assert interval(np.full(3, 0.75), (0, 1)) is None
    assert interval(np.array([0.5, np.nan]), (0, 1)) is None


def test_the_table_and_what_else_it_gives(rng):
    preds, y, folds = predictions(rng)
    preds[5], y[5] = np.nan, -1
    found = cross_validation(preds, y, folds, Labels(y, NAMES))
    text = repr(found)
    assert text.startswith("3-fold cross-validation of 89 training rows, 3 classes\n\n")
    assert f"{found['accuracy']:.4f}" in text
    assert "fold 2" in text
    assert "note: 1 of 90 rows have no prediction and are left out" in text
    assert "micro" not in text
    assert "<th>fold 2</th>" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["overall"]["accuracy"]["value"] == found["accuracy"]
    frame = found.to_frame()
    assert list(frame.index) == [0, 1, 2]
    np.testing.assert_array_equal(frame["accuracy"], found.each["accuracy"])


def test_what_a_fold_lacks_is_left_out_of_the_mean(rng):
    preds, y, folds = predictions(rng)
    y[:] = np.where(folds == 0, 0, y)  # of one class: its area under the ROC curve is undefined
    found = cross_validation(preds, y, folds, Labels(y, NAMES))
    values = found.each["roc_auc_macro"]
    assert np.isnan(values[0])
    assert found["roc_auc_macro"] == pytest.approx(np.nanmean(values))
    assert "roc_auc_macro" not in found.intervals
    assert "undefined in some folds" in repr(found)


def test_many_folds_have_no_columns(rng):
    preds, y, folds = predictions(rng, k=11)
    assert "fold 1" not in repr(cross_validation(preds, y, folds, Labels(y, NAMES)))
