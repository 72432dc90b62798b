"""Random numbers as a pure function of a counter: Philox4x32-10.

Nothing here has a state. A number is named by (seed, epoch, row, stream), so it is the same in every thread, process
and order of computation, and no generator has to be saved to go on later.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

STREAM_ORDER = 0xFFFF
"""Stream of the order of rows in an epoch; streams below are free for what is sampled per row."""
STREAM_SPLIT = 0xFFFE
"""Stream of the choice of validation rows."""
STREAM_VIEW = 0xFFFD
"""Stream of the choice between the cached views of a row."""


def philox4x32(counter: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Compute Philox4x32 with ten rounds.

    Args:
        counter: `[..., 4] uint32`.
        key: two 32-bit words.

    Returns:
        `[..., 4] uint32`, four random words per counter.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniforms(seed: int, epoch: int, rows: npt.NDArray[np.int64], stream: int, n: int) -> npt.NDArray[np.float64]:
    """Sample n uniform numbers for every row.

    Args:
        seed: 0 <= seed < 2**64, the key.
        epoch: 0 <= epoch < 2**32.
        rows: `[N] int64`, 0 <= row < 2**32. A row's numbers do not depend on the other rows.
        stream: 0 <= stream < 2**16: what the numbers are for.
        n: how many numbers for each row, at most 2**17.

    Returns:
        `[N, n] float64` in [0, 1), 53 random bits each.
    """
    checked_seed("uniforms", seed)
    seed = int(seed)
    rows = np.asarray(rows, dtype=np.int64)
    blocks = (n + 1) // 2  # one block of four words makes two numbers
    counter = np.empty((len(rows), blocks, 4), np.uint32)
    counter[..., 0] = rows[:, None]
    counter[..., 1] = np.arange(blocks)
    counter[..., 2] = epoch
    counter[..., 3] = stream
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).astype(np.uint64)
    bits = (words[..., 0::2] >> np.uint64(5) << np.uint64(26)) | (words[..., 1::2] >> np.uint64(6))
    return (bits.reshape(len(rows), 2 * blocks)[:, :n] * 2.0**-53).astype(np.float64)


def permutation(seed: int, epoch: int, n: int, stream: int = STREAM_ORDER) -> npt.NDArray[np.int64]:
    """Order 0..n-1 at random: the ranks of n uniform numbers.

    Returns:
        `[n] int64`, every index once; a function of (seed, epoch, n) alone.
    """
    pairs = np.arange((n + 1) // 2, dtype=np.int64)
    return np.argsort(uniforms(seed, epoch, pairs, stream, 2).ravel()[:n], kind="stable")


def checked_seed(function: str, seed: int) -> int:
    """Return a seed as Python's integer; raise ValueError unless it is one, of numpy's too, with 0 <= seed < 2**64."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(
            f"{function}: seed must be an integer with 0 <= seed < 2**64, got {seed!r}. Pass e.g. seed=42."
        )
    return int(seed)
