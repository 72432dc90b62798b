"""The scan: every file decoded once, all bad ones named at once, what is good remembered until it changes."""

import csv
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COLOURS, image_data, tiny_learner, write_images
from odd_images import NOISE, bad_files, encoded, odd_files
from PIL import Image

from fastclf import ranks, tfms_from_stats
from fastclf.data.bad_images import MAX_PIXELS, BadImages
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode.process import decode
from fastclf.data.image import open_image
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Version
from fastclf.data.validation import scan_cache, verdicts, verified
from fastclf.data.validation.verified import VerifiedImages
from fastclf.errors import BadImageError

TFMS = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)


def load(path, **options):
    return ImageClassifierData.from_paths(path, 4, TFMS, **options)


@pytest.fixture
def decodes(monkeypatch):
    """How many files the child process is asked to decode at a time."""
    asked = []
    monkeypatch.setattr(
        "fastclf.data.validation.verified.decode",
        lambda task, note: asked.append(len(task.files)) or decode(task, note),
    )
    return asked


def test_good_images(folders, decodes):
    report = load(folders).scan()
    assert (report.n, report.decoded, report.bad, report.odd) == (25, 25, {}, {})
    assert sum(decodes) == 25


def test_an_image_is_decoded_once_until_it_changes(folders, decodes, save_image):
    load(folders).scan()
    decodes.clear()
    report = load(folders).scan()
    assert (report.n, report.decoded, decodes) == (25, 0, [])
    save_image(folders / "train/cat/new.png")
    os.utime(folders / "test/0.jpg", ns=(1, 1))
    other = folders / "valid/cat/cat0.png"
    times = other.stat()
    save_image(other, (50, 60))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))  # another size, the same time
    assert load(folders).scan().decoded == 3
    assert sum(decodes) == 3
    (folders / "train/dog/dog0.png").write_bytes(b"<html>")
    with pytest.raises(BadImageError, match="1 of 26 images"):
        load(folders).scan()


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_every_bad_file_is_named_and_nothing_else(tmp_path, on_bad, capsys):
    """Good, bad and odd files of all kinds in all three sets: one report, no good file in it."""
    write_images(tmp_path, {f"{part}/{name}": 25 for part in ("train", "valid") for name in ("blue", "red")})
    expected = {}
    for i, (name, (content, why)) in enumerate(bad_files().items()):
        place = ("train/red", "valid/blue", "train/blue", "test")[i % 4]
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / name).write_bytes(content)
        expected[f"{place}/{name}"] = why
    for i, (name, content) in enumerate(odd_files().items()):
        (tmp_path / ("train/red", "valid/blue", "test")[i % 3] / name).write_bytes(content)
    n = 100 + len(bad_files()) + len(odd_files())
    data = load(tmp_path, on_bad=on_bad)
    if on_bad == "raise":
        with pytest.raises(BadImageError, match=rf"{len(expected)} of {n} images.*Pass on_bad=.skip.") as error:
            data.scan()
        found = error.value.reasons
        assert not data.trn_ds.bad.reasons
    else:
        report = data.scan()
        found = report.bad
        assert f"{len(expected)} of {n} images cannot be decoded" in capsys.readouterr().out
        assert report.odd["with the extension of another format"] == 3
        assert report.odd["grey"] == 3
        for ds in (data.trn_ds, data.val_ds, data.test_ds):
            bad = {ds.fnames[row] for row in ds.bad.reasons}
            assert bad == {name for name in expected if name in ds.fnames}
            np.testing.assert_array_equal(
                ds.bad.good_rows(), [i for i, name in enumerate(ds.fnames) if name not in expected]
            )
    assert found.keys() == expected.keys()
    for name, why in expected.items():
        assert why in found[name], name
    with (tmp_path / "tmp" / "bad_images.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[0] == ["path", "reason"]
    assert dict(rows[1:]) == found


def test_training_and_predicting_without_the_bad_ones(tmp_path):
    """Predictions keep their places: NaN where the image is bad, elsewhere what they are without bad ones."""
    write_images(tmp_path, {f"{part}/{name}": n for part, n in (("train", 9), ("valid", 5)) for name in COLOURS})
    whole = image_data(tmp_path)
    bad = {"valid/blue/002.png": "half.png", "valid/red/000.png": "zero.jpg", "train/red/001.png": "html.jpg"}
    for name, kind in bad.items():
        (tmp_path / name).write_bytes(bad_files()[kind][0])
    data = image_data(tmp_path, on_bad="skip")
    learn = tiny_learner(data, precompute=True)
    values = learn.fit(0.05, 2)
    assert np.isfinite(values).all()
    assert sum(len(x) for x, _ in learn.data.trn_dl) == 26
    rows = [whole.val_ds.fnames.index(name) for name in bad if name.startswith("valid")]
    for precompute in (True, False):
        learn.precompute = precompute
        predictions, y = learn.predict_with_targs()
        assert predictions.shape == (15, 3)
        np.testing.assert_array_equal(y, np.where(np.isin(np.arange(15), rows), -1, whole.val_y))
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(predictions).all(axis=1)), sorted(rows))
        assert np.isnan(predictions).sum() == 6
    for row, name in enumerate(data.val_ds.fnames):
        if row not in rows:
            alone = learn.predict_array(data.tfms[1](open_image(tmp_path / name))[None])
            np.testing.assert_allclose(predictions[row], alone[0], atol=1e-4)


