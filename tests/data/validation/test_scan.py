"""The scan: every file decoded once, all bad ones named at once, what is good remembered until it changes."""

import csv
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COLOURS, TFMS, image_data, memory_of, tiny_learner, write_images
from odd_images import NOISE, bad_files, encoded, odd_files
from PIL import Image
from processes import PATIENCE

from fastclf.data.bad_images import MAX_PIXELS, BadImages
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode.process import decode
from fastclf.data.image import open_image
from fastclf.data.sources.files import FileSource
from fastclf.errors import BadImageError

load = partial(image_data, bs=4, augs=())


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
    done = subprocess.run([sys.executable, "-c", run, folders], capture_output=True, text=True, timeout=PATIENCE)
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
    done = subprocess.run([sys.executable, "-c", run, folders], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.split()[-2:] == ["1", "174"], done.stderr


def test_a_folder_that_cannot_be_written(folders):
    """The list of bad files goes to the user's cache folder."""
    (folders / "tmp").write_text("a file where the folder should be")
    (folders / "train/cat/cat0.png").write_bytes(b"")
    with pytest.raises(BadImageError, match=f"Full list: {os.environ['XDG_CACHE_HOME']}/fastclf/bad_images.csv"):
        load(folders).scan()


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
