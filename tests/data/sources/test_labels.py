"""Classes that are given by name or by place."""

import numpy as np
import pytest
import torch

from fastclf.data import truth
from fastclf.data.sources.labels import Labels, class_number


def numerals(rng):
    """Names of classes that are numbers: in the order of folders, of tables, or any."""
    names = [str(i) for i in rng.permutation(13)[: rng.integers(2, 12)]]
    return [sorted(names), sorted(names, key=int), names][rng.integers(3)]


@pytest.mark.parametrize("as_number", [int, np.int64, float, torch.tensor])
@pytest.mark.parametrize("_", range(20))
def test_a_number_that_is_the_name_of_another_class_is_no_place(rng, _, as_number):
    classes = numerals(rng)
    for name in classes:
        assert class_number(name, classes, "cls") == classes.index(name)
    for number in range(14):
        given = as_number(number) if number < len(classes) else number
        place_of_name = classes.index(str(number)) if str(number) in classes else None
        if number < len(classes) and place_of_name in (None, number):
            assert class_number(given, classes, "cls") == number
        else:
            says = (
                "must be one of" if place_of_name is None else rf"{number} is the name of a class, and (no|the) place"
            )
            with pytest.raises(ValueError, match=f"^cls.* {says}" if place_of_name is None else says):
                class_number(given, classes, "cls")


@pytest.mark.parametrize("as_type", [list, np.array, lambda y: [np.int64(i) for i in y]])
def test_labels_to_measure_by(as_type):
    """`from_df` makes classes '1', '2' and '3' of whole numbers, which are not their places."""
    like = Labels(np.zeros(1, np.int64), ["1", "2", "3"])
    with pytest.raises(
        ValueError, match=r"evaluate: y: \d is the name of a class, and the place of '\d'. Pass names as"
    ):
        truth.of_list(as_type([1, 2, 1]), like, 3)
    assert truth.of_list(["1", "2", "1"], like, 3).y.tolist() == [0, 1, 0]
    assert truth.of_list([b"1", b"2", b"1"], like, 3).y.tolist() == [0, 1, 0]
    like = Labels(np.zeros(1, np.int64), ["0", "1", "2"])
    assert truth.of_list(as_type([1, 2, 1]), like, 3).y.tolist() == [1, 2, 1]


@pytest.mark.parametrize("as_type", [str, str.encode])
def test_lists_of_names_to_measure_by(as_type):
    like = Labels(np.zeros((1, 3), np.float32), ["a", "b", "ö"], is_multi=True)
    rows = [[as_type(name) for name in row] for row in ("a", "", "öb")]
    assert truth.of_list(rows, like, 3).y.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    with pytest.raises(ValueError, match=r"evaluate: y must have 3 number\(s\) per image"):
        truth.of_list([[0], [1, 2], []], like, 3)