def test_max_bad(folders):
    for name in ("train/cat/cat0.png", "valid/dog/dog1.png"):
        (folders / name).write_bytes(b"")
    assert len(load(folders, on_bad="skip", max_bad=2).scan().bad) == 2
    data = load(folders, on_bad="skip", max_bad=1)
    with pytest.raises(BadImageError, match=r"2 of 25 .* more than max_bad=1") as error:
        data.scan()
    assert len(error.value.reasons) == 2
    assert len(data.trn_ds.bad.good_rows()) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad": "ignore"}, "on_bad must be 'raise' or 'skip', got 'ignore'"),
        ({"on_bad": "skip", "max_bad": -1}, "max_bad must be a whole number of at least 0, got -1"),
        ({"on_bad": "skip", "max_bad": 1.5}, "max_bad must"),
        ({"max_bad": 3}, "max_bad=3 needs on_bad='skip'"),
        ({"max_pixels": 0}, "max_pixels must be a whole number of at least 1, got 0"),
        ({"max_pixels": True}, "max_pixels must"),
    ],
)
def test_rules_that_there_are_not(folders, options, message):
    with pytest.raises(ValueError, match=message):
        load(folders, **options)


def test_max_pixels(folders):
    """What was found good is looked at again under a lower bound."""
    Image.new("RGB", (60, 50)).save(folders / "test/0.jpg")
    with pytest.raises(BadImageError, match=r"1 of 25 .*test/0.jpg: too large: 60 x 50 pixels, max_pixels=2,999"):
        load(folders, max_pixels=2999).scan()
    assert load(folders, max_pixels=3000).scan().bad == {}
    with pytest.raises(BadImageError, match="too large"):
        load(folders, max_pixels=2999).scan()
    assert MAX_PIXELS > 12_000 * 12_000


