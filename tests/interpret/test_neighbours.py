from pathlib import Path

import numpy as np
import pytest
import torch

from fastclf.data.dataset import Dataset
from fastclf.data.sources.arrays import ArraySource
from fastclf.data.sources.labels import Labels
from fastclf.interpret import neighbours
from fastclf.interpret.neighbours import RowPool, nearest, nearest_others


def of_rows(x):
    return Dataset(ArraySource(Path("/"), x), Labels(np.zeros(len(x), np.int64), ["a", "b"]))


def cosines(a, b):
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "_AT_ONCE", 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_finds_what_a_full_matrix_of_cosines_has(rng, dtype):
    sets = [of_rows(rng.standard_normal((n, 13)).astype(dtype)) for n in (23, 5)]
    queries = rng.standard_normal((11, 13)).astype(np.float32)
    numbers, similarity = nearest(torch.from_numpy(queries), RowPool(sets), 4)
    expected = cosines(queries, np.concatenate([ds.rows for ds in sets]))
    np.testing.assert_array_equal(numbers, np.argsort(-expected, 1)[:, :4])
    np.testing.assert_allclose(similarity, -np.sort(-expected, 1)[:, :4], atol=1e-5)


def test_a_row_is_not_its_own_neighbour(rng):
    x = rng.standard_normal((20, 6)).astype(np.float32)
    expected = cosines(x, x)
    np.fill_diagonal(expected, -2)
    parts = list(nearest_others(RowPool([of_rows(x)]), 3))
    assert [first for first, _, _ in parts] == [0, 7, 14]
    np.testing.assert_array_equal(np.concatenate([n for _, n, _ in parts]), np.argsort(-expected, 1)[:, :3])


def test_bad_rows_are_left_out(rng):
    x = rng.standard_normal((9, 4)).astype(np.float32)
    ds = of_rows(x)
    ds.bad.reasons[3] = "broken"
    pool = RowPool([ds])
    assert pool.row.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    numbers, _ = nearest(torch.from_numpy(x[[3]]), pool, 8)
    assert sorted(pool.row[numbers[0]]) == pool.row.tolist()


def test_asks_for_more_than_there_are(rng):
    x = rng.standard_normal((3, 4)).astype(np.float32)
    numbers, _ = nearest(torch.from_numpy(x), RowPool([of_rows(x)]), 10)
    assert numbers.shape == (3, 3)
    with pytest.raises(ValueError, match="k"):
        nearest(torch.from_numpy(x), RowPool([of_rows(x)]), 0)
