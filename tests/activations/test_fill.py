"""Finding or computing rows: several processes at once, full disks, folders that cannot be used."""

import errno
import fcntl
import os
import shutil
import threading
import time

import numpy as np
import pytest
from faults import in_child, replaced, status_of
from stores import ABOUT, KIND, keys_of, opened, read_by_the_readme, written

from fastclf.activations import fill
from fastclf.activations.fill import Job, _from_the_middle, places_for, stored
from fastclf.activations.segment import NO_KEY, SegmentWriter, segments_in
from fastclf.errors import ActivationFileError
from fastclf.paths import check_private

N, STEP = 40, 5
KEYS = keys_of(N)


@pytest.fixture
def rows(rng):
    return rng.standard_normal((N, 3)).astype(np.float32)


@pytest.fixture(params=[0, 3], ids=["in turn", "in flight"])
def in_flight(request):
    """On a GPU a thread of its own writes while the next blocks are computed."""
    return request.param


def job_of(keys=KEYS):
    return Job(KIND, ABOUT, keys.copy(), "train")


class Source:
    """The rows in blocks; which were computed, in their order."""

    def __init__(self, rows, pause=0.0, bad=()):
        self.rows, self.pause, self.bad, self.computed = rows, pause, bad, []

    def __call__(self, numbers):
        for first in range(0, len(numbers), STEP):
            part = np.setdiff1d(numbers[first : first + STEP], self.bad)
            time.sleep(self.pause)
            self.computed += part.tolist()
            if len(part):
                yield part, self.rows[part], first + len(numbers[first : first + STEP])


def test_computed_once_then_found(tmp_path, rows, capsys):
    folder, source = tmp_path / "a", Source(rows)
    for _ in range(2):
        np.testing.assert_array_equal(stored(job_of(), [folder], source), rows)
    assert source.computed == [*range(N)]
    told = f"train: computing activations of 40 images, 0.0 MB, into {folder}\n"
    assert capsys.readouterr().out == told  # once, and before the work


def test_an_error_ends_what_computes(tmp_path, rows, in_flight):
    """A traceback holds what is suspended until the interpreter ends, and there torch aborts for its tensors."""
    rows[2] = np.nan
    ended = []

    def compute(numbers):
        try:
            yield from Source(rows)(numbers)
        finally:
            ended.append(True)

    with pytest.raises(ActivationFileError, match="row 2 are not finite") as caught:
        stored(job_of(), [tmp_path / "a"], compute, in_flight)
    assert ended, caught.traceback


def test_what_is_there_is_not_computed(tmp_path, rows, capsys):
    written(tmp_path / "b" / KIND.name, KEYS[7:20], rows[7:20])
    source, wanted = Source(rows), KEYS[np.r_[np.arange(N), 3, 3, 39, 8]]
    found = stored(job_of(wanted), [tmp_path / "a", tmp_path / "b"], source)
    np.testing.assert_array_equal(found[:N], rows)
    np.testing.assert_array_equal(found[N:], rows[[3, 3, 39, 8]])
    assert source.computed == [*range(7), *range(20, N)]
    assert "activations of 27 images, 0.0 MB, into" in (out := capsys.readouterr().out)
    assert out.endswith("; 13 are there\n")


@pytest.mark.parametrize("bad", [[0], [39], [4, 5, 6, 7, 8, 9, 10], [3, 17, 39], [*range(N)]])
def test_rows_that_are_passed_over_are_zeros(tmp_path, rows, bad, in_flight):
    source = Source(rows, bad=bad)
    found = np.asarray(stored(job_of(), [tmp_path], source, in_flight))
    good = np.setdiff1d(np.arange(N), bad)
    np.testing.assert_array_equal(found[good], rows[good])
    assert not found[bad].any()
    assert source.computed == good.tolist()


def test_going_on_after_an_interrupt(tmp_path, rows, capsys, in_flight):
    def interrupted(numbers):
        yield numbers[:10], rows[:10], 10
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"train were stopped: 10 of 40 rows are kept in .*/a; do it again"):
        stored(job_of(), [tmp_path / "a"], interrupted, in_flight)
    source = Source(rows)
    np.testing.assert_array_equal(stored(job_of(), [tmp_path / "a"], source), rows)
    assert source.computed == [*range(10, N)]
    assert "activations of 30 images, 0.0 MB" in (out := capsys.readouterr().out)
    assert out.endswith("; 10 are there\n")
    assert len(segments_in(tmp_path / "a" / KIND.name)) == 1  # the smaller was taken up