def test_an_enormous_image_is_not_allocated(folders):
    """The scan of an image that claims 3.6 billion pixels fits into an address space of a few more megabytes."""
    (folders / "valid/cat/bomb.png").write_bytes(bad_files()["bomb.png"][0])
    run = "; ".join(
        [
            "import resource, sys",
            "from fastclf import ImageClassifierData, tfms_from_stats",
            "tfms = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)",
            "data = ImageClassifierData.from_paths(sys.argv[1], 4, tfms, on_bad='skip', num_workers=1)",
            "next(iter(data.test_dl))",  # DALI and its threads are there
            "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()",
            "resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))",
            "print(*data.scan().bad)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", run, folders], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["valid/cat/bomb.png"], done.stderr


def test_handles_are_closed(folders):
    for i in range(150):
        shutil.copy(folders / "train/cat/cat0.png", folders / f"train/cat/more{i}.png")
    (folders / "train/cat/cat1.png").write_bytes(encoded()[:500])
    run = "; ".join(
        [
            "import resource, sys",
            "from fastclf import ImageClassifierData, tfms_from_stats",
            "tfms = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)",
            "next(iter(ImageClassifierData.from_paths(sys.argv[1], 4, tfms).test_dl))",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
            "data = ImageClassifierData.from_paths(sys.argv[1], 4, tfms, on_bad='skip')",
            "print(len(data.scan().bad), data.check().scan.n)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", run, folders], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-2:] == ["1", "174"], done.stderr


def memory_of(folders):
    """What scans of a folder have left."""
    own = hashlib.sha256(os.fsencode(folders)).hexdigest()[:16]
    folder = Path(os.environ["XDG_CACHE_HOME"]) / "fastclf" / "scans" / own
    (file,) = folder.glob("scanned-*.sqlite")
    return file


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


def test_a_folder_that_cannot_be_written(folders):
    """The list of bad files goes to the user's cache folder."""
    (folders / "tmp").write_text("a file where the folder should be")
    (folders / "train/cat/cat0.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=f"Full list: {os.environ['XDG_CACHE_HOME']}/fastclf/bad_images.csv"):
        load(folders).scan()


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


def test_precompute_scans_first(folders, decodes):
    """Bad images of all sets are named together, before the pass begins."""
    tiny_learner(load(folders), precompute=True)
    assert sum(decodes) == 25
    assert load(folders).scan().decoded == 0
    (folders / "train/cat/cat0.png").write_bytes(encoded()[:600])
    (folders / "test/4.jpg").write_bytes(encoded()[:600])
    with pytest.raises(BadImageError, match="2 of 25 images"):
        tiny_learner(load(folders), precompute=True)


def test_scan_check_loaders_and_learner_name_the_same(tmp_path, capsys):
    write_images(tmp_path, {f"{part}/{name}": 9 for part in ("train", "valid") for name in COLOURS})
    for name, (content, _) in bad_files().items():
        (tmp_path / "train/red" / name).write_bytes(content)
    scanned = image_data(tmp_path, on_bad="skip").scan().bad
    assert len(scanned) == len(bad_files())
    checked = image_data(tmp_path, on_bad="skip").check().scan.bad
    memory_of(tmp_path).unlink()
    served = image_data(tmp_path, on_bad="skip")
    list(served.fix_dl)
    learnt = image_data(tmp_path, on_bad="skip")
    tiny_learner(learnt, precompute=True)
    for ds in (served.trn_ds, learnt.trn_ds):
        assert {ds.fnames[row]: why for row, why in ds.bad.reasons.items()} == scanned
    assert checked == scanned


def test_smaller_copies_need_no_scan(folders, decodes):
    small = load(folders).resize(20)
    assert sum(decodes) == 25
    assert small.scan().n == 0
    assert load(folders).scan().decoded == 0  # the copies were made from images that could be decoded


def test_arrays_need_no_scan(tmp_path):
    x = np.zeros((4, 20, 20, 3), np.uint8)
    data = ImageClassifierData.from_arrays(tmp_path, (x, [0, 1, 0, 1]), (x, [0, 1, 0, 1]), 4, TFMS)
    assert data.scan().n == 0
    np.testing.assert_array_equal(data.trn_ds.bad.good_rows(), np.arange(4))


def test_names_in_the_list_are_one_line_and_no_formula(folders, save_image):
    names = ["=1+1.jpg", "+x.jpg", "-x.jpg", "@x.jpg", "new\nline.jpg", 'qu"ote, comma.jpg', "esc\x1b[31m.jpg"]
    for name in names:
        (folders / "test" / name).write_bytes(b"")
    Path(os.fsdecode(os.fsencode(folders / "test") + b"/no text \xff.jpg")).touch()
    with pytest.raises(BadImageError) as error:
        load(folders).scan()
    assert len(error.value.reasons) == 8
    assert "\x1b" not in str(error.value)
    assert "\n" not in str(error.value)
    content = (folders / "tmp" / "bad_images.csv").read_bytes()
    assert len(content.splitlines()) == 9
    rows = [row[0] for row in csv.reader(content.decode().splitlines())][1:]
    assert set(rows) == {f"test/{name}" for name in names[:4]} | {
        r"test/new\nline.jpg",
        'test/qu"ote, comma.jpg',
        r"test/esc\x1b[31m.jpg",
        r"test/no text \udcff.jpg",
    }


def test_a_name_that_begins_like_a_formula(tmp_path):
    names = ["=1+1", "+1", "-1", "@x", "plain"]
    bad = BadImages(FileSource(tmp_path, names))
    with pytest.raises(BadImageError):
        bad.note(dict.fromkeys(range(5), "=2+2"))
    rows = list(csv.reader((tmp_path / "tmp" / "bad_images.csv").read_text().splitlines()))
    assert rows[1:] == [["'=1+1", "'=2+2"], ["'+1", "'=2+2"], ["'-1", "'=2+2"], ["'@x", "'=2+2"], ["plain", "'=2+2"]]


def test_odd_images_are_decoded_as_pillow_does(tmp_path):
    for name, content in odd_files().items():
        (tmp_path / name).write_bytes(content)
        if name in ("16 bit.png", "turned.jpg", "middle.jpg"):
            continue
        with Image.open(tmp_path / name) as im:
            expected = np.asarray(im.convert("RGB"))
        np.testing.assert_array_equal(np.rint(open_image(tmp_path / name) * 255), expected, err_msg=name)
    assert open_image(tmp_path / "turned.jpg").shape == (40, 30, 3)


def test_images_of_any_shape_are_served(tmp_path):
    """One pixel, one row, one column: never an image resized to nothing."""
    for part in ("train", "valid"):
        for i, size in enumerate([(1, 1), (5000, 1), (1, 5000), (2, 3)]):
            for name in ("a", "b"):
                (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, (255, 255, 255)).save(tmp_path / part / name / f"{i}.png")
    data = load(tmp_path)
    assert data.scan().decoded == 16
    x = torch.cat([x for x, _ in data.val_dl])
    assert x.shape == (8, 3, 16, 16)
    torch.testing.assert_close(x, torch.ones_like(x))


def test_pillows_verify_is_no_scan(tmp_path):
    """It looks at no pixel: the reason why the scan decodes."""
    (tmp_path / "tail.jpg").write_bytes(bad_files()["tail.jpg"][0])
    with Image.open(tmp_path / "tail.jpg") as im:
        im.verify()
    with pytest.raises(BadImageError, match="damaged or truncated JPEG"):
        open_image(tmp_path / "tail.jpg")


def test_ycck_equals_pillow(tmp_path):
    """Four channels, inverted, the colours as luminance and chrominance: only the Adobe marker says so."""
    content = bytearray(encoded(Image.fromarray(NOISE).convert("CMYK"), quality=95, subsampling=0))
    marker = content.index(b"Adobe")
    assert content[marker + 11] == 0  # the transform: CMYK as it is
    content[marker + 11] = 2  # YCCK
    (tmp_path / "x.jpg").write_bytes(content)
    with Image.open(tmp_path / "x.jpg") as im:
        expected = np.asarray(im.convert("RGB"))
    np.testing.assert_allclose(np.rint(open_image(tmp_path / "x.jpg") * 255), expected, atol=1)
