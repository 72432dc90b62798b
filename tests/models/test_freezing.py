import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from fastclf.models.freezing import LayerGroups
from fastclf.models.head import Head
from fastclf.training.suggestions import RateSuggestions


def three(heads=1, pretrained=(), **kwargs):
    """Three groups with a BatchNorm layer each; those in ``pretrained`` come with statistics."""
    modules = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    for index in pretrained:
        modules[index][1].running_mean.uniform_(1, 2)
    return LayerGroups(modules, heads=heads, **kwargs)


def updates(groups, frozen=None):
    """Which BatchNorm layers update their statistics in a fit that begins now."""
    groups.settle_batch_norm(frozen)
    groups.set_modes()
    return [group[1].training for group in groups.groups]


@pytest.fixture
def groups():
    return three()


def trains(groups):
    return [all(p.requires_grad for p in group.parameters()) for group in groups.groups]


@pytest.mark.parametrize(
    ("n", "expected"), [(-1, [0, 0, 1]), (0, [1, 1, 1]), (1, [0, 1, 1]), (2, [0, 0, 1]), (-3, [1, 1, 1])]
)
def test_freeze_to(groups, n, expected):
    groups.freeze_to(n)
    assert trains(groups) == [bool(e) for e in expected]
    assert [index for index, _ in groups.trainable()] == [i for i, e in enumerate(expected) if e]


@pytest.mark.parametrize("n", [3, -4])
def test_freeze_to_needs_a_group(groups, n):
    with pytest.raises(ValueError, match=f"-3 to 2, got {n}"):
        groups.freeze_to(n)


def test_batchnorm_of_frozen_groups_keeps_its_statistics(groups):
    groups.freeze_to(1)
    groups.set_modes()
    before = [group[1].running_mean.clone() for group in groups.groups]
    x = torch.randn(8, 3)
    for group in groups.groups:
        x = group(x)
    changed = [not torch.equal(b, group[1].running_mean) for b, group in zip(before, groups.groups, strict=True)]
    assert changed == [False, True, True]


@pytest.mark.parametrize("pretrained", [(), (0, 1)])
def test_bn_freeze_covers_trainable_groups_and_modes_come_back(pretrained):
    groups = three(pretrained=pretrained)
    assert updates(groups, True) == [False] * 3
    assert [group[0].training for group in groups.groups] == [True] * 3
    assert updates(groups, False) == [True] * 3
    assert groups.fine_tunes == bool(pretrained)
    groups.freeze_to(1)
    assert updates(groups, False) == [False, True, True]


def test_a_new_network_learns_its_statistics_in_every_fit(groups):
    assert updates(groups) == [True] * 3
    for group in groups.groups:
        group(torch.randn(8, 3))
    assert updates(groups) == [True] * 3
    assert not groups.fine_tunes


def test_a_pretrained_body_that_trains_keeps_its_statistics():
    groups = three(pretrained=(0, 1))
    assert updates(groups) == [False, False, True]
    assert groups.fine_tunes
    groups.groups[2][1](torch.randn(8, 3))
    groups.set_modes()
    assert groups.groups[2][1].training  # until the fit is over
    assert updates(groups) == [False] * 3
    groups.freeze_to(1)
    assert updates(groups) == [False] * 3
    assert groups.fine_tunes


def test_a_head_alone_learns_its_statistics_whatever_the_body():
    groups = three(pretrained=(0, 1, 2))
    groups.freeze_to(-1)
    assert updates(groups) == [False, False, True]
    assert not groups.fine_tunes
    assert updates(three(heads=3, pretrained=(0, 1, 2))) == [True] * 3


def test_a_network_of_ones_own_is_a_body_as_a_whole():
    assert updates(three(heads=0, pretrained=(2,))) == [True, True, False]


def test_a_body_without_statistics_has_none_to_keep():
    body = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.BatchNorm1d(3, track_running_stats=False))
    groups = LayerGroups([body, nn.BatchNorm1d(3)], heads=1)
    groups.groups[1](torch.randn(8, 3))
    groups.settle_batch_norm()
    assert not groups.pretrained
    assert groups.kept == []


def test_per_group(groups):
    np.testing.assert_array_equal(groups.per_group(0.5, "lrs"), [0.5] * 3)
    np.testing.assert_array_equal(groups.per_group([1, 2, 3], "lrs"), [1, 2, 3])
    for wrong in ([1, 2], [[1, 2, 3]]):
        with pytest.raises(ValueError, match=r"lrs must be one number or one per layer group \(3 groups\)"):
            groups.per_group(wrong, "lrs")
    for wrong in (RateSuggestions(valley=0.1), "fast", [[1], [2, 3]], [1, "x", 1]):
        with pytest.raises(ValueError, match=rf"lrs must be one number .*, got {re.escape(repr(wrong))}\."):
            groups.per_group(wrong, "lrs")
    for wrong in (-1, [1, np.nan, 1], [1, None, 1]):
        with pytest.raises(ValueError, match="finite and not negative"):
            groups.per_group(wrong, "lrs")
    with pytest.raises(
        ValueError, match=r"lrs .* got None\. lr_find suggests None where the loss does not clearly fall"
    ):
        groups.per_group(None, "lrs")


def test_layers_that_sample_by_torchs_generators_are_known():
    own = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), StochasticDepth(0.2, "row"), nn.Dropout(0))
    groups = LayerGroups(
        [own, nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1), nn.Linear(4, 2)), Head(4, 2, ps=0.5)]
    )
    assert groups.random_layers() == ["Dropout", "MultiheadAttention", "StochasticDepth"]
    groups.freeze_to(1)
    assert groups.random_layers() == ["MultiheadAttention"]
    groups.freeze_to(2)
    assert groups.random_layers() == []
