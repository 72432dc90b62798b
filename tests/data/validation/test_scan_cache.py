"""What scans remember of files, until these change; what others may have written is not believed."""

import os
import sqlite3
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import image_data, memory_of, tiny_learner

from fastclf import ranks
from fastclf.data.bad_images import MAX_PIXELS
from fastclf.data.decode.process import decode
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Version
from fastclf.data.validation import scan_cache, verdicts, verified
from fastclf.data.validation.verified import VerifiedImages

load = partial(image_data, bs=4, augs=())


def rows_of(file):
    """All that is kept."""
    with closing(sqlite3.connect(file)) as database:
        return database.execute("SELECT * FROM verdicts ORDER BY name").fetchall()


def test_what_is_remembered(folders):
    """Every file, in a folder of the user's own; a bad one with its reason."""
    (folders / "train/cat/cat0.png").write_bytes(b"")
    data = load(folders, on_bad="skip")
    assert data.scan().decoded == 24
    memory = memory_of(folders)
    files = {name.decode(): values for name, *values in rows_of(memory)}
    assert set(files) == names_of(data) | {"train/cat/cat0.png"}
    assert {name for name, values in files.items() if values[-2]} == {"train/cat/cat0.png"}
    assert memory.parent.stat().st_mode & 0o777 == 0o700
    assert load(folders, on_bad="skip").scan().decoded == 0


def test_a_memory_that_came_with_the_images_is_not_believed(folders):
    """It could hide how large an image is."""
    load(folders).scan()
    memory = memory_of(folders)
    (folders / "tmp").mkdir(exist_ok=True)
    memory.rename(folders / "tmp" / memory.name)
    assert load(folders).scan().decoded == 25


def test_a_memory_that_others_may_write_is_not_believed(folders):
    load(folders).scan()
    memory_of(folders).parent.chmod(0o777)
    assert load(folders).scan().decoded == 25
    memory_of(folders).parent.chmod(0o700)
    assert load(folders).scan().decoded == 0


