"""Finding or filling a file: several processes at once, full disks, folders that cannot be used."""

import errno
import fcntl
import os
import shutil
import time

import numpy as np
import pytest
from faults import in_child, replaced, status_of

from fastclf.activations import fill
from fastclf.activations.fill import Job, StaleError, places_for, stored
from fastclf.activations.store import open_activations
from fastclf.activations.writer import ActivationWriter
from fastclf.errors import ActivationFileError
from fastclf.files import check_private

N, STEP = 40, 5


@pytest.fixture
def rows(rng):
    return rng.standard_normal((N, 3)).astype(np.float32)


@pytest.fixture
def job(rows):
    return Job("k", rows.shape, "float32", "train", "40 images", lambda bad: True)


class Source:
    """The rows in blocks; counts those that were computed."""

    def __init__(self, rows, pause=0.0):
        self.rows, self.pause, self.computed = rows, pause, 0

    def __call__(self, done):
        for first in range(done, len(self.rows), STEP):
            time.sleep(self.pause)
            self.computed += len(self.rows[first : first + STEP])
            yield self.rows[first : first + STEP], {}


def names(folder):
    return [place.name for place in folder.iterdir()]


def test_filled_once_then_found(tmp_path, job, rows, capsys):
    folder, source = tmp_path / "a", Source(rows)
    for _ in range(2):
        np.testing.assert_array_equal(stored(job, [folder], source, lambda: True), rows)
    assert source.computed == N
    told = f"train: computing activations of 40 images, 0.0 MB, into {folder}\n"
    assert capsys.readouterr().out == told  # once, and before the work


