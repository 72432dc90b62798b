"""Validation folds."""

import numpy as np
import pandas as pd
import pytest
import torch

from fastclf.data.sources.split import (
    check_val_idxs,
    get_cv_idxs,
    get_group_idxs,
    stratified_idxs,
    tag_groups,
    warn_single,
)


def test_reference_numbers():
    idxs = get_cv_idxs(10222)
    assert len(idxs) == 2044
    assert idxs[:5].tolist() == [2882, 4514, 7717, 33, 4924]


def test_folds_do_not_overlap_and_leave_the_global_generator_alone():
    state = np.random.get_state()[1].copy()
    folds = [get_cv_idxs(103, k, 0.25, seed=7) for k in range(4)]
    assert [len(fold) for fold in folds] == [25] * 4
    assert len(set(np.concatenate(folds).tolist())) == 100
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.testing.assert_array_equal(folds[1], np.random.RandomState(7).permutation(103)[25:50])


@pytest.mark.parametrize(
    ("n", "cv_idx", "val_pct"), [(100, 5, 0.2), (100, -1, 0.2), (3, 0, 0.2), (10, 0, 0), (10, 0, 1)]
)
def test_no_such_fold(n, cv_idx, val_pct):
    with pytest.raises(ValueError, match="get_cv_idxs"):
        get_cv_idxs(n, cv_idx, val_pct)


def test_stratified(rng):
    groups = rng.permutation(["a"] * 500 + ["b"] * 50 + ["c"] * 5 + ["d"] * 2 + ["e"]).tolist()
    idxs = stratified_idxs(groups, 0.2, 1)
    assert idxs.tolist() == sorted(set(idxs.tolist()))
    assert len(idxs) == round(558 * 0.2)
    drawn = [groups[i] for i in idxs]
    assert abs(drawn.count("a") - 100) <= 1
    assert abs(drawn.count("b") - 10) <= 1
    assert drawn.count("c") in (0, 1, 2)
    assert "e" not in drawn
    assert {groups[i] for i in set(range(558)) - set(idxs.tolist())} == set("abcde")
    np.testing.assert_array_equal(idxs, stratified_idxs(groups, 0.2, 1))
    assert set(idxs.tolist()) != set(stratified_idxs(groups, 0.2, 2).tolist())


@pytest.mark.parametrize("val_pct", [0.01, 0.5, 0.9, 0.99])
def test_every_class_stays_in_train(val_pct):
    groups = [i % 7 for i in range(70)]
    idxs = stratified_idxs(groups, val_pct, 3)
    assert 1 <= len(idxs) <= 63
    assert {groups[i] for i in range(70) if i not in set(idxs.tolist())} == set(range(7))


@pytest.mark.parametrize("val_pct", [0, 1, -0.1, 1.5])
def test_val_pct_out_of_range(val_pct):
    with pytest.raises(ValueError, match="val_pct"):
        stratified_idxs([0, 1] * 10, val_pct, 1)


def test_too_few_rows_to_split():
    with pytest.raises(ValueError, match="got 3 row"):
        stratified_idxs(["a", "b", "c"], 0.2, 1)


def test_rows_of_many_labels_are_validated_as_often_as_others(rng):
    """40 attributes, as in CelebA: hardly any combination occurs twice."""
    names = [f"{i:02}" for i in range(40)]
    rates = rng.uniform(0.02, 0.6, 40)
    rows = [tuple(name for name, on in zip(names, row, strict=True) if on) for row in rng.random((4000, 40)) < rates]
    rows += [("only",), ("only", "01", "02"), ("once", "03")]
    idxs = stratified_idxs(tag_groups(rows), 0.25, 1)
    assert len(idxs) == round(len(rows) * 0.25)
    drawn, trained = [rows[i] for i in idxs], [rows[i] for i in set(range(len(rows))) - set(idxs.tolist())]
    assert {tag for tags in trained for tag in tags} == {*names, "only", "once"}
    for name, rate in zip(names, rates, strict=True):
        n = sum(name in tags for tags in rows)
        deviation = np.sqrt(len(rows) * rate * 0.25 * 0.75) + 1
        assert abs(sum(name in tags for tags in drawn) - n * 0.25) < 5 * deviation, name


def test_combinations_that_are_frequent_keep_their_shares(rng):
    rows = [("a",), ("a", "b"), ("b",), ()] * 100
    drawn = [rows[i] for i in stratified_idxs(tag_groups(rows), 0.2, int(rng.integers(99)))]
    assert [drawn.count(row) for row in rows[:4]] == [20] * 4


def test_single_rows_are_named():
    with pytest.warns(UserWarning, match=r"2 classes have a single row.*bee, cow"):
        warn_single(["ant", "ant", "cow", "bee"])


@pytest.mark.parametrize(
    ("val_idxs", "message"),
    [([], "list of row numbers"), ([0.5], "list of row numbers"), ([[1]], "list of row numbers"), ([-1], "got -1"),
     ([3, 10], "got 10"), ([4, 4], "got 4 twice"), (list(range(10)), "got all 10")],
)  # fmt: skip
def test_val_idxs_that_do_not_fit(val_idxs, message):
    with pytest.raises(ValueError, match=message):
        check_val_idxs(val_idxs, 10)
    np.testing.assert_array_equal(check_val_idxs([3, 1], 10), [3, 1])


