import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from fastclf.training.metrics import (
    accuracy,
    accuracy_np,
    accuracy_thresh,
    evaluate_metric,
    f1,
    fbeta,
    log_loss,
    mean_average_precision,
    name_of,
    precision,
    recall,
)

KINDS = ["array", "tensor"]


def as_kind(kind, *arrays):
    return arrays if kind == "array" else [torch.from_numpy(a) for a in arrays]


def one_label(rng, n, c, present=None):
    """Probabilities, and class numbers of which some classes may be missing."""
    p = rng.dirichlet(np.ones(c), n)
    return p, rng.choice(c if present is None else present, n)


@pytest.fixture(params=[(7, 2), (50, 3), (400, 120), (31, 12)], ids=str)
def single(rng, request):
    n, c = request.param
    return one_label(rng, n, c, rng.choice(c, max(1, c - 2), replace=False) if c > 3 else None)


@pytest.fixture(params=[(1, 2), (33, 5), (200, 17)], ids=str)
def several(rng, request):
    n, c = request.param
    return rng.uniform(0, 1, (n, c)), (rng.uniform(0, 1, (n, c)) < 0.2).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_matches_scikit_learn(single, kind):
    p, y = single
    expected = reference.accuracy_score(y, p.argmax(1))
    for preds in (p, np.log(p), p.astype(np.float32)):
        preds, targs = as_kind(kind, preds, y)
        assert accuracy(preds, targs) == accuracy_np(preds, targs) == pytest.approx(expected, abs=1e-12)


def sklearn_average(c):
    return {"average": "binary", "pos_label": 1} if c == 2 else {"average": "macro", "labels": np.arange(c)}