def test_going_on_says_so(tmp_path, job, rows, capsys):
    def interrupted(done):
        yield rows[:10], {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stored(job, [tmp_path / "a"], interrupted, lambda: True)
    source = Source(rows)
    np.testing.assert_array_equal(stored(job, [tmp_path / "a"], source, lambda: True), rows)
    assert source.computed == N - 10
    assert "going on after 10 rows" in capsys.readouterr().out


def test_two_processes_at_once_with_locks_that_do_nothing(tmp_path, job, rows, monkeypatch, rng):
    """Nobody waits for anybody, nothing is taken from the living, and one file is left."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    monkeypatch.setattr(fcntl, "lockf", lambda *_: None)
    for turn, pauses in enumerate(rng.uniform(0, 0.003, (20, 2))):
        folder = tmp_path / str(turn)

        def child(pause, folder=folder):
            time.sleep(pause)
            source = Source(rows, pause)
            got = stored(job, [folder], source, lambda: True)
            np.testing.assert_array_equal(got, rows)
            assert source.computed <= N  # nothing that it had done was lost

        pids = [in_child(lambda pause=pause, child=child: child(pause)) for pause in pauses.tolist()]
        assert [status_of(pid) for pid in pids] == [0, 0]
        np.testing.assert_array_equal(open_activations(folder, "k", rows.shape, "float32"), rows)
        stored(job, [folder], None, None)
        assert names(folder) == ["k"]


def test_a_folder_that_somebody_removes_meanwhile_costs_no_row(tmp_path, job, rows):
    source = Source(rows)

    def disturbed(done):
        for block in source(done):
            if source.computed == 20:
                shutil.rmtree(tmp_path / "a")
            yield block

    with pytest.warns(UserWarning, match="not kept in .*: No such file or directory"):
        got = stored(job, [tmp_path / "a"], disturbed, lambda: True)
    np.testing.assert_array_equal(got, rows)
    assert source.computed == N


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_reported_with_its_numbers_and_the_work_goes_on_in_memory(tmp_path, job, rows, monkeypatch):
    replaced(monkeypatch, "posix_fallocate", full_disk)
    with pytest.warns(UserWarning, match=r"not kept in .*: they need 480 bytes, and [\d,]+ are free"):
        got = stored(job, [tmp_path / "a"], Source(rows), lambda: True)
    np.testing.assert_array_equal(got, rows)
    assert names(tmp_path / "a") == []


def test_a_disk_that_fills_up_meanwhile_costs_no_row_twice(tmp_path, job, rows, monkeypatch):
    source = Source(rows)
    replaced(monkeypatch, "write", lambda call, *args: full_disk() if source.computed > 20 else call(*args))
    with pytest.warns(UserWarning, match="they need 480 bytes"):
        got = stored(job, [tmp_path / "a"], source, lambda: True)
    np.testing.assert_array_equal(got, rows)
    assert source.computed == N
    assert names(tmp_path / "a") == []


def test_space_is_made_from_what_interrupted_fills_hold(tmp_path, job, rows, monkeypatch):
    with ActivationWriter(tmp_path, "other", (10, 2), "float16") as writer:
        writer.write(np.ones((4, 2)))
    replaced(
        monkeypatch, "posix_fallocate", lambda call, *args: full_disk() if len(names(tmp_path)) > 1 else call(*args)
    )
    np.testing.assert_array_equal(stored(job, [tmp_path], Source(rows), lambda: True), rows)
    assert names(tmp_path) == ["k"]


def test_too_large_for_disk_and_memory_is_a_clear_error(tmp_path, job, rows, monkeypatch):
    replaced(monkeypatch, "posix_fallocate", full_disk)
    monkeypatch.setattr(fill, "_free_memory", lambda: 479)
    with (
        pytest.warns(UserWarning, match="not kept in"),
        pytest.raises(ActivationFileError, match=r"train need 480 bytes.* 479 bytes of memory are free. Free disk"),
    ):
        stored(job, [tmp_path / "a"], Source(rows), lambda: True)


def test_free_memory_is_that_of_this_machine():
    assert 1e8 < fill._free_memory() < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_folder_that_cannot_be_written_gives_way_to_the_next(tmp_path, job, rows, monkeypatch):
    def mkdir(call, **kwargs):
        if "readonly" in str(call.__self__):
            raise OSError(errno.EROFS, "Read-only file system", str(call.__self__))
        call(**kwargs)

    replaced(monkeypatch, "mkdir", mkdir)
    folders = [tmp_path / "readonly" / "activations", tmp_path / "cache"]
    with pytest.warns(UserWarning, match="not kept in .*readonly.*: Read-only file system"):
        stored(job, folders, Source(rows), lambda: True)
    assert names(tmp_path / "cache") == ["k"]
    np.testing.assert_array_equal(stored(job, folders, None, None), rows)


def test_a_folder_of_another_user_is_not_used(tmp_path, job, rows, monkeypatch):
    stored(job, [tmp_path / "a"], Source(rows), lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    source = Source(rows)
    with pytest.warns(UserWarning, match=r"not kept in .*: it belongs to another user \(uid \d+\)"):
        stored(job, [tmp_path / "a"], source, lambda: True)
    assert source.computed == N  # what lies there is not trusted


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


def test_rows_whose_images_changed_meanwhile_are_not_kept(tmp_path, job, rows):
    with pytest.raises(StaleError):
        stored(job, [tmp_path], Source(rows), lambda: False)
    assert names(tmp_path) == []


def test_a_value_that_cannot_be_kept_leaves_nothing_behind(tmp_path, job, rows):
    rows[20, 1] = np.nan
    with pytest.raises(ActivationFileError, match="row 20 are not finite"):
        stored(job, [tmp_path], Source(rows), lambda: True)
    assert names(tmp_path) == []


def test_files_of_an_older_version_are_ignored_and_logged_once(tmp_path, job, rows, capsys):
    for key in ("k", "l"):  # as version 1 wrote them
        (tmp_path / key).mkdir()
        (tmp_path / key / "manifest.json").write_text('{"schema": 1}')
        (tmp_path / key / "rows.bin").write_bytes(bytes(480))
    for key in ("k", "m"):
        np.testing.assert_array_equal(
            stored(
                Job(key, *[getattr(job, f) for f in ("shape", "dtype", "what", "rows", "accept")]),
                [tmp_path],
                Source(rows),
                lambda: True,
            ),
            rows,
        )
    assert capsys.readouterr().out.count(f"1 files in {tmp_path} are of another version") == 1
    assert sorted(names(tmp_path)) == ["k", "l", "m"]


def test_a_long_pass_reports_how_long_it_takes(tmp_path, job, rows, monkeypatch, capsys):
    monkeypatch.setattr(fill, "_LONG", 0.0)
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    pace = fill._Pace("train", N)
    for _ in range(N // STEP):
        pace.advance(STEP)
    assert capsys.readouterr().out == "train: about 2 s at 10 images/s\n"
