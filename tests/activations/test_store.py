"""Segments and the stores they make: what is found, what is mapped, what damage costs."""

import ctypes
import errno
import mmap
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from faults import NthCall, in_child, status_of
from stores import KIND, described, keys_of, kind_of, opened, read_by_the_readme, written

from fastclf.activations import segment, store
from fastclf.activations.segment import BLOCKS, KEYS, NO_KEY, ROWS, USED, Segment, SegmentWriter, segments_in
from fastclf.activations.side_by_side import side_by_side
from fastclf.activations.store import Store, _find, older_stores, read_about
from fastclf.data.sources.array_checks import _as_x


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "activations" / KIND.name


@pytest.fixture
def rows(rng):
    return rng.standard_normal((23, 3)).astype(np.float32)


KEYS_23 = keys_of(23)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("width", [1, 5, 512, 2049])
def test_rows_are_mapped_in_any_order_from_any_number_of_segments(tmp_path, rng, dtype, width):
    kind, about = kind_of(width, dtype)
    folders = [described(tmp_path / where / kind.name, about) for where in "ab"]
    rows, keys = rng.standard_normal((400, width)).astype(dtype), keys_of(400)
    for first, end, folder in ((0, 1, 0), (1, 190, 1), (190, 191, 0), (191, 400, 0)):
        written(folders[folder], keys[first:end], rows[first:end], 7, kind)
    index = rng.integers(0, 400, 1000)
    found = Store(folders, kind).open(keys[index])
    np.testing.assert_array_equal(found, rows[index])
    assert Store(folders[:1], kind).open(keys[index]) is None
    wanted = keys[index].copy()
    wanted[::3] = NO_KEY  # bad images
    found = np.asarray(Store(folders, kind).open(wanted))
    assert not found[::3].any()
    np.testing.assert_array_equal(found[1::3], rows[index][1::3])
    assert Store(folders, kind).open(keys[:0]).shape == (0, width)
    with pytest.raises(ValueError, match="read-only"):
        Store(folders, kind).open(keys).matrix[0, 0] = 1
    by_hand = {key: row for folder in folders for key, row in read_by_the_readme(folder).items()}
    assert len(by_hand) == 400
    for key, row in zip(keys, rows, strict=True):
        np.testing.assert_array_equal(by_hand[key.ljust(32, b"\0")], row)


def test_what_is_missing_is_named_once_and_in_order(folder, rows):
    written(folder, KEYS_23[5:9], rows[5:9])
    wanted = KEYS_23[[8, 3, 5, 3, 1, 22, 6, 1]].copy()
    wanted[5] = NO_KEY
    assert Store([folder], KIND).missing(wanted).tolist() == [1, 4]


@pytest.mark.parametrize("same", [8, 9, 31])
def test_keys_that_are_made_to_look_alike_are_told_apart(rng, same):
    """As whoever may choose the images could make them, up to some bytes."""
    start = rng.bytes(same)
    keys = np.array([start + bytes([i]) * (32 - same) for i in rng.permutation(256)], "S32")
    stored = [keys[:100], keys[100:100], keys[100:200]]
    found = _find(np.concatenate([keys, [NO_KEY]]), stored)
    assert found.tolist() == [*range(200), *[-1] * 57]


def test_find_equals_a_dictionary(rng):
    stored = [np.frombuffer(rng.bytes(32 * n), "S32") for n in (500, 1, 0, 700)]
    keys = np.concatenate([*stored, np.frombuffer(rng.bytes(32 * 300), "S32")])[rng.permutation(1501)]
    places = {key: i for i, key in enumerate(np.concatenate(stored).tolist())}
    assert _find(keys, stored).tolist() == [places.get(key, -1) for key in keys.tolist()]
    assert _find(keys, []).tolist() == [-1] * 1501


def flip(file, at, rng):
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def anywhere(file, rng):
    return int(rng.integers(file.stat().st_size))


