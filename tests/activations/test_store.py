import json
import os

import numpy as np
import pytest

from fastclf.activations.store import ActivationWriter, open_activations
from fastclf.errors import ActivationFileError


def written(folder, rows, key="k", dtype="float16", block=7):
    with ActivationWriter(folder, key, rows.shape, dtype) as writer:
        for first in range(0, len(rows), block):
            writer.write(rows[first : first + block])
        writer.finish()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(23, 5), (1, 1), (0, 4), (7, 3)])
def test_round_trip(tmp_path, rng, dtype, shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    written(tmp_path, rows, dtype=dtype)
    back = open_activations(tmp_path, "k", shape, dtype, verify=True)
    np.testing.assert_array_equal(back, rows.astype(dtype))


def test_rows_that_are_not_contiguous(tmp_path, rng):
    rows = rng.standard_normal((6, 20)).astype(np.float32)[:, ::2]
    written(tmp_path, rows, dtype="float32")
    np.testing.assert_array_equal(open_activations(tmp_path, "k", rows.shape, "float32"), rows)


def test_map_is_read_only(tmp_path, rng):
    written(tmp_path, rng.standard_normal((3, 2)))
    with pytest.raises(ValueError, match="read-only"):
        open_activations(tmp_path, "k", (3, 2), "float16")[0, 0] = 1


def test_nothing_is_left_of_an_interrupted_fill(tmp_path, rng):
    with pytest.raises(KeyboardInterrupt), ActivationWriter(tmp_path, "k", (10, 2), "float16") as writer:
        writer.write(rng.standard_normal((4, 2)))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert open_activations(tmp_path, "k", (10, 2), "float16") is None


def test_an_unfinished_file_cannot_be_published(tmp_path, rng):
    with ActivationWriter(tmp_path, "k", (10, 2), "float16") as writer:
        writer.write(rng.standard_normal((4, 2)))
        with pytest.raises(ValueError, match="10 rows were announced, 4 written"):
            writer.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path):
    first = ActivationWriter(tmp_path, "k", (2, 2), "float16")
    second = ActivationWriter(tmp_path, "k", (2, 2), "float16")
    with first, second:
        first.write(np.ones((2, 2)))
        second.write(np.zeros((2, 2)))
        first.finish()
        second.finish()
    np.testing.assert_array_equal(open_activations(tmp_path, "k", (2, 2), "float16"), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: os.truncate(place / "rows.bin", 10),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "manifest.json").write_text("{"),
        lambda place: (place / "manifest.json").write_text("[]"),
        lambda place: (place / "manifest.json").write_text(
            json.dumps(json.loads((place / "manifest.json").read_text()) | {"schema": 0})
        ),
        lambda place: (place / "rows.bin").unlink(),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path, rng, damage):
    written(tmp_path, rng.standard_normal((9, 3)))
    damage(tmp_path / "k")
    assert open_activations(tmp_path, "k", (9, 3), "float16") is None
    assert list(tmp_path.iterdir()) == []


def test_verify_finds_a_flipped_bit(tmp_path, rng):
    written(tmp_path, rng.standard_normal((9, 3)))
    file = tmp_path / "k" / "rows.bin"
    data = bytearray(file.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)
    assert open_activations(tmp_path, "k", (9, 3), "float16") is not None
    assert open_activations(tmp_path, "k", (9, 3), "float16", verify=True) is None


def test_values_beyond_fp16_are_refused_with_their_row(tmp_path):
    rows = np.ones((5, 2), np.float32)
    rows[3, 1] = 1e6
    writer = ActivationWriter(tmp_path, "k", (5, 2), "float16")
    with writer, pytest.raises(ActivationFileError, match=r"row 3 .*Pass dtype='float32'"):
        writer.write(rows)
    rows[3, 1] = np.nan
    writer = ActivationWriter(tmp_path, "k", (5, 2), "float32")
    with writer, pytest.raises(ActivationFileError, match=r"row 3 are not finite in float32\.$"):
        writer.write(rows)


def test_more_rows_than_announced_are_refused(tmp_path):
    with ActivationWriter(tmp_path, "k", (3, 2), "float16") as writer:
        with pytest.raises(ValueError, match=r"must fit into \(3, 2\)"):
            writer.write(np.ones((4, 2)))
        with pytest.raises(ValueError, match="must fit"):
            writer.write(np.ones((1, 3)))
