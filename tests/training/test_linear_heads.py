import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fastclf import BCE, NLL, ImageClassifierData
from fastclf.training import linear_heads as module
from fastclf.training.head_runs import predict_rows
from fastclf.training.linear_heads import LinearSetting, linear_heads

N = 61


def rows_of(folder, rng, features=90, several=False):
    """Rows around a centre per class, sorted by class, far from 0; with several labels, a third one that none has."""
    labels = np.sort(np.arange(N) % 3)
    x = (rng.standard_normal((3, features))[labels] + 2 * rng.standard_normal((N, features)) + 5).astype(np.float32)
    y = np.eye(3, dtype=np.float32)[labels] * [1, 1, 0] if several else labels
    y = y.astype(np.float32) if several else y
    return ImageClassifierData.from_arrays(folder, (x, y), (x, y), classes=["a", "b", "c"], bs=16).trn_ds


def scaled(ds):
    x = ds.rows.astype(np.float64)
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def logits_of(ds, decay, crit):
    (head,) = linear_heads(ds, np.arange(N), [LinearSetting(decay, "standard")], crit=crit)
    return torch.from_numpy(predict_rows(head, ds, np.arange(N))).double()


@pytest.fixture(params=["float64", "float32 kept", "float32 read again"])
def atol(request, monkeypatch):
    """How far probabilities may be from the reference: of few rows in one block, or of many in several."""
    if request.param != "float64":
        monkeypatch.setattr(module, "_BLOCK", 16)
    if request.param == "float32 read again":
        monkeypatch.setattr(module, "_KEPT", 0)
    return 1e-3 if request.param == "float64" else 5e-2


@pytest.mark.parametrize("features", [7, 70, 150])
def test_a_linear_head_is_a_logistic_regression(tmp_path, rng, features, atol):
    ds, decay = rows_of(tmp_path, rng, features), 0.03
    peer = LogisticRegression(C=1 / (decay * N), tol=1e-10, max_iter=10_000).fit(scaled(ds), ds.y)
    ours = logits_of(ds, decay, NLL()).softmax(1).numpy()
    np.testing.assert_allclose(ours, peer.predict_proba(scaled(ds)), atol=atol)


def test_a_class_of_weight_0_that_fills_a_block_has_no_part(tmp_path, rng, atol):
    ds, decay, weight = rows_of(tmp_path, rng), 0.1, torch.tensor([0.0, 2.0, 1.0])
    kept = ds.y > 0
    shares = weight.numpy()[ds.y[kept]]
    ours = logits_of(ds, decay, NLL(weight))
    assert ours.isfinite().all()
    # Two classes by softmax, each with weights of its own, bear half the penalty of one difference.
    peer = LogisticRegression(C=2 / (decay * shares.sum()), tol=1e-10, max_iter=10_000)
    peer.fit(scaled(ds)[kept], ds.y[kept], sample_weight=shares)
    found = (ours[:, 2] - ours[:, 1]).sigmoid().numpy()
    np.testing.assert_allclose(found, peer.predict_proba(scaled(ds))[:, 1], atol=atol)


def test_a_label_that_no_row_has_counts_half_a_row_at_the_mean(tmp_path, rng, atol):
    ds, decay = rows_of(tmp_path, rng, several=True), 0.1
    ours = logits_of(ds, decay, BCE()).sigmoid().numpy()
    x = np.concatenate([scaled(ds), np.zeros((1, 90))])
    for label in range(3):
        y = np.append(ds.y[:, label], 1)
        shares = np.append(np.ones(N), 0.5 if label == 2 else 0)
        peer = LogisticRegression(C=1 / (decay * N), tol=1e-10, max_iter=10_000).fit(x, y, sample_weight=shares)
        np.testing.assert_allclose(ours[:, label], peer.predict_proba(scaled(ds))[:, 1], atol=atol)


def test_what_has_not_converged_says_so(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(module, "_MOST_STEPS", 1)
    settings = [LinearSetting(decay, "common") for decay in (1e-2, 1e-4)]
    with pytest.warns(UserWarning, match="2 of 2 logistic regressions have not converged after 1 steps"):
        linear_heads(rows_of(tmp_path, rng), np.arange(N), settings, crit=NLL())