def test_few_blocks_are_in_flight_and_the_caller_goes_on_meanwhile(tmp_path, rows, monkeypatch):
    """The writer stands still until the source has been asked for all that may be in flight, and one more."""
    source, goes_on = Source(rows), threading.Event()
    writes, real = [], SegmentWriter.write

    def write(self, *args):
        assert goes_on.wait(10)
        writes.append(threading.current_thread())
        return real(self, *args)

    def watched(numbers):
        for number, block in enumerate(source(numbers), 1):
            assert number - len(writes) <= 3 + 1
            if number == 3 + 1:
                assert not writes
                goes_on.set()
            yield block

    monkeypatch.setattr(SegmentWriter, "write", write)
    np.testing.assert_array_equal(stored(job_of(), [tmp_path], watched, 3), rows)
    assert len(writes) == N // STEP
    assert threading.main_thread() not in writes
    assert not any(thread.is_alive() for thread in writes)


def test_many_small_additions_leave_few_segments(tmp_path, rng):
    n = 200
    rows, keys = rng.standard_normal((n, 3)).astype(np.float32), keys_of(n)
    for end in range(1, n + 1):
        np.testing.assert_array_equal(stored(job_of(keys[:end]), [tmp_path], Source(rows)), rows[:end])
        assert len(segments_in(tmp_path / KIND.name)) <= 8
    assert len(read_by_the_readme(tmp_path / KIND.name)) == n


