from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastclf.data.sources.labels import Labels
from fastclf.training.losses import (
    BCE,
    L1,
    NLL,
    class_weights,
    constant_logits,
    constant_loss,
    default_loss,
    gradient_scale,
    unweighted,
    wants_logits,
)


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


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_rows_that_weigh_nothing_have_no_loss_and_no_gradient(rng, smoothing):
    loss = NLL(torch.tensor([0.0, 2.0, 0.0]), smoothing)
    logits = torch.from_numpy(rng.standard_normal((9, 3))).requires_grad_()
    y = torch.from_numpy(rng.choice([0, 2], 9))
    value = loss.from_logits(logits, y)
    value.backward()
    assert float(value.detach()) == 0
    assert not loss.of_rows(logits, y).any()
    assert not logits.grad.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_parts_of_rows_are_those_of_the_mean(rng, weighted):
    n, c, s = 19, 6, 0.1
    logits, w = torch.from_numpy(rng.standard_normal((n, c))), rng.uniform(0.2, 3, c)
    y, several = torch.from_numpy(rng.integers(0, c, n)), torch.from_numpy(rng.integers(0, 2, (n, c)))
    for kind, target in ((NLL, y), (BCE, several)):
        loss = kind(torch.from_numpy(w) if weighted else None, s)
        parts = loss.of_rows(logits, target)
        assert parts.shape == (n,)
        assert float(parts.mean()) == pytest.approx(float(loss.from_logits(logits, target)), rel=1e-12)
        for i in range(n):  # a row that alone changes, changes its own part
            other = logits.clone()
            other[i] += torch.from_numpy(rng.standard_normal(c))
            assert (loss.of_rows(other, target) != parts).tolist() == [row == i for row in range(n)]


def test_bce_of_extreme_logits_has_a_gradient():
    logits = torch.tensor([[200.0]], requires_grad=True)
    loss = BCE().from_logits(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 200
    assert logits.grad.item() == pytest.approx(1)


def labels(kind, y, c):
    names = [] if kind == "numbers" else [str(k) for k in range(c)]
    return Labels(y, names, is_multi=kind == "several", is_reg=kind == "numbers")


def drawn(kind, rng, n, c):
    if kind == "one":
        return np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
    if kind == "several":
        return (rng.random((n, c)) < rng.uniform(0.02, 0.98, c)).astype(np.float32)
    return (rng.normal(30, 5, (n, c))).astype(np.float32)


@pytest.mark.parametrize(("kind", "crit"), [("one", NLL), ("several", BCE), ("numbers", L1)])
def test_no_other_constant_is_much_better_on_the_training_set(kind, crit, rng):
    """The half row that is added costs less than 1 / n of a likelihood; any shift of the logits costs more."""
    n, c = int(rng.integers(200, 500)), int(rng.integers(2, 9))
    y = drawn(kind, rng, n, c)
    logits, train = constant_logits(labels(kind, y, c)), labels(kind, y, c)
    assert logits.shape == (c,)

    def loss(z):
        z = np.broadcast_to(z, (n, c))
        if kind == "one":
            return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(n), y])
        return np.mean(np.logaddexp(0, z) - y * z) if kind == "several" else np.mean(np.abs(z - y))

    ours = constant_loss(crit(), train, torch.from_numpy(y))
    assert ours == pytest.approx(loss(logits), rel=1e-9)
    assert all(loss(logits + rng.normal(0, 1, c)) > ours - c / n for _ in range(20))


def test_the_constant_of_balanced_classes_is_zero_and_a_label_nobody_has_stays_finite():
    assert np.abs(constant_logits(labels("one", np.arange(60) % 6, 6))).max() < 1e-12
    never_always = np.tile(np.float32([0, 1]), (9, 1))
    np.testing.assert_allclose(constant_logits(labels("several", never_always, 2)), [np.log(0.5 / 9.5), np.log(19)])


def test_the_constant_is_measured_without_class_weights(rng):
    y = drawn("several", rng, 50, 3)
    plain = constant_loss(BCE(), labels("several", y, 3), torch.from_numpy(y))
    assert plain == constant_loss(BCE(torch.tensor([9.0, 1, 0])), labels("several", y, 3), torch.from_numpy(y))
    crit = nn.L1Loss()
    assert unweighted(crit) is crit


def test_only_the_loss_of_several_labels_is_scaled():
    assert [gradient_scale(crit, 7) for crit in (NLL(), BCE(), L1(), nn.BCELoss())] == [1, 7, 1, 1]


