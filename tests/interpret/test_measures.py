"""Measures against scikit-learn called on each class by itself, and against loops; intervals' sums against measures."""

import numpy as np
import pytest
from sklearn import metrics as reference

from fastclf.interpret import intervals, measures

NEAR = {"rel": 0, "abs": 1e-12, "nan_ok": True}


def one_label(rng, n, c, absent=()):
    y = rng.choice(np.setdiff1d(np.arange(c), absent), n)
    logits = rng.standard_normal((n, c)).round(1)  # rounded: probabilities that are equal
    logits[np.arange(n), y] += 1
    p = np.exp(logits)
    return p / p.sum(1, keepdims=True), y


def several_labels(rng, n, c):
    y = rng.random((n, c)) < np.linspace(0.1, 0.6, c)
    p = 1 / (1 + np.exp(-(rng.standard_normal((n, c)) + 2 * y - 1)))
    return p.round(2), y


@pytest.mark.parametrize(("n", "c"), [(90, 2), (200, 7), (300, 40), (12, 3)])
def test_one_label_equals_scikit_learn(rng, n, c):
    p, y = one_label(rng, n, c)
    y[:c] = np.arange(c)  # all classes, as scikit-learn's averages of ranks need
    found = measures.of_one_label(p, y, topk=3)
    guess, labels = p.argmax(1), np.arange(c)
    expected = {
        "accuracy": reference.accuracy_score(y, guess),
        "balanced_accuracy": reference.balanced_accuracy_score(y, guess),
        "log_loss": reference.log_loss(y, p),
        "kappa": reference.cohen_kappa_score(y, guess),
        "mcc": reference.matthews_corrcoef(y, guess),
    }
    for average in ("macro", "micro"):
        how = {"average": average, "labels": labels, "zero_division": np.nan}
        expected[f"precision_{average}"] = reference.precision_score(y, guess, **how)
        expected[f"recall_{average}"] = reference.recall_score(y, guess, **how)
        expected[f"f1_{average}"] = reference.f1_score(y, guess, **how)
    one_hot = np.eye(c)[y]
    expected["roc_auc_macro"] = reference.roc_auc_score(one_hot, p, average="macro")
    expected["average_precision_macro"] = reference.average_precision_score(one_hot, p, average="macro")
    if c > 3:
        expected["top_3_accuracy"] = reference.top_k_accuracy_score(y, p, k=3, labels=labels)
        assert found.overall["top_3_accuracy"] >= found.overall["accuracy"]
    assert found.overall.keys() == expected.keys() | {"calibration_error"}
    for name, value in expected.items():
        assert found.overall[name] == pytest.approx(value, **NEAR), name
    report = reference.classification_report(y, guess, labels=labels, output_dict=True, zero_division=np.nan)
    for k in range(c):
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score"), ("rows", "support")):
            assert found.each[ours][k] == pytest.approx(report[str(k)][theirs], **NEAR)
        assert found.each["predicted"][k] == (guess == k).sum()


@pytest.mark.parametrize(("n", "c"), [(80, 2), (300, 9)])
def test_several_labels_equal_scikit_learn(rng, n, c):
    p, y = several_labels(rng, n, c)
    y[0], y[1] = True, False
    thresholds = rng.uniform(0.2, 0.8, c)
    chosen = p > thresholds
    found = measures.of_several_labels(p, y, chosen, thresholds)
    expected = {
        "exact_match": np.mean([(a == b).all() for a, b in zip(y, chosen, strict=True)]),
        "accuracy": np.mean(y == chosen),
        "balanced_accuracy": np.mean([reference.balanced_accuracy_score(y[:, k], chosen[:, k]) for k in range(c)]),
        "log_loss": np.mean([reference.log_loss(y[:, k], p[:, k]) for k in range(c)]),
        "kappa": np.mean([reference.cohen_kappa_score(y[:, k], chosen[:, k]) for k in range(c)]),
        "mcc": np.mean([reference.matthews_corrcoef(y[:, k], chosen[:, k]) for k in range(c)]),
    }
    for average in ("macro", "micro"):
        how = {"average": average, "zero_division": np.nan}
        expected[f"precision_{average}"] = reference.precision_score(y, chosen, **how)
        expected[f"recall_{average}"] = reference.recall_score(y, chosen, **how)
        expected[f"f1_{average}"] = reference.f1_score(y, chosen, **how)
        expected[f"roc_auc_{average}"] = reference.roc_auc_score(y, p, average=average)
        expected[f"average_precision_{average}"] = reference.average_precision_score(y, p, average=average)
    assert found.overall.keys() == expected.keys() | {"calibration_error"}
    for name, value in expected.items():
        assert found.overall[name] == pytest.approx(value, **NEAR), name
    k = int(rng.integers(c))
    assert found.each["f1"][k] == pytest.approx(reference.f1_score(y[:, k], chosen[:, k]), **NEAR)
    assert found.each["log_loss"][k] == pytest.approx(reference.log_loss(y[:, k], p[:, k]), **NEAR)
    assert found.each["threshold"][k] == thresholds[k]