def test_a_memory_that_cannot_be_kept(folders, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load(folders).scan().decoded == 25
    assert load(folders).scan().decoded == 25


def names_of(data):
    return {ds.fnames[row] for ds in (data.trn_ds, data.val_ds, data.test_ds) for row in ds.bad.good_rows()}


@pytest.mark.parametrize("damage", ["empty", "text", "tail", "no table"])
def test_a_memory_that_is_damaged_is_made_anew(folders, damage, rng):
    load(folders).scan()
    memory = memory_of(folders)
    whole = memory.read_bytes()
    rows = rows_of(memory)
    if damage == "no table":
        with closing(sqlite3.connect(memory)) as database:
            database.execute("DROP TABLE verdicts")
    else:
        noise = rng.bytes(len(whole))
        memory.write_bytes({"empty": b"", "text": noise[:500], "tail": whole[:4096] + noise[4096:]}[damage])
    assert load(folders).scan().decoded == 25
    assert rows_of(memory) == rows


def test_what_another_decoder_or_version_has_kept_is_removed(folders, monkeypatch):
    load(folders).scan()
    (memory_of(folders).parent / "scanned.json").write_text('{"schema": 3, "decoder": "DALI", "files": {}}')
    monkeypatch.setattr(verdicts, "_decoders", lambda: "other")
    assert load(folders).scan().decoded == 25
    assert [file.name for file in memory_of(folders).parent.iterdir()] == ["scanned-other.sqlite"]


def test_a_memory_that_is_removed_meanwhile_is_made_anew(folders):
    data = load(folders)
    data.scan()
    memory_of(folders).unlink()
    (folders / "train/cat/cat0.png").write_bytes((folders / "train/cat/cat1.png").read_bytes())
    assert data.scan().decoded == 1
    assert [name for name, *_ in rows_of(memory_of(folders))] == [b"train/cat/cat0.png"]


@pytest.mark.parametrize("value", ["x", 1.5, None])
def test_a_memory_with_other_values_is_not_believed(folders, value):
    load(folders).scan()
    with closing(sqlite3.connect(memory_of(folders))) as database, database:
        database.execute("UPDATE verdicts SET ctime_ns = ? WHERE name = ?", (value, b"test/0.jpg"))
    assert load(folders).scan().decoded == 5  # those of test, which are read at once


@pytest.mark.parametrize("recent", [3, 1000])
def test_few_verdicts_are_held_in_memory(folders, monkeypatch, recent):
    """Whatever their number, and none is asked for one by one."""
    load(folders).scan()
    monkeypatch.setattr(scan_cache, "_RECENT", recent)
    monkeypatch.setattr(verified, "AT_ONCE", 3)
    asked = []
    read = verdicts.VerdictDatabase.read
    monkeypatch.setattr(verdicts.VerdictDatabase, "read", lambda self, names: asked.append(names) or read(self, names))
    data = load(folders)
    assert data.scan().decoded == 0
    assert len(data.trn_dl.images._verified.cache._recent) <= recent
    assert sum(map(len, asked)) <= 25 * (2 if recent == 3 else 1)
    assert max(map(len, asked)) == 3


def test_a_scan_writes_what_it_has_found_as_it_goes(folders, monkeypatch):
    monkeypatch.setattr(scan_cache, "_UNWRITTEN", 4)
    counts = []
    write = verdicts.VerdictDatabase.write
    monkeypatch.setattr(
        verdicts.VerdictDatabase, "write", lambda self, found: counts.append(len(found)) or write(self, found)
    )
    assert load(folders).scan().decoded == 25
    assert sum(counts) == 25
    assert max(counts) == 4


@pytest.mark.parametrize("inode", [(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("modified", [-1, 1 << 62, 15 * 10**18])
def test_inodes_and_times_of_64_bits(folders, monkeypatch, inode, modified):
    """Network and union file systems number files by hashes; a camera's clock may be anywhere."""

    def stat(source, row):
        real = Path(source.path(row)).stat()
        numbers = (real.st_mode, inode - row, 0, 0, 0, 0, real.st_size, 0, 0, 0)
        return Version.of(os.stat_result((*numbers, 0.0, 0.0, 0.0, 0, modified + row, modified)))

    monkeypatch.setattr(FileSource, "stat", stat)
    for _ in range(2):  # the second is of what the first has kept
        learn = tiny_learner(image_data(folders), precompute=True)
        learn.fit(1e-2, 1)
        assert not np.isnan(learn.predict()).any()
    assert learn.data.check().counts


def test_a_forked_process_opens_it_anew(folders):
    data = load(folders)
    data.scan()
    cache = data.trn_dl.images._verified.cache
    cache._recent.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        os._exit(0 if cache.get("test/0.jpg") is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get("test/0.jpg") is not None


def test_an_interrupted_scan_remembers_what_it_has_seen(folders, monkeypatch):
    def interrupted(task, note):
        noted = []

        def until_the_seventh(row, decoded):
            note(row, decoded)
            noted.append(row)
            if len(noted) == 7:
                raise KeyboardInterrupt

        decode(task, until_the_seventh)

    monkeypatch.setattr("fastclf.data.validation.verified.decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folders).scan()
    memory = memory_of(folders)
    assert [*memory.parent.iterdir()] == [memory]
    monkeypatch.setattr("fastclf.data.validation.verified.decode", decode)
    assert load(folders).scan().decoded == 18


def test_two_processes_that_scan_keep_what_the_other_has_found(folders):
    one, other = load(folders), load(folders)
    first = VerifiedImages(one.trn_ds.source, 1)
    scan_cache._in_use.clear()  # as another process has it
    second = VerifiedImages(other.val_ds.source, 1)
    assert first.cache is not second.cache
    assert first.bad(range(12), MAX_PIXELS) == {}
    assert second.bad(range(8), MAX_PIXELS) == {}
    first.cache.save()
    second.cache.save()
    scan_cache._in_use.clear()
    assert load(folders).scan().decoded == 5


@pytest.mark.parametrize("shared", [True, False])
def test_processes_tell_each_other_what_they_cannot_read(folders, tmp_path_factory, monkeypatch, shared):
    """Two of them, here threads: with one cache nothing is sent, with two each gets what the other has found."""
    place = tmp_path_factory.mktemp("caches")
    mine, both, given, sent = threading.local(), threading.Barrier(2), [None, None], []

    def gather(value):
        given[mine.rank] = value
        both.wait()
        found = list(given)
        both.wait()
        if isinstance(value, list):
            sent.extend(value)
        return found

    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: mine.rank)
    monkeypatch.setattr(ranks, "gather", gather)
    source, rows = load_alone(folders), list(range(12))

    def process(rank):
        mine.rank = rank
        cache = scan_cache.ScanCache(place / ("one" if shared else str(rank)))
        images = VerifiedImages(source, 1, cache)
        images.bad(rows[ranks.share(12)], MAX_PIXELS)
        cache.save()
        images.exchange(rows)
        return [images.cache.get(source.name(row)) for row in rows], images.decoded

    with ThreadPoolExecutor(2) as pool:
        (first, one), (second, other) = pool.map(process, range(2))
    assert first == second
    assert None not in first
    assert (one, other) == (6, 6)
    assert len(sent) == (0 if shared else 12)


def load_alone(folders):
    """The training images, whoever else there is."""
    names = sorted(str(file.relative_to(folders)) for file in folders.glob("train/*/*.png"))
    return FileSource(folders, names)


def test_each_verdict_is_read_once(folders, monkeypatch):
    """By the scan, six loaders, the check and the copies together."""
    load(folders).scan()
    scan_cache._in_use.clear()
    asked = []
    read = verdicts.VerdictDatabase.read
    monkeypatch.setattr(verdicts.VerdictDatabase, "read", lambda self, names: asked.extend(names) or read(self, names))
    data = load(folders)
    data.scan()
    for dl in (data.trn_dl, data.fix_dl, data.val_dl, data.aug_dl, data.test_dl, data.test_aug_dl):
        next(iter(dl))
    data.check()
    data.resize(20)
    assert len(asked) == len(set(asked)) == 25