@pytest.mark.parametrize("name", [ROWS, KEYS, BLOCKS])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_costs_the_block_that_it_met(folder, rows, rng, name, how):
    file = written(folder, KEYS_23, rows) / name
    at, size = anywhere(file, rng), file.stat().st_size
    if how == "flip":
        flip(file, at, rng)
    elif how == "cut":
        os.truncate(file, at)
    else:
        file.unlink()
    blocks = [range(first, min(first + 5, 23)) for first in range(0, 23, 5)]
    ends = [(i + 1) * size // 5 if name == BLOCKS else (block[-1] + 1) * size // 23 for i, block in enumerate(blocks)]
    lost = [i for i in range(5) if how == "gone" or (at < ends[i] if how == "cut" else ends[i] - at > 0)]
    if how == "flip":
        lost = lost[:1]
    store = Store([folder], KIND)
    segment._checked.clear()
    assert store.open(KEYS_23) is None
    missing = [row for i in lost for row in blocks[i]]
    assert store.missing(KEYS_23).tolist() == missing
    written(folder, KEYS_23[missing], rows[missing])
    np.testing.assert_array_equal(store.open(KEYS_23), rows)
    np.testing.assert_array_equal(opened(folder, KEYS_23), rows)  # the damaged ones lie there still


def test_a_segment_counts_in_the_store_that_it_was_written_for_only(tmp_path, rows):
    other, _ = kind_of(salt=1)
    place = written(tmp_path / KIND.name, KEYS_23, rows)
    shutil.copytree(place, tmp_path / other.name / place.name)
    assert opened(tmp_path / other.name, KEYS_23, other) is None
    assert opened(tmp_path / KIND.name, KEYS_23) is not None


def test_checksums_are_computed_once_per_process_and_block(folder, rows, monkeypatch):
    place = written(folder, KEYS_23, rows)
    assert opened(folder, KEYS_23[:5]) is not None
    read, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: read.append(args[1:]) or real(*args))
    assert Store([folder], KIND).open(KEYS_23[2:5]) is not None
    assert read == []
    assert Store([folder], KIND).open(KEYS_23[:12]) is not None
    assert sorted(read) == [(60, 60), (60, 120)]  # the second and the third
    os.utime(place / ROWS, ns=(1, 1))  # changed
    assert Store([folder], KIND).open(KEYS_23[:1]) is not None
    assert len(read) == 3


def test_rows_stay_mapped_when_their_segment_is_removed(folder, rows):
    place = written(folder, KEYS_23, rows)
    found = Store([folder], KIND).open(KEYS_23)
    segment.remove([place])
    assert not list(folder.iterdir())
    np.testing.assert_array_equal(found, rows)


def test_a_segment_that_cannot_be_read_is_none(folder, rows, monkeypatch):
    place = written(folder, KEYS_23, rows)
    written(folder, KEYS_23[:9], rows[:9])
    real = Segment.check

    def check(self, wanted):
        if self.place == place:
            raise PermissionError("no")
        return real(self, wanted)

    monkeypatch.setattr(Segment, "check", check)
    assert Store([folder], KIND).open(KEYS_23) is None
    np.testing.assert_array_equal(Store([folder], KIND).open(KEYS_23[:9]), rows[:9])


def test_blocks_are_read_while_more_are_appended(folder, rows):
    store = Store([folder], KIND)
    with SegmentWriter(folder, KIND) as writer:
        for first in range(0, 20, 5):
            writer.write(KEYS_23[first : first + 5], rows[first : first + 5])
            np.testing.assert_array_equal(store.open(KEYS_23[: first + 5]), rows[: first + 5])
            assert store.missing(KEYS_23).tolist() == [*range(first + 5, 23)]
    assert [place.name.startswith("segment-") for place in segments_in(folder)] == [True]


