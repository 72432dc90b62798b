import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from faults import in_child, status_of

from fastclf.activations import store
from fastclf.activations.manifest import read_manifest
from fastclf.activations.store import MANIFEST, ROWS, header_of, open_activations
from fastclf.activations.writer import ActivationWriter
from fastclf.errors import ActivationFileError


def written(folder, rows, key="k", dtype="float16", block=7, bad=None):
    with ActivationWriter(folder, key, rows.shape, dtype) as writer:
        while writer.rows_done < len(rows):
            first = writer.rows_done
            inside = {row: why for row, why in (bad or {}).items() if first <= row < first + block}
            writer.write(rows[first : first + block], inside)
        writer.finish()


def reopened(*args, **kwargs):
    """As another process would: without what this one knows."""
    store._checked.clear()
    return open_activations(*args, **kwargs)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(23, 5), (1, 1), (0, 4), (7, 3)])
def test_round_trip(tmp_path, rng, dtype, shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    written(tmp_path, rows, dtype=dtype)
    back = open_activations(tmp_path, "k", shape, dtype)
    np.testing.assert_array_equal(back, rows.astype(dtype))
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_rows_that_are_not_contiguous(tmp_path, rng):
    rows = rng.standard_normal((6, 20)).astype(np.float32)[:, ::2]
    written(tmp_path, rows, dtype="float32")
    np.testing.assert_array_equal(open_activations(tmp_path, "k", rows.shape, "float32"), rows)


def test_map_is_read_only(tmp_path, rng):
    written(tmp_path, rng.standard_normal((3, 2)))
    with pytest.raises(ValueError, match="read-only"):
        open_activations(tmp_path, "k", (3, 2), "float16")[0, 0] = 1


def test_an_interrupted_fill_is_not_read_but_gone_on_with(tmp_path, rng):
    rows = rng.standard_normal((10, 2)).astype(np.float32)
    with pytest.raises(KeyboardInterrupt), ActivationWriter(tmp_path, "k", (10, 2), "float32") as writer:
        writer.write(rows[:4])
        raise KeyboardInterrupt
    assert open_activations(tmp_path, "k", (10, 2), "float32") is None
    (partial,) = tmp_path.iterdir()
    assert (partial / ROWS).stat().st_size == 4 * 8  # the disk is not held meanwhile
    with ActivationWriter(tmp_path, "k", (10, 2), "float32") as writer:
        assert writer.rows_done == 4
        writer.write(rows[4:])
        writer.finish()
    np.testing.assert_array_equal(open_activations(tmp_path, "k", (10, 2), "float32"), rows)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_fill_that_did_nothing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), ActivationWriter(tmp_path, "k", (10, 2), "float16"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_an_interrupted_fill_is_not_trusted_unless_its_checksum_agrees(tmp_path, rng):
    rows = rng.standard_normal((12, 2)).astype(np.float32)
    with ActivationWriter(tmp_path, "k", rows.shape, "float32") as writer:
        for first in range(0, 9, 3):
            writer.write(rows[first : first + 3])
    (partial,) = tmp_path.iterdir()
    flip(partial / ROWS, 8 * 4 + int(rng.integers(16)), rng)  # in the second block
    with ActivationWriter(tmp_path, "k", rows.shape, "float32") as writer:
        assert writer.rows_done == 3
        writer.write(rows[3:])
        writer.finish()
    np.testing.assert_array_equal(reopened(tmp_path, "k", rows.shape, "float32"), rows)


def test_a_living_fill_is_left_alone_and_its_blocks_are_copied(tmp_path, rng):
    rows = rng.standard_normal((6, 2)).astype(np.float32)
    with ActivationWriter(tmp_path, "k", rows.shape, "float32") as first:
        first.write(rows[:3])
        with ActivationWriter(tmp_path, "k", rows.shape, "float32") as second:
            assert second.rows_done == 3
            second.write(rows[3:])
            second.finish()
        first.write(rows[3:])
        first.finish()
    np.testing.assert_array_equal(open_activations(tmp_path, "k", rows.shape, "float32"), rows)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_fill_whose_folder_somebody_removes_still_has_its_rows(tmp_path, rng):
    rows = rng.standard_normal((3, 2)).astype(np.float16)
    with ActivationWriter(tmp_path, "k", (3, 2), "float16") as writer:
        writer.write(rows)
        for partial in list(tmp_path.iterdir()):
            shutil.rmtree(partial)
        with pytest.raises(FileNotFoundError):
            writer.finish()
        np.testing.assert_array_equal(writer.rows_so_far(), rows)


def test_an_unfinished_file_cannot_be_published(tmp_path, rng):
    with ActivationWriter(tmp_path, "k", (10, 2), "float16") as writer:
        writer.write(rng.standard_normal((4, 2)))
        with pytest.raises(ValueError, match="10 rows were announced, 4 written"):
            writer.finish()
    assert open_activations(tmp_path, "k", (10, 2), "float16") is None


def flip(file, at, rng):
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda place, rng: os.truncate(place / ROWS, 10),
        lambda place, rng: (place / ROWS).unlink(),
        lambda place, rng: os.truncate(place / ROWS, 9 * 6 + 1),
        lambda place, rng: flip(place / ROWS, int(rng.integers(54)), rng),
        lambda place, rng: (place / MANIFEST).unlink(),
        lambda place, rng: os.truncate(place / MANIFEST, int(rng.integers((place / MANIFEST).stat().st_size))),
        lambda place, rng: flip(place / MANIFEST, int(rng.integers((place / MANIFEST).stat().st_size)), rng),
        lambda place, rng: (place / MANIFEST).write_bytes(bytes(100)),
    ],
)
def test_a_damaged_file_is_rebuilt(tmp_path, rng, damage):
    rows = rng.standard_normal((9, 3)).astype(np.float16)
    written(tmp_path, rows, block=2)
    damage(tmp_path / "k", rng)
    assert reopened(tmp_path, "k", (9, 3), "float16") is None
    assert not (tmp_path / "k").exists()
    written(tmp_path, rows, block=2)
    np.testing.assert_array_equal(reopened(tmp_path, "k", (9, 3), "float16"), rows)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_damaged_file_does_not_disturb_who_has_it_mapped(tmp_path, rng):
    rows = rng.standard_normal((9, 3)).astype(np.float16)
    written(tmp_path, rows)
    mapped = open_activations(tmp_path, "k", (9, 3), "float16")
    os.truncate(tmp_path / "k" / MANIFEST, 5)
    assert open_activations(tmp_path, "k", (9, 3), "float16") is None
    written(tmp_path, rows + 1)
    np.testing.assert_array_equal(mapped, rows)


