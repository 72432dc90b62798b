import numpy as np
import pytest
import torch
from torch import nn

from fastclf.models.freezing import LayerGroups


@pytest.fixture
def groups():
    return LayerGroups([nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in range(3)])


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


def test_bn_freeze_covers_trainable_groups_and_modes_come_back(groups):
    groups.bn_frozen = True
    groups.set_modes()
    assert [group[1].training for group in groups.groups] == [False] * 3
    assert [group[0].training for group in groups.groups] == [True] * 3
    groups.bn_frozen = False
    groups.set_modes()
    assert all(group[1].training for group in groups.groups)


def test_per_group(groups):
    np.testing.assert_array_equal(groups.per_group(0.5, "lrs"), [0.5] * 3)
    np.testing.assert_array_equal(groups.per_group([1, 2, 3], "lrs"), [1, 2, 3])
    for wrong in ([1, 2], [[1, 2, 3]]):
        with pytest.raises(ValueError, match=r"lrs must be one number or one per layer group \(3 groups\)"):
            groups.per_group(wrong, "lrs")
    for wrong in (-1, [1, np.nan, 1]):
        with pytest.raises(ValueError, match="finite and not negative"):
            groups.per_group(wrong, "lrs")
