"""Folds of the rows: each class has its share in each, and no group is divided."""

import numpy as np
import pytest

from fastclf.data.sources.labels import Labels
from fastclf.training.folds import make_folds


def labels_of(rng, n, c=3, several=False):
    y = (rng.random((n, c)) < 0.4).astype(np.float32) if several else rng.integers(c, size=n)
    return Labels(y, [f"class{i}" for i in range(c)], is_multi=several)


def test_folds_are_stratified(rng):
    labels = labels_of(rng, 103)
    folds = make_folds(labels, 5, seed=0)
    assert folds.dtype == np.int64
    counts = np.array([np.bincount(labels.y[folds == fold], minlength=3) for fold in range(5)])
    assert (np.ptp(counts, axis=0) <= 1).all()
    np.testing.assert_array_equal(folds, make_folds(labels, 5, seed=0))
    assert not np.array_equal(folds, make_folds(labels, 5, seed=1))
    plain = np.bincount(make_folds(labels, 5, stratify=False, seed=0))
    assert np.ptp(plain) <= 1


def test_classes_of_fewer_rows_than_folds_make_fewer_folds(rng):
    rare = Labels(np.repeat(np.arange(20), 3), [f"c{i}" for i in range(20)])
    with pytest.warns(UserWarning, match="k=5 folds are more than the 3 rows of the most frequent class"):
        folds = make_folds(rare, 5, seed=0)
    assert all(sorted(folds[rare.y == k]) == [0, 1, 2] for k in range(20))
    with pytest.raises(ValueError, match="no class has two training rows"):
        make_folds(Labels(np.arange(4), list("abcd")), 2, seed=0)
    with pytest.raises(ValueError, match="k must be at most the number of rows, 60"):
        make_folds(Labels(np.minimum(np.arange(60) // 3, 2), list("abc")), 64, seed=0)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("stratify", [False, True])
def test_no_group_is_divided(rng, several, stratify):
    labels = labels_of(rng, 120, several=several)
    groups = [f"place {i}" for i in rng.integers(25, size=120)]
    folds = make_folds(labels, 4, groups=groups, stratify=stratify, seed=3)
    assert all(len({fold for fold, g in zip(folds, groups, strict=True) if g == group}) == 1 for group in set(groups))
    assert sorted(set(folds)) == [0, 1, 2, 3]


def test_rare_combinations_of_labels_count_as_their_rarest_label(rng):
    labels = labels_of(rng, 200, c=8, several=True)
    labels.y[:, 7] = 0
    labels.y[rng.choice(200, 9, replace=False), 7] = 1
    folds = make_folds(labels, 4, seed=0)
    assert all(labels.y[folds == fold, 7].any() for fold in range(4))
    assert np.ptp(np.bincount(folds)) <= 1


def test_a_class_in_one_fold_is_warned_of(rng):
    labels = labels_of(rng, 50, c=2)
    y = np.where(np.arange(50) == 4, 2, labels.y)
    with pytest.warns(UserWarning, match=r"all rows of the class .*class2.* are in one fold"):
        make_folds(Labels(y, ["class0", "class1", "class2"]), 3, seed=0)


def test_arguments_are_checked(rng):
    labels, numbers = labels_of(rng, 50), Labels(np.zeros((50, 1), np.float32), [], is_reg=True)
    for what, message in [
        (lambda: make_folds(numbers, 2, seed=0), "must be classes"),
        (lambda: make_folds(labels, 1, seed=0), "k must be a whole number of at least 2"),
        (lambda: make_folds(labels, 51, seed=0), "at most the number of rows, 50"),
        (lambda: make_folds(labels, 3, groups=[0, 1] * 25, seed=0), "at most the number of groups, 2"),
        (lambda: make_folds(labels, 3, groups=[0, 1], seed=0), "one entry per row, 50, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            what()