def test_checksums_are_computed_once_per_process_and_file(tmp_path, rng, monkeypatch):
    written(tmp_path, rng.standard_normal((9, 3)))
    assert reopened(tmp_path, "k", (9, 3), "float16") is not None
    monkeypatch.setattr(store, "crc32_of", None)  # not called again
    assert open_activations(tmp_path, "k", (9, 3), "float16") is not None
    os.utime(tmp_path / "k" / ROWS, ns=(1, 1))  # changed
    with pytest.raises(TypeError):
        open_activations(tmp_path, "k", (9, 3), "float16")


def test_rows_that_could_not_be_computed_are_reported(tmp_path, rng):
    written(tmp_path, rng.standard_normal((9, 3)), bad={2: "empty file", 8: "truncated"})
    told = []
    assert open_activations(tmp_path, "k", (9, 3), "float16", lambda bad: not told.append(bad)) is not None
    assert told == [{2: "empty file", 8: "truncated"}]
    assert open_activations(tmp_path, "k", (9, 3), "float16", lambda bad: False) is None
    with ActivationWriter(tmp_path, "k", (9, 3), "float16", lambda bad: not bad) as writer:
        assert writer.rows_done == 0  # the first block holds row 2
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_fp16_are_refused_with_their_row(tmp_path):
    rows = np.ones((5, 2), np.float32)
    rows[3, 1] = 1e6
    writer = ActivationWriter(tmp_path, "k", (5, 2), "float16")
    with writer, pytest.raises(ActivationFileError, match=r"row 3 .*Pass act_dtype='float32'"):
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


def test_what_interrupted_fills_of_other_files_left_goes_after_a_week(tmp_path, rng):
    for key in ("old", "new"):
        with ActivationWriter(tmp_path, key, (10, 2), "float16") as writer:
            writer.write(rng.standard_normal((4, 2)))
    (old,) = tmp_path.glob("old.tmp-*")
    os.utime(old, (1, 1))
    written(tmp_path, rng.standard_normal((3, 2)))
    assert sorted(p.name.split(".")[0] for p in tmp_path.iterdir()) == ["k", "new"]


@pytest.mark.parametrize("ended", [True, False])
def test_what_a_process_left_is_removed_when_it_has_ended(tmp_path, rng, ended):
    rows = rng.standard_normal((6, 2)).astype(np.float32)

    def child():
        writer = ActivationWriter(tmp_path, "k", rows.shape, "float32")
        writer.write(rows[:3])
        signal.alarm(0)
        os._exit(137) if ended else signal.pause()

    pid = in_child(child)
    if ended:
        assert status_of(pid) == 137
    while not (partials := [p for p in tmp_path.glob("k.tmp-*") if finished_rows(p, rows.shape) == 3]):
        time.sleep(0.01)
    with ActivationWriter(tmp_path, "k", rows.shape, "float32") as writer:
        assert writer.rows_done == 3
        assert partials[0].exists() != ended
        writer.write(rows[3:])
        writer.finish()
    assert partials[0].exists() != ended
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        with ActivationWriter(tmp_path, "k", rows.shape, "float32"):
            assert not partials[0].exists()
    np.testing.assert_array_equal(open_activations(tmp_path, "k", rows.shape, "float32"), rows)


def finished_rows(partial, shape):
    with suppress(FileNotFoundError):
        return sum(block.rows for block in read_manifest(partial / MANIFEST, header_of("k", shape, "float32")) or [])
    return 0


def test_threads_that_fill_the_same_file(tmp_path, rng):
    rows = rng.standard_normal((40, 2)).astype(np.float16)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(written, tmp_path, rows) for _ in range(4)]:
            done.result(30)
    np.testing.assert_array_equal(open_activations(tmp_path, "k", rows.shape, "float16"), rows)
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_the_folder_is_for_this_user_alone(tmp_path, rng):
    written(tmp_path / "new", rng.standard_normal((3, 2)))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "k").stat().st_mode & 0o777 == 0o700