def test_processes_at_once_share_the_work_with_locks_that_do_nothing(tmp_path, rows, monkeypatch, rng):
    """Nobody waits for anybody, nothing is taken from the living, and little is done twice."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
    n, twice = 200, []
    rows, keys = rng.standard_normal((n, 3)).astype(np.float32), keys_of(n)
    for turn in range(8):
        folder = tmp_path / str(turn)
        processes = 2 + turn % 2

        def child(i, pause, folder=folder):
            time.sleep(pause)
            source = Source(rows, 0.01)
            np.testing.assert_array_equal(stored(job_of(keys), [folder], source), rows)
            (folder / f"{i}.done").write_bytes(bytes(source.computed))

        pids = [in_child(lambda i=i, c=child: c(i, rng.uniform(0, 0.05))) for i in range(processes)]
        assert [status_of(pid) for pid in pids] == [0] * processes
        computed = [[*(folder / f"{i}.done").read_bytes()] for i in range(processes)]
        assert all(len(set(mine)) == len(mine) for mine in computed)  # nothing that it had done was lost
        assert set().union(*computed) == {*range(n)}
        twice.append(sum(map(len, computed)) - n)
        np.testing.assert_array_equal(opened(folder / KIND.name, keys), rows)
        stored(job_of(keys), [folder], None)
    print(f"computed twice, of {n}: {twice}")
    assert np.mean(twice) < n / 3  # without sharing, n and more


def test_whoever_comes_later_begins_amid_the_longest_stretch():
    missing = np.r_[np.arange(10, 14), np.arange(100, 200), np.arange(300, 310)]
    for _ in range(50):
        order = _from_the_middle(missing)
        assert 125 <= order[0] <= 175
        assert sorted(order.tolist()) == missing.tolist()
        assert order[-1] == (order[0] - 1)
    assert _from_the_middle(np.array([5])).tolist() == [5]


def test_a_living_process_keeps_its_segment(tmp_path, rows):
    with SegmentWriter(tmp_path / KIND.name, KIND) as first:
        first.write(KEYS[:3], rows[:3])
        source = Source(rows)
        np.testing.assert_array_equal(stored(job_of(), [tmp_path], source), rows)
        assert sorted(source.computed) == [*range(3, N)]
        first.write(KEYS[3:6], rows[3:6])
    assert first.rows_done == 6
    assert len(segments_in(tmp_path / KIND.name)) == 2


def test_a_folder_that_somebody_removes_meanwhile_costs_no_row(tmp_path, rows, in_flight):
    source = Source(rows)

    def disturbed(numbers):
        for block in source(numbers):
            if len(source.computed) == 20:
                shutil.rmtree(tmp_path / "a")
            yield block

    with pytest.warns(UserWarning, match="not kept in .*: No such file or directory"):
        got = stored(job_of(), [tmp_path / "a"], disturbed, in_flight)
    np.testing.assert_array_equal(got, rows)
    assert source.computed == [*range(N)]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def free(monkeypatch, disk):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6 - disk, disk))


def test_a_full_disk_is_reported_with_its_numbers_and_the_work_goes_on_in_memory(tmp_path, rows, monkeypatch):
    free(monkeypatch, 479)
    with pytest.warns(UserWarning, match=r"not kept in .*/a: they need 480 bytes, and 479 are free"):
        got = stored(job_of(), [tmp_path / "a"], Source(rows))
    np.testing.assert_array_equal(got, rows)
    assert segments_in(tmp_path / "a" / KIND.name) == []


def test_a_disk_that_fills_up_meanwhile_costs_no_row_twice(tmp_path, rows, monkeypatch):
    source = Source(rows)
    replaced(monkeypatch, "write", lambda call, *args: full_disk() if len(source.computed) > 20 else call(*args))
    free(monkeypatch, 480)
    with pytest.warns(UserWarning, match="they need 480 bytes"):
        got = stored(job_of(), [tmp_path / "a"], source)
    np.testing.assert_array_equal(got, rows)
    assert source.computed == [*range(N)]
    np.testing.assert_array_equal(opened(tmp_path / "a" / KIND.name, KEYS[:20]), rows[:20])


def test_too_large_for_disk_and_memory_is_a_clear_error(tmp_path, rows, monkeypatch, in_flight):
    free(monkeypatch, 479)
    monkeypatch.setattr(fill, "_free_memory", lambda: 478)
    with (
        pytest.warns(UserWarning, match="not kept in"),
        pytest.raises(ActivationFileError, match=r"train need 480 bytes.* 478 bytes of memory are free. Free disk"),
    ):
        stored(job_of(), [tmp_path / "a"], Source(rows), in_flight)


def test_free_memory_is_that_of_this_machine():
    assert 1e8 < fill._free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_folder_that_cannot_be_written_is_read_and_the_next_takes_the_rest(tmp_path, rows, monkeypatch):
    written(tmp_path / "readonly" / KIND.name, KEYS[:10], rows[:10])

    def mkdir(call, **kwargs):
        if "readonly" in str(call.__self__):
            raise OSError(errno.EROFS, "Read-only file system", str(call.__self__))
        call(**kwargs)

    replaced(monkeypatch, "mkdir", mkdir)
    folders, source = [tmp_path / "readonly", tmp_path / "cache"], Source(rows)
    with pytest.warns(UserWarning, match="not kept in .*readonly: Read-only file system"):
        np.testing.assert_array_equal(stored(job_of(), folders, source), rows)
    assert source.computed == [*range(10, N)]
    np.testing.assert_array_equal(stored(job_of(), folders, None), rows)


def test_a_folder_that_was_moved_is_the_same_store(tmp_path, rows):
    stored(job_of(), [tmp_path / "a"], Source(rows))
    (tmp_path / "a").rename(tmp_path / "b")
    np.testing.assert_array_equal(stored(job_of(), [tmp_path / "b"], None), rows)


def test_a_folder_of_another_user_is_not_used(tmp_path, rows, monkeypatch):
    stored(job_of(), [tmp_path / "a"], Source(rows))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    source = Source(rows)
    with pytest.warns(UserWarning, match=r"not kept in .*: it belongs to another user \(uid \d+\)"):
        stored(job_of(), [tmp_path / "a"], source)
    assert len(source.computed) == N  # what lies there is not trusted


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(PermissionError, match="others may write into it"):
        check_private(tmp_path)
    tmp_path.chmod(0o755)
    check_private(tmp_path)
    check_private(tmp_path / "none")


def test_places_are_the_data_and_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places_for(tmp_path / "tmp") == [tmp_path / "tmp" / "activations", tmp_path / "fastclf" / "activations"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_value_that_cannot_be_kept_is_an_error_and_keeps_what_is_done(tmp_path, rows, dtype, in_flight):
    rows[20, 1] = 1e6 if dtype == "float16" else np.nan
    kind = KIND._replace(dtype=dtype)
    hint = r" Pass act_dtype='float32'\.$" if dtype == "float16" else "$"
    with pytest.raises(ActivationFileError, match=rf"row 20 are not finite in {dtype}\.{hint}"):
        stored(Job(kind, ABOUT, KEYS.copy(), "train"), [tmp_path], Source(rows), in_flight)
    found = opened(tmp_path / kind.name, KEYS[:20], kind)
    np.testing.assert_array_equal(found, rows[:20].astype(dtype))


def test_files_of_an_older_version_are_ignored_and_logged_once(tmp_path, rows, capsys):
    for key in ("k", "l"):  # as version 2 wrote them
        (tmp_path / key).mkdir()
        (tmp_path / key / "manifest.jsonl").write_text('{"schema": 2}')
        (tmp_path / key / "rows.bin").write_bytes(bytes(480))
    for keys in (KEYS[:9], KEYS):
        stored(job_of(keys), [tmp_path], Source(rows))
    assert capsys.readouterr().out.count(f"2 folders in {tmp_path} are of another version of fastclf") == 1
    assert {place.name for place in tmp_path.iterdir()} == {"k", "l", KIND.name}


def test_nothing_wanted_is_nothing_done(tmp_path):
    assert stored(job_of(KEYS[:0]), [tmp_path], None).shape == (0, 3)
    assert not np.asarray(stored(job_of(np.full(3, NO_KEY, "S32")), [tmp_path], None)).any()
    assert list(tmp_path.iterdir()) == []


def test_a_long_pass_reports_how_long_it_takes(monkeypatch, capsys):
    monkeypatch.setattr(fill, "_LONG", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    pace = fill._Pace("train", N)
    for _ in range(N // STEP):
        pace.advance(STEP)
    assert capsys.readouterr().out == "train: about 2 s at 10 images/s\n"
