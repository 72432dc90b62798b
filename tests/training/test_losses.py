import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from fastclf.training.losses import BCE, L1, NLL, class_weights, default_loss


def test_nll_with_weights_and_smoothing_matches_float64(rng):
    n, c, s = 33, 7, 0.1
    logits, y, w = rng.standard_normal((n, c)), rng.integers(0, c, n), rng.uniform(0.2, 3, c)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    hard = -(w[y] * log_probs[np.arange(n), y]).sum() / w[y].sum()
    smooth = -(w * log_probs).sum() / w[y].sum() / c
    loss = NLL(torch.from_numpy(w).float(), s)
    for scores in (logits, log_probs):
        value = loss(torch.from_numpy(scores).float(), torch.from_numpy(y))
        assert float(value) == pytest.approx((1 - s) * hard + s * smooth, rel=1e-5)


def test_bce_with_weights_and_smoothing_matches_float64(rng):
    n, c, s = 21, 5, 0.2
    logits, y, w = rng.standard_normal((n, c)), rng.integers(0, 2, (n, c)).astype(float), rng.uniform(0.2, 3, c)
    p, t = 1 / (1 + np.exp(-logits)), y * (1 - s) + s / 2
    expected = (-w * (t * np.log(p) + (1 - t) * np.log(1 - p))).mean()
    loss = BCE(torch.from_numpy(w).float(), s)
    target = torch.from_numpy(y).float()
    assert float(loss.from_logits(torch.from_numpy(logits).float(), target)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(torch.from_numpy(p).float(), target)) == pytest.approx(expected, rel=1e-5)


def test_bce_of_extreme_logits_has_a_gradient():
    logits = torch.tensor([[200.0]], requires_grad=True)
    loss = BCE().from_logits(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 200
    assert logits.grad.item() == pytest.approx(1)


def test_l1_of_one_target_does_not_broadcast():
    out, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 5.0])
    assert float(L1()(out, y)) == pytest.approx(2 / 3)


@pytest.mark.parametrize(("multi", "reg", "kind"), [(False, False, NLL), (True, False, BCE), (False, True, L1)])
def test_default_loss(multi, reg, kind):
    assert isinstance(default_loss(is_multi=multi, is_reg=reg), kind)


def test_auto_weights_are_those_of_balanced_classes(rng):
    y = rng.permutation(np.repeat([0, 1, 2], [1000, 10, 1]))
    ours = class_weights("auto", y, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_auto_weights_of_a_class_without_rows_are_one():
    y = np.array([0, 0, 0, 2])
    np.testing.assert_allclose(class_weights("auto", y, 4), [2 / 3, 1, 2, 1])
    tags = np.array([[1, 0, 0], [1, 0, 1], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(class_weights("auto", tags, 3), [2 / 3, 1, 2])


@pytest.mark.parametrize("given", ["balanced", [1, 2], [1, -1, 2], [0, 0, 0], [1, np.nan, 1], [[1, 2, 3]]])
def test_class_weights_that_cannot_be(given):
    with pytest.raises(ValueError, match="class_weights: class_weights must be"):
        class_weights(given, np.array([0, 1, 2]), 3)
