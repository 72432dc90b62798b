import warnings

import numpy as np
import pytest

from fastclf.interpret.label_errors import estimated_errors, improbable, label_errors, of_each_label


def noisy(rng, n, c, share=0.15):
    truth = rng.integers(0, c, n)
    probs = rng.dirichlet(np.full(c, 0.4), n) + 2 * np.eye(c)[truth] * rng.random((n, 1))
    probs /= probs.sum(1, keepdims=True)
    y = np.where(rng.random(n) < share, rng.integers(0, c, n), truth)
    y[:c] = np.arange(c)
    return probs, y


@pytest.mark.parametrize("c", [2, 3, 11])
def test_names_the_labels_that_cleanlab_names(rng, c):
    pytest.importorskip("cleanlab")
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues

    probs, y = noisy(rng, int(rng.integers(200, 700)), c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = find_label_issues(y, probs, filter_by="confident_learning", n_jobs=1)
        joint = compute_confident_joint(y, probs, calibrate=True)
    assert expected.any()
    np.testing.assert_array_equal(label_errors(probs, y), expected)
    # cleanlab rounds the entries of its joint to whole numbers, row by row
    assert estimated_errors(probs, y) == pytest.approx(joint.sum() - joint.trace(), abs=c)


def test_each_of_several_labels_is_a_question_of_its_own(rng):
    pytest.importorskip("cleanlab")
    from cleanlab.filter import find_label_issues

    sides = [noisy(rng, 300, 2) for _ in range(4)]
    probs, y = np.stack([p[:, 1] for p, _ in sides], 1), np.stack([y for _, y in sides], 1).astype(np.float32)
    wrong, expected = of_each_label(probs, y)
    for k in range(4):
        both = np.stack([1 - probs[:, k], probs[:, k]], 1)
        reference = find_label_issues(y[:, k].astype(int), both, filter_by="confident_learning", n_jobs=1)
        np.testing.assert_array_equal(wrong[:, k], reference)
    assert expected > 0


def test_a_class_without_rows_is_suggested_to_nobody(rng):
    probs, y = noisy(rng, 200, 3)
    y[y == 2] = 0
    probs[0] = [0.0, 0.0, 1.0]
    assert not label_errors(probs, y)[0]
    assert np.isfinite(estimated_errors(probs, y))


def test_perfect_predictions_name_none():
    y = np.arange(30) % 3
    assert not label_errors(np.eye(3)[y], y).any()
    assert estimated_errors(np.eye(3)[y], y) == 0


def test_an_improbable_label_is_named_where_no_row_is_confident():
    """Each row is less sure of the other class than its own rows are on average."""
    y = np.repeat([0, 1], 20)
    probs = np.where(y[:, None] == [0, 1], 0.98, 0.02)
    probs[0] = 0.04, 0.96
    probs[1] = 0.06, 0.94
    assert not label_errors(probs, y).any()
    np.testing.assert_array_equal(np.flatnonzero(improbable(probs, y)), [0])