@pytest.mark.parametrize("val_pct", [0.1, 0.2, 0.34, 0.5])
def test_groups_are_never_divided(rng, val_pct):
    """Random groups of random sizes, of one class or several: none is divided, every class is in train."""
    for _ in range(5):
        n = int(rng.integers(200, 500))
        groups = rng.integers(0, 60, n)
        y = np.where(rng.random(n) < 0.3, rng.integers(0, 4, n), groups % 4)
        state = np.random.get_state()[1].copy()
        idxs = get_group_idxs([f"g{g}" for g in groups], y.tolist(), val_pct, seed=5)
        np.testing.assert_array_equal(np.random.get_state()[1], state)
        assert idxs.dtype == np.int64
        assert (np.diff(idxs) > 0).all()
        train = np.setdiff1d(np.arange(n), idxs)
        assert not set(groups[idxs]) & set(groups[train])
        assert abs(len(idxs) - val_pct * n) < 0.06 * n
        assert set(y[train]) == set(y)
        np.testing.assert_array_equal(idxs, get_group_idxs(groups, y, val_pct, seed=5))
        np.testing.assert_array_equal(check_val_idxs(idxs, n), idxs)


def test_groups_without_classes(rng):
    groups = rng.integers(0, 9, 60).tolist()
    idxs = get_group_idxs(groups)
    assert not {groups[i] for i in idxs} & {g for i, g in enumerate(groups) if i not in set(idxs.tolist())}


def test_a_class_of_one_group_stays_in_train():
    groups = ["alone"] * 10 + [f"g{i // 2}" for i in range(40)]
    y = ["rare"] * 10 + [("a", "b")[i // 2 % 2] for i in range(40)]
    for seed in range(5):
        assert get_group_idxs(groups, y, seed=seed).min() >= 10


@pytest.mark.parametrize(
    ("groups", "y", "val_pct", "said"),
    [
        ([1, 2, 3], [0, 1], 0.2, "one length, got 3 and 2"),
        ([1, 2, 3], None, 0.6, "at most .5, got 0.6"),
        ([1, 2, 3], None, 0, "above 0"),
        ([], None, 0.2, r"no split of 0 groups"),
        ([1] * 9, None, 0.2, r"no split of 1 group "),
        ([1, 1, 2, 2], [0, 0, 1, 1], 0.5, r"no split of 2 groups leaves every class a training row"),
    ],
)
def test_groups_that_cannot_be_split(groups, y, val_pct, said):
    with pytest.raises(ValueError, match=said):
        get_group_idxs(groups, y, val_pct)


@pytest.mark.parametrize("as_type", [list, torch.tensor, pd.Series, lambda g: pd.array(g, "Int64"), pd.Categorical])
def test_groups_of_any_kind(rng, as_type):
    """The elements of a tensor are equal only to themselves, as keys: each row would be a group."""
    groups, y = rng.integers(0, 9, 60), np.arange(60) % 3
    want = get_group_idxs(groups.tolist(), y.tolist())
    np.testing.assert_array_equal(get_group_idxs(as_type(groups.tolist()), y), want)
    np.testing.assert_array_equal(get_group_idxs(groups, as_type(y.tolist())), want)


@pytest.mark.parametrize("missing", [None, np.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_groups_that_are_missing_are_named(missing):
    """All rows without a group in one, or each in its own: either may be wrong."""
    groups = [*range(8), missing, missing]
    with pytest.raises(ValueError, match=r"groups must have an entry for every row, got .* in row 8"):
        get_group_idxs(groups)
    with pytest.raises(ValueError, match=r"y must have an entry for every row, got .* in row 8"):
        get_group_idxs(range(10), groups)


@pytest.mark.parametrize("seed", [-1, 1 << 32, 1.5, "a", None, True])
def test_a_seed_that_is_none_is_named(seed):
    for call, split in (
        ("get_cv_idxs", lambda: get_cv_idxs(30, seed=seed)),
        ("get_group_idxs", lambda: get_group_idxs([*range(30)], seed=seed)),
    ):
        with pytest.raises(ValueError, match=f"{call}: seed must be a whole number from 0 to 4294967295, got"):
            split()


@pytest.mark.parametrize("n", [30.0, "30", None])
def test_a_number_of_rows_that_is_none_is_named(n):
    with pytest.raises(ValueError, match="get_cv_idxs: n must be a whole number"):
        get_cv_idxs(n)


@pytest.mark.parametrize("kind", [int, np.int32, np.uint64])
def test_rows_for_validation_that_are_objects(kind):
    rows = check_val_idxs(np.array([kind(i) for i in (4, 0, 2)], object), 6)
    assert (rows.dtype, rows.tolist()) == (np.int64, [4, 0, 2])
    for wrong in ([0.0, 1.0], ["a"], [None], [[0, 1]], [1 << 70]):
        with pytest.raises(ValueError, match="val_idxs must be"):
            check_val_idxs(np.array(wrong, object), 6)
