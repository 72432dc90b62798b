import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastclf.models.head import AdaptiveConcatPool2d, CounterDropout, Head, StepCounter, check_custom_head, resolve_ps


def kinds(head):
    return [type(layer).__name__ for layer in head.layers]


def test_layers_of_the_default_head():
    block = ["BatchNorm1d", "CounterDropout", "Linear"]
    assert kinds(Head(1024, 3)) == [*block, "ReLU", *block]
    head = Head(10, 3)
    assert [layer.p for layer in head.layers if isinstance(layer, CounterDropout)] == [0.25, 0.5]
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(512, 10), (3, 512)]
    assert isinstance(head.final, nn.LogSoftmax)


def test_no_dropout_at_zero_and_any_number_of_hidden_layers():
    assert kinds(Head(8, 2, ps=0, xtra_fc=[])) == ["BatchNorm1d", "Linear"]
    assert kinds(Head(8, 2, ps=0, xtra_fc=[4, 3])) == ["BatchNorm1d", "Linear", "ReLU"] * 2 + ["BatchNorm1d", "Linear"]


@pytest.mark.parametrize(
    ("ps", "n", "expected"), [(None, 2, [0.25, 0.25, 0.5]), (0.3, 1, [0.3, 0.3]), ([0.1, 0.2], 1, [0.1, 0.2])]
)
def test_ps(ps, n, expected):
    assert resolve_ps(ps, n) == expected


@pytest.mark.parametrize(("ps", "message"), [([0.1], "one per linear layer"), (1.0, "probabilities"), (-0.1, "prob")])
def test_wrong_ps(ps, message):
    with pytest.raises(ValueError, match=message):
        resolve_ps(ps, 1)


def test_initial_weights_are_kaiming_normal_and_seeded():
    first, again, other = Head(300, 5, seed=1), Head(300, 5, seed=1), Head(300, 5, seed=2)
    linear = first.layers[2]
    assert linear.weight.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.02)
    assert not linear.bias.any()
    assert torch.equal(linear.weight, again.layers[2].weight)
    assert not torch.equal(linear.weight, other.layers[2].weight)


def test_forward_matches_float64(rng):
    head = Head(17, 4, ps=0, xtra_fc=[9]).train()
    x = torch.from_numpy(rng.standard_normal((13, 17)))
    bn1, fc1, _, bn2, fc2 = head.layers
    out = x
    for bn, fc, relu in ((bn1, fc1, True), (bn2, fc2, False)):
        out = F.batch_norm(out, None, None, bn.weight.double(), bn.bias.double(), training=True)
        out = F.linear(out, fc.weight.double(), fc.bias.double())
        out = out.relu() if relu else out
    torch.testing.assert_close(head(x.float()).double(), out.log_softmax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_seeds_may_be_numpys(kind):
    """Such as those that a generator draws."""
    seed = int(np.random.default_rng().integers(2**31))
    for a, b in zip(Head(8, 3, seed=seed).parameters(), Head(8, 3, seed=kind(seed)).parameters(), strict=True):
        assert torch.equal(a, b)


def test_masks_are_a_function_of_seed_step_and_layer(rng):
    counter = StepCounter(seed=5)
    drop, other = CounterDropout(0.4, 0, counter).train(), CounterDropout(0.4, 1, counter).train()
    x = torch.from_numpy(rng.standard_normal((64, 129))).float()
    first = drop(x)
    assert torch.equal(first, drop(x))
    assert not torch.equal(first, other(x))
    counter.step = 1
    assert not torch.equal(first, drop(x))
    counter.step, counter.seed = 0, 6
    assert not torch.equal(first, drop(x))
    assert torch.equal(drop.eval()(x), x)


def test_masks_keep_the_mean():
    drop = CounterDropout(0.25, 0, StepCounter(seed=3)).train()
    out = drop(torch.ones(400, 500))
    assert sorted(out.unique().tolist()) == pytest.approx([0, 4 / 3])
    assert out.mean() == pytest.approx(1, abs=0.01)


def test_concat_pool_is_maximum_then_average(rng):
    x = torch.from_numpy(rng.standard_normal((3, 5, 4, 7)))
    out = AdaptiveConcatPool2d()(x)
    torch.testing.assert_close(out[:, :5], x.flatten(2).max(2).values)
    torch.testing.assert_close(out[:, 5:], x.flatten(2).mean(2))


def test_custom_heads_that_do_not_fit_are_refused():
    good = nn.Sequential(nn.Linear(6, 3), nn.LogSoftmax(1)).train()
    check_custom_head(good, 6, 3, "log_softmax")
    assert good.training
    with pytest.raises(ValueError, match="must take rows of 7 features"):
        check_custom_head(good, 7, 3, "log_softmax")
    with pytest.raises(ValueError, match=r"must give \[B, 4\]"):
        check_custom_head(good, 6, 4, "log_softmax")
    with pytest.raises(ValueError, match=r"nn\.LogSoftmax\(1\)"):
        check_custom_head(nn.Linear(6, 3), 6, 3, "log_softmax")
    values = nn.Linear(6, 3)
    nn.init.constant_(values.bias, 3)  # else all of them may lie in 0..1 by chance
    with pytest.raises(ValueError, match=r"nn\.Sigmoid\(\)"):
        check_custom_head(values, 6, 3, "sigmoid")
    check_custom_head(nn.Linear(6, 3), 6, 3, "none")


def test_a_custom_head_keeps_its_modes_and_is_a_module():
    head = nn.Sequential(nn.BatchNorm1d(6).eval(), nn.Linear(6, 3), nn.LogSoftmax(1))
    check_custom_head(head, 6, 3, "log_softmax")
    assert [module.training for module in head] == [False, True, True]
    for wrong in (nn.Linear, lambda x: x, None):
        with pytest.raises(ValueError, match=r"custom_head must be an nn\.Module"):
            check_custom_head(wrong, 6, 3, "log_softmax")


@pytest.mark.parametrize(
    "arguments",
    [{"final": "softmax"}, {"seed": "a"}, *({"xtra_fc": wrong} for wrong in ([0], 8, 8.0, [1.5], ["8"], "88", [None]))],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=f"Head: ({next(iter(arguments))}|widths)"):
        Head(4, 2, **arguments)


@pytest.mark.parametrize("ps", ["a", [0.1], [[0.1, 0.2]], {}, object(), 1, -0.1, float("nan"), [0.1, "b"]])
def test_wrong_dropout(ps):
    with pytest.raises(ValueError, match="ps must be"):
        Head(4, 2, ps=ps)
    assert Head(4, 2, ps=np.float32(0.5)).ps == [0.5, 0.5]
