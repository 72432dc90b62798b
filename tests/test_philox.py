"""Philox against its published answers and against plain Python, and what is built on it."""

import numpy as np
import pytest

from fastclf.philox import permutation, philox4x32, uniforms

# Random123, tests/kat_vectors: philox4x32 with 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == list(answer)


def test_equals_plain_python(rng):
    counters = rng.integers(0, 2**32, (3, 5, 4), dtype=np.uint32)
    key = tuple(int(k) for k in rng.integers(0, 2**32, 2))
    expected = [[plain_philox(c, key) for c in row] for row in counters.tolist()]
    assert philox4x32(counters, key).tolist() == expected


def test_samples_depend_on_their_names_alone(rng):
    seed, epoch, stream = (int(v) for v in rng.integers(0, 1000, 3))
    rows = rng.permutation(50).astype(np.int64)
    all_rows = uniforms(seed, epoch, np.arange(50), stream, 5)
    np.testing.assert_array_equal(uniforms(seed, epoch, rows, stream, 5), all_rows[rows])
    np.testing.assert_array_equal(uniforms(seed, epoch, rows, stream, 2), all_rows[rows, :2])
    for other in ((seed + 1, epoch, stream), (seed, epoch + 1, stream), (seed, epoch, stream + 1)):
        assert not np.isin(uniforms(other[0], other[1], rows, other[2], 5), all_rows).any()
    high = uniforms(seed + 2**40, epoch, rows, stream, 5)
    assert not np.isin(high, all_rows).any()


def test_uniforms_are_uniform():
    u = uniforms(1, 2, np.arange(20_000), 3, 3)
    assert u.shape == (20_000, 3)
    assert u.min() >= 0
    assert u.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in u.T])
    assert ((counts - 1000) ** 2 / 1000).sum(axis=1).max() < 50  # chi-square with 19 degrees of freedom
    assert np.abs(np.corrcoef(u.T) - np.eye(3)).max() < 0.03
    assert uniforms(1, 2, np.empty(0, np.int64), 3, 3).shape == (0, 3)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 1001])
def test_permutation_is_full(n):
    order = permutation(42, 3, n)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(order, permutation(42, 3, n))


def test_permutation_changes_with_seed_and_epoch():
    first = permutation(42, 0, 1000)
    for other in (permutation(42, 1, 1000), permutation(43, 0, 1000)):
        assert (first == other).mean() < 0.02
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.2


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        uniforms(seed, 0, np.arange(3), 0, 1)