@pytest.mark.parametrize("ended", [True, False])
def test_whose_process_has_ended_has_ended(folder, rows, ended):
    def child():
        writer = SegmentWriter(folder, KIND)
        writer.write(KEYS_23[:5], rows[:5])
        signal.alarm(0)
        os._exit(137) if ended else signal.pause()

    pid = in_child(child)
    while Store([folder], KIND).open(KEYS_23[:5]) is None:
        time.sleep(0.01)
    if ended:
        assert status_of(pid) == 137
    (place,) = segments_in(folder)
    assert segment.has_ended(place) == ended
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status_of(pid)
        assert segment.has_ended(place)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_after_a_write_that_failed_the_next_one_takes_its_place(folder, rows, monkeypatch, n):
    def full(call, args):
        call(args[0], bytes(args[1])[: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with SegmentWriter(folder, KIND) as writer:
        writer.write(KEYS_23[:5], rows[:5])
        with monkeypatch.context() as patch:
            NthCall(patch, n, full)
            with pytest.raises(OSError, match="No space"):
                writer.write(KEYS_23[5:9], rows[5:9])
        writer.write(KEYS_23[9:], rows[9:])
    left = np.r_[np.arange(5), np.arange(9, 23)]
    np.testing.assert_array_equal(opened(folder, KEYS_23[left]), rows[left])
    assert Store([folder], KIND).missing(KEYS_23).tolist() == [5, 6, 7, 8]


def test_a_writer_that_did_nothing_leaves_nothing(folder):
    with pytest.raises(KeyboardInterrupt), SegmentWriter(folder, KIND):
        raise KeyboardInterrupt
    assert list(folder.iterdir()) == []


def test_threads_that_fill_the_same_store(folder, rows):
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(written, folder, KEYS_23, rows) for _ in range(4)]:
            done.result(30)
    np.testing.assert_array_equal(opened(folder, KEYS_23), rows)


def test_the_folder_is_for_this_user_alone(tmp_path, rows):
    place = written(tmp_path / "new" / "store", KEYS_23, rows)
    for made in (place, place.parent, place.parent.parent):
        assert made.stat().st_mode & 0o777 == 0o700


def test_when_a_row_was_last_used_is_known_to_the_hour(folder, rows, monkeypatch):
    now = 1_900_000_000
    place = written(folder, KEYS_23, rows, used=np.full(23, now, np.uint32))
    for later, wanted in ((1000, slice(0, 9)), (4000, slice(5, 12))):
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        assert opened(folder, KEYS_23[wanted]) is not None
    found = Segment(place, KIND)
    found.refresh()
    assert found.last_used().tolist() == [now] * 5 + [now + 4000] * 7 + [now] * 11
    (place / USED).unlink()
    assert found.last_used().tolist() == [int((place / ROWS).stat().st_mtime)] * 23


def test_others_may_note_the_use_of_rows_while_more_are_appended(folder, rows, monkeypatch):
    with SegmentWriter(folder, KIND) as writer:
        writer.write(KEYS_23[:9], rows[:9])
        later = time.time() + 5000
        monkeypatch.setattr(time, "time", lambda: later)
        assert Store([folder], KIND).open(KEYS_23[:4]) is not None
        assert (writer.place / USED).exists()
        writer.write(KEYS_23[9:], rows[9:])
        writer.finish()
    np.testing.assert_array_equal(opened(folder, KEYS_23), rows)


def test_a_million_rows(tmp_path, rng):
    kind, _ = kind_of(2, "float16")
    n, folder = 1_000_000, tmp_path / kind.name
    keys = np.frombuffer(rng.bytes(32 * n), "S32")
    rows = rng.integers(-1000, 1000, (n, 2)).astype(np.float16)
    written(folder, keys[: n // 2], rows[: n // 2], 500, kind)
    written(folder, keys[n // 2 :], rows[n // 2 :], 5000, kind)
    order = rng.permutation(n)
    found = opened(folder, keys[order], kind)
    np.testing.assert_array_equal(found, rows[order])
    assert found.matrix.nbytes < n * 4 + 100_000


def test_stores_of_older_versions_are_told_from_others(tmp_path, rows):
    for name, file in (("a" * 64, "manifest.json"), ("b" * 64, "manifest.jsonl"), (KIND.name, "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text('{"schema": 1}')
    (tmp_path / "empty").mkdir()
    described(tmp_path / KIND.name)
    assert [place.name[0] for place in older_stores(tmp_path)] == ["a", "b"]
    assert older_stores(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 3}', "[" * 100_000, "\udcff"])
def test_a_description_that_is_none(folder, text):
    described(folder)
    assert read_about(folder) is not None
    (folder / "store.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_about(folder) is None
    described(folder)  # written anew
    assert read_about(folder) is not None


@pytest.mark.parametrize("lacking", [mmap.MAP_SHARED, mmap.MAP_SHARED | mmap.MAP_PRIVATE])
def test_a_file_system_without_maps(folder, rows, rng, monkeypatch, lacking):
    """As some over a network: shared ones are refused, or all."""

    def refusing(place, length, access, flags, handle, offset):
        if handle < 0 or not flags & lacking:
            return real(place, length, access, flags, handle, offset)
        ctypes.set_errno(errno.ENODEV)
        return store._FAILED

    real = store._libc.mmap
    written(folder, KEYS_23[:9], rows[:9])
    written(folder, KEYS_23[9:], rows[9:])
    monkeypatch.setattr(store, "_libc", SimpleNamespace(mmap=refusing))
    index = rng.integers(0, 23, 100)
    np.testing.assert_array_equal(opened(folder, KEYS_23[index]), rows[index])


def test_a_map_that_fails_says_why(folder, rows, monkeypatch):
    written(folder, KEYS_23, rows)
    failing = SimpleNamespace(mmap=lambda *_: (ctypes.set_errno(errno.ENOMEM), store._FAILED)[1])
    monkeypatch.setattr(store, "_libc", failing)
    with pytest.raises(OSError, match="activations cannot be mapped: Cannot allocate memory"):
        opened(folder, KEYS_23)


def test_arrays_of_a_file_system_without_shared_maps(tmp_path, rows, monkeypatch):
    class Private(mmap.mmap):
        def __new__(cls, *args, access=mmap.ACCESS_DEFAULT, **kwargs):
            if access == mmap.ACCESS_READ:
                raise OSError(errno.ENODEV, "No such device")
            return super().__new__(cls, *args, access=access, **kwargs)

    monkeypatch.setattr(mmap, "mmap", Private)
    np.save(tmp_path / "x.npy", rows)
    found = [side_by_side([rows, rows[:, :1]], [tmp_path]), _as_x(tmp_path / "x.npy", "train")]
    for one, want in zip(found, (np.hstack([rows, rows[:, :1]]), rows), strict=True):
        np.testing.assert_array_equal(one, want)
        with pytest.raises(ValueError, match="read-only"):
            one[0, 0] = 1