def test_regression_equals_scikit_learn(rng):
    y = rng.standard_normal((70, 3))
    preds = y + rng.standard_normal((70, 3)) * [0.1, 1, 3]
    found = measures.of_regression(preds, y)
    for name, score in (
        ("r2", reference.r2_score),
        ("mae", reference.mean_absolute_error),
        ("rmse", reference.root_mean_squared_error),
    ):
        assert found.overall[name] == pytest.approx(score(y, preds), **NEAR)
        np.testing.assert_allclose(found.each[name], score(y, preds, multioutput="raw_values"), rtol=0, atol=1e-12)


def test_a_constant_column_or_one_row_has_no_r2(rng):
    y = np.stack([np.full(20, 3.0), rng.standard_normal(20)], 1)
    found = measures.of_regression(y + 0.5, y)
    assert np.isnan(found.each["r2"][0])
    assert found.overall["r2"] == found.each["r2"][1]
    one = measures.of_regression(y[:1] + 0.5, y[:1])
    assert np.isnan(one.each["r2"]).tolist() == [True, True]
    assert one.overall["mae"] == pytest.approx(0.5)


def test_calibration_error_is_the_mean_gap_of_bins(rng):
    confidences = rng.random(500)
    right = rng.random(500) < confidences**2
    expected = 0.0
    for low in range(15):
        inside = (confidences > low / 15) & (confidences <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidences[inside].mean() - right[inside].mean())
    assert measures.calibration_error(confidences, right) == pytest.approx(expected, abs=1e-12)
    assert measures.calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_a_class_without_rows_counts_in_no_average(rng):
    p, y = one_label(rng, 60, 4, absent=[1])
    p[:, 1] /= 1000  # nobody is taken for it
    p /= p.sum(1, keepdims=True)
    found = measures.of_one_label(p, y, topk=2)
    for name in ("precision", "recall", "f1", "roc_auc", "average_precision"):
        assert np.isnan(found.each[name]).tolist() == [False, True, False, False]
        assert found.overall[f"{name}_macro"] == pytest.approx(np.delete(found.each[name], 1).mean(), **NEAR)
    assert found.each["rows"][1] == 0


def test_a_label_that_nobody_or_everybody_has(rng):
    p, y = several_labels(rng, 40, 3)
    y[:, 0], y[:, 2] = False, True
    y[:20, 1], y[20:, 1] = True, False
    found = measures.of_several_labels(p, y, p > 0.5, np.full(3, 0.5))
    for name in ("roc_auc", "kappa", "mcc", "balanced_accuracy"):
        assert np.isnan(found.each[name]).tolist() == [True, False, True]
    assert np.isnan(found.each["average_precision"]).tolist() == [True, False, False]
    assert np.isfinite(list(found.overall.values())).all()


def as_rows(counts):
    """The rows of a resample, one by one."""
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def resamples(rng, n, count=6):
    """Each row once, and then rows as often as they were drawn."""
    return np.stack([np.ones(n), *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(count))]).astype(
        float
    )


@pytest.mark.parametrize(("n", "c"), [(60, 2), (150, 5), (25, 12)])
def test_measures_of_resamples_of_one_label(rng, n, c):
    p, y = one_label(rng, n, c)
    counts = resamples(rng, n)
    found = intervals.of_one_label(p, y)(counts)
    for b, row in enumerate(map(as_rows, counts)):
        expected = measures.of_one_label(p[row], y[row], topk=3).overall
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], rel=1e-9, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize(("n", "c"), [(60, 2), (150, 5), (12, 6)])
def test_measures_of_resamples_of_several_labels(rng, n, c):
    p, y = several_labels(rng, n, c)
    chosen = p > 0.4
    counts = resamples(rng, n)
    found = intervals.of_several_labels(p, y, chosen)(counts)
    for b, row in enumerate(map(as_rows, counts)):
        expected = measures.of_several_labels(p[row], y[row], chosen[row], np.full(c, 0.4)).overall
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], rel=1e-9, abs=1e-9, nan_ok=True), name


def test_measures_of_resamples_of_a_regression(rng):
    y = np.concatenate([rng.standard_normal((40, 2)), np.ones((40, 1))], 1)
    preds = y + rng.standard_normal((40, 3))
    counts = resamples(rng, 40)
    found = intervals.of_regression(preds, y)(counts)
    for b, row in enumerate(map(as_rows, counts)):
        expected = measures.of_regression(preds[row], y[row]).overall
        for name, values in found.items():
            assert values[b] == pytest.approx(expected[name], rel=1e-9, abs=1e-9), name