class Focal(nn.BCEWithLogitsLoss):
    """A user's own, made from one that takes logits."""


@pytest.mark.parametrize(
    ("crit", "wants"),
    [
        (nn.BCEWithLogitsLoss(), True),
        (Focal(), True),
        (nn.CrossEntropyLoss(label_smoothing=0.1), True),
        (nn.MultiLabelSoftMarginLoss(), True),
        (F.binary_cross_entropy_with_logits, True),
        (partial(F.cross_entropy, reduction="sum"), True),
        (nn.BCELoss(), False),
        (nn.NLLLoss(), False),
        (nn.MSELoss(), False),
        (F.nll_loss, False),
        (lambda out, y: (out - y).mean(), False),
    ],
)
def test_losses_that_take_logits_are_known(crit, wants):
    assert wants_logits(crit) is wants


def test_losses_of_torchvision_and_timm_that_take_logits_are_known():
    ops = pytest.importorskip("torchvision.ops")
    assert wants_logits(ops.sigmoid_focal_loss)
    loss = pytest.importorskip("timm.loss")
    assert wants_logits(loss.AsymmetricLossMultiLabel())
    assert wants_logits(loss.BinaryCrossEntropy())


@pytest.mark.parametrize(("multi", "reg", "kind"), [(False, False, NLL), (True, False, BCE), (False, True, L1)])
def test_default_loss(multi, reg, kind):
    assert isinstance(default_loss(is_multi=multi, is_reg=reg), kind)


def test_auto_weights_are_inverse_roots_and_one_in_the_mean_of_rows(rng):
    rows = rng.integers(1, 2000, 5)
    y = rng.permutation(np.repeat(np.arange(5), rows))
    ours = class_weights("auto", y, 5).double().numpy()
    np.testing.assert_allclose(ours / ours[0], np.sqrt(rows[0] / rows), rtol=1e-6)
    assert ours[y].mean() == pytest.approx(1)


def test_auto_weights_of_several_labels_are_one_in_the_mean_of_labels(rng):
    rows = np.array([900, 90, 9, 1])
    y = np.stack([rng.permutation(np.arange(1000) < n) for n in rows], 1).astype(np.float32)
    ours = class_weights("auto", y, 4).double().numpy()
    np.testing.assert_allclose(ours / ours[0], np.sqrt(rows[0] / rows), rtol=1e-6)
    assert ours.mean() == pytest.approx(1)


def test_auto_weights_of_a_class_without_rows_are_those_of_a_class_with_one():
    weights = class_weights("auto", np.array([0, 0, 0, 2]), 4)
    assert weights.isfinite().all()
    assert weights[1] == weights[2] == weights[3] > weights[0]


def test_class_weights_by_name_have_no_order():
    """``1 / df["label"].value_counts()`` begins with the most frequent class."""
    for given, keys in (
        (pd.Series([1, 2, 3], index=["c", "a", "b"]), "data.classes"),
        (pd.Series([1, 2, 3], index=[2, 0, 1]), r"range\(3\)"),
        ({0: 1, 1: 2, 2: 3}, r"range\(3\)"),
        ({1: 1, 2: 2, 3: 3}, "data.classes"),
    ):
        with pytest.raises(ValueError, match=rf"by name or number. Pass \[weights\[key\] for key in {keys}\]"):
            class_weights(given, np.array([0, 1, 2]), 3)
    assert class_weights(pd.Series([1, 2, 3]), np.array([0, 1, 2]), 3).tolist() == [1, 2, 3]


@pytest.mark.parametrize("given", ["balanced", [1, 2], [1, -1, 2], [0, 0, 0], [1, np.nan, 1], [[1, 2, 3]]])
def test_class_weights_that_cannot_be(given):
    with pytest.raises(ValueError, match="class_weights: class_weights must be"):
        class_weights(given, np.array([0, 1, 2]), 3)


@pytest.mark.parametrize("loss", [NLL, BCE])
def test_label_smoothing_is_a_share(loss):
    for wrong in (-0.1, 1.5, "0.1", None, float("nan"), True):
        with pytest.raises(ValueError, match=f"{loss.__name__}: label_smoothing must be a number from 0 to 1"):
            loss(label_smoothing=wrong)
    for right in (0, 1, np.float32(0.1)):
        assert loss(label_smoothing=right).label_smoothing == right