@pytest.mark.parametrize("kind", KINDS)
def test_precision_recall_and_f_match_scikit_learn_with_one_label(single, kind):
    p, y = single
    how = sklearn_average(p.shape[1]) | {"zero_division": np.nan}
    guess = p.argmax(1)
    preds, targs = as_kind(kind, np.log(p), y)
    near = {"abs": 1e-12, "nan_ok": True}
    assert precision(preds, targs) == pytest.approx(reference.precision_score(y, guess, **how), **near)
    assert recall(preds, targs) == pytest.approx(reference.recall_score(y, guess, **how), **near)
    assert f1(preds, targs) == pytest.approx(reference.f1_score(y, guess, **how), **near)
    for beta in (0.5, 2):
        expected = reference.fbeta_score(y, guess, beta=beta, **how)
        assert fbeta(beta)(preds, targs) == pytest.approx(expected, **near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("thresh", [0.2, 0.5])
def test_precision_recall_and_f_match_scikit_learn_with_several_labels(several, kind, thresh):
    p, y = several
    how = {"average": "samples", "zero_division": np.nan}
    guess = p > thresh
    preds, targs = as_kind(kind, p, y)
    near = {"abs": 1e-12, "nan_ok": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's about rows without any label
        expected = [
            reference.precision_score(y, guess, **how),
            reference.recall_score(y, guess, **how),
            reference.f1_score(y, guess, **how),
            reference.fbeta_score(y, guess, beta=2, **how),
        ]
    found = [m(preds, targs, thresh) for m in (precision, recall, f1)] + [fbeta(2, thresh)(preds, targs)]
    assert found == pytest.approx(expected, **near)
    if thresh == 0.5:
        assert fbeta(2)(preds, targs) == pytest.approx(found[-1], **near)


def test_accuracy_thresh_counts_decisions(several, rng):
    p, y = several
    for kind in KINDS:
        preds, targs = as_kind(kind, p, y)
        assert accuracy_thresh(0.3)(preds, targs) == pytest.approx(((p > 0.3) == (y == 1)).mean(), abs=1e-12)
    q, one = one_label(rng, 40, 3)
    expected = ((q > 0.3) == (one[:, None] == np.arange(3))).mean()
    for preds in (q, np.log(q)):
        assert accuracy_thresh(0.3)(preds, one) == pytest.approx(expected, abs=1e-12)


def test_thresh_moves_the_decision_between_two_classes_only(rng):
    p, y = one_label(rng, 60, 2)
    for preds in (p, np.log(p)):
        expected = reference.recall_score(y, p[:, 1] > 0.2)
        assert recall(preds, y, 0.2) == pytest.approx(expected)
    with pytest.raises(ValueError, match="recall: thresh must be left out"):
        recall(*one_label(rng, 60, 3), 0.2)


def test_log_loss_matches_scikit_learn(single, several):
    p, y = single
    expected = reference.log_loss(y, p, labels=np.arange(p.shape[1]))
    assert log_loss(p, y) == pytest.approx(expected, rel=1e-9)
    assert log_loss(np.log(p), y) == pytest.approx(expected, rel=1e-9)
    assert log_loss(*as_kind("tensor", np.log(p).astype(np.float32), y)) == pytest.approx(expected, rel=1e-5)
    q, t = several
    expected = np.mean([reference.log_loss(t[:, i], q[:, i], labels=[0, 1]) for i in range(t.shape[1])])
    assert log_loss(q, t) == pytest.approx(expected, rel=1e-9)


def test_a_certain_mistake_is_costly_but_finite():
    sure = np.array([[1.0, 0.0]])
    assert log_loss(sure, np.array([1])) == pytest.approx(-np.log(np.finfo(np.float64).eps))
    assert log_loss(torch.tensor(sure).float(), torch.tensor([1])) == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert log_loss(torch.tensor(sure).bfloat16(), torch.tensor([[1.0, 1.0]])) > 5
    for dtype in (np.float64, np.float32, np.float16):  # the logarithms of the same
        logs = np.array([[0.0, -np.inf], [-1000, 0]], dtype)
        assert log_loss(logs, np.array([1, 0])) == pytest.approx(-np.log(np.finfo(dtype).eps))


def test_undefined_is_nan_never_zero():
    p = np.array([[0.9, 0.1], [0.8, 0.2]])
    assert np.isnan(recall(p, np.array([0, 0])))  # class 1 has no rows
    assert np.isnan(precision(p, np.array([0, 1])))  # class 1 is never predicted
    assert np.isnan(f1(p, np.array([0, 0])))
    assert f1(p, np.array([0, 1])) == 0  # it has rows, and all are missed
    nothing = np.zeros((3, 4))
    assert np.isnan(fbeta(2)(nothing, nothing))
    for metric in (accuracy, precision, recall, f1, log_loss, accuracy_thresh(0.5)):
        assert np.isnan(metric(np.zeros((0, 3)), np.zeros(0, np.int64)))
        assert np.isnan(metric(np.array([[0.5, np.nan], [0.2, 0.8]]), np.array([0, 1])))


def test_names_for_the_table():
    found = [name_of(m) for m in (accuracy, f1, fbeta(2), fbeta(0.5, 0.2), accuracy_thresh(0.2), torch.nn.L1Loss())]
    assert found == ["accuracy", "f1", "f2", "f0.5(0.2)", "accuracy_thresh(0.2)", "L1Loss"]


def test_misuse_names_the_metric_and_the_argument(rng):
    p, y = one_label(rng, 6, 3)
    with pytest.raises(ValueError, match=r"accuracy: targets must be \[N\] class numbers.*accuracy_thresh"):
        accuracy(p, np.eye(3)[y])
    with pytest.raises(ValueError, match="f2: predictions must be"):
        fbeta(2)(p[0], y)
    with pytest.raises(ValueError, match=r"recall: targets must be \[6\] or \[6, 3\], got \[5\]"):
        recall(p, y[:5])
    with pytest.raises(ValueError, match="not a metric for regression"):
        accuracy(p, y.astype(np.float32))
    with pytest.raises(ValueError, match="below 3 classes, got 0 to 3"):
        accuracy(p, np.array([0, 1, 2, 3, 0, 0]))
    with pytest.raises(ValueError, match="beta must be above 0"):
        fbeta(0)
    with pytest.raises(ValueError, match=r"thresh must be a probability in 0\.\.1, got 20"):
        accuracy_thresh(20)


# Metrics of the user's own


def test_torch_and_numpy_functions_are_both_taken(rng):
    p, y = one_label(rng, 20, 4)
    preds, targs = torch.tensor(p), torch.tensor(y)
    expected = accuracy(p, y)

    def of_torch(a, b):
        return (a.argmax(dim=1) == b).float().mean()

    def of_numpy(a, b):
        return np.equal(np.argmax(a, axis=1), b).astype(np.float64).mean()

    def strictly_numpy(a, b):
        return reference.accuracy_score(b, a.argmax(1).astype(int))

    for metric in (of_torch, of_numpy, strictly_numpy, accuracy, accuracy_np):
        assert evaluate_metric(metric, preds, targs) == pytest.approx(expected)


def test_non_contiguous_and_inference_tensors_are_taken(rng):
    p, y = one_label(rng, 20, 4)
    with torch.inference_mode():
        preds = torch.tensor(p.T.copy()).T
        assert evaluate_metric(accuracy, preds, torch.tensor(np.repeat(y, 2))[::2]) == accuracy(p, y)


def test_a_failing_metric_is_named():
    def broken(_preds, _targs):
        raise KeyError("oops")

    with pytest.raises(ValueError, match=r"metric 'broken' must return one number.*\[2, 3\].*KeyError: 'oops'$"):
        evaluate_metric(broken, torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="metric '<lambda>' must return one number"):
        evaluate_metric(lambda preds, _: preds, torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize("kind", KINDS)
def test_mean_average_precision_matches_scikit_learn(several, kind, rng):
    p, y = several
    y[0, 0] = 1
    p[:, -1] = rng.integers(0, 4, len(p)) / 4  # ties
    there = [k for k in range(y.shape[1]) if y[:, k].any()]
    expected = np.mean([reference.average_precision_score(y[:, k], p[:, k]) for k in there])
    assert mean_average_precision(*as_kind(kind, p, y)) == pytest.approx(expected, abs=1e-12)


def test_mean_average_precision_where_it_is_undefined(rng):
    p = rng.uniform(size=(5, 2))
    assert np.isnan(mean_average_precision(p, np.zeros((5, 2))))
    assert np.isnan(mean_average_precision(np.full((5, 2), np.nan), np.ones((5, 2))))
    with pytest.raises(ValueError, match="Use accuracy for one label"):
        mean_average_precision(p, np.zeros(5, np.int64))
