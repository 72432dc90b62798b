"""Images that cannot be decoded are named, all of a batch at once, with the reason."""

import io
import os
import resource
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TFMS
from odd_images import png
from PIL import Image
from processes import PATIENCE

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.decode.process import decode
from fastclf.data.image import open_image
from fastclf.data.validation.scan import scan_sets
from fastclf.errors import BadImageError


def encoded(form="JPEG"):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


BAD = {
    "empty": (b"", "empty file"),
    "half": (encoded()[:2000], "damaged or truncated JPEG"),
    "without its end": (encoded()[:-20], "damaged or truncated JPEG"),
    "page": (b"<html>404 not found</html>", "text or web page"),
    "half a png": (encoded("PNG")[:3000], "damaged or truncated PNG"),
    "half a gif": (encoded("GIF")[:1000], "damaged or truncated GIF"),
    "heic": (b"\0\0\0\x18ftypheic" + b"\0" * 50, "HEIC"),
    "resource fork": (b"\0\5\x16\7" * 30, "no known image format"),
}


@pytest.mark.parametrize("case", BAD)
def test_one_file(tmp_path, case):
    content, why = BAD[case]
    fn = tmp_path / "x.jpg"
    fn.write_bytes(content)
    with pytest.raises(BadImageError, match=why) as error:
        open_image(fn)
    assert str(fn) in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="open_image"):
        open_image(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").mkdir()
    with pytest.raises(BadImageError, match="Is a directory"):
        open_image(tmp_path / "x.jpg")


def test_all_of_a_batch_are_named_and_the_loader_goes_on(folders):
    good = (folders / "valid/cat/cat1.png").read_bytes()
    names = {"valid/cat/cat1.png": "empty", "valid/cat/cat3.png": "page", "valid/dog/dog3.png": "half"}
    for name, case in names.items():
        (folders / name).write_bytes(BAD[case][0])
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    with pytest.raises(BadImageError, match="2 of 25 images cannot be decoded") as error:
        list(data.val_dl)
    assert error.value.reasons == {name: error.value.reasons[name] for name in list(names)[:2]}
    for name in list(names)[:2]:
        assert f"{name}: " in str(error.value)
        assert BAD[names[name]][1] in error.value.reasons[name]
        (folders / name).write_bytes(good)
    with pytest.raises(BadImageError, match=r"1 of 25 images.*valid/dog/dog3.png"):
        list(data.val_dl)
    (folders / "valid/dog/dog3.png").write_bytes(good)
    assert sum(len(x) for x, _ in data.val_dl) == 8


def test_batches_before_the_bad_one_arrive(folders):
    (folders / "valid/dog/dog3.png").write_bytes(b"")
    batches = iter(ImageClassifierData.from_paths(folders, 4, TFMS).val_dl)
    assert len(next(batches)[0]) == 4
    with pytest.raises(BadImageError, match=r"valid/dog/dog3.png: empty file"):
        next(batches)


def test_a_loop_left_before_a_bad_image(folders):
    (folders / "valid/dog/dog3.png").write_bytes(b"")
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    for _ in range(2):
        for x, _ in data.val_dl:
            assert len(x) == 4
            break


def test_a_file_taken_away_after_the_scan(folders):
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    data.scan()
    (folders / "valid/cat/cat2.png").unlink()
    with pytest.raises(BadImageError, match=r"valid/cat/cat2.png: not found; changed since the scan"):
        list(data.val_dl)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folders):
    (folders / "valid/cat/cat2.png").chmod(0)
    with pytest.raises(BadImageError, match=r"valid/cat/cat2.png: Permission denied"):
        list(ImageClassifierData.from_paths(folders, 4, TFMS).val_dl)


def spoil(folders, cases):
    for name, case in cases.items():
        (folders / name).write_bytes(BAD[case][0])


def test_skipped_images_leave_the_epoch_at_its_place(folders, capsys):
    """Batches before, with and after the bad one hold the images that they would hold without it."""
    sound = ImageClassifierData.from_paths(folders, 4, TFMS)
    order, x = sound.trn_dl.order(1), torch.cat([x for x, _ in sound.trn_dl.batches(1)])
    bad = {int(order[1]): "half", int(order[2]): "page", int(order[9]): "empty"}
    spoil(folders, {sound.trn_ds.fnames[row]: case for row, case in bad.items()})
    data = ImageClassifierData.from_paths(folders, 4, TFMS, on_bad="skip")
    got = list(data.trn_dl.batches(1))
    assert [len(x) for x, _ in got] == [2, 4, 3]
    kept = [i for i, row in enumerate(order) if row not in bad]
    assert torch.equal(torch.cat([x for x, _ in got]), x[kept])
    np.testing.assert_array_equal(torch.cat([y for _, y in got]), data.trn_y[order[kept]])
    assert data.trn_ds.bad.reasons.keys() == bad.keys()
    said = capsys.readouterr().out
    for row, case in bad.items():
        assert BAD[case][1] in data.trn_ds.bad.reasons[row]
        assert data.trn_ds.fnames[row] in said
    # From now on they are in no order, and training batches are full.
    assert data.trn_dl.n == 12
    np.testing.assert_array_equal(data.trn_dl.served, sorted(set(range(12)) - bad.keys()))
    np.testing.assert_array_equal(data.trn_dl.order(1), order[kept])
    assert len(data.trn_dl) == 2  # nine rows: a last training batch of one is dropped
    assert [len(x) for x, _ in data.trn_dl.batches(2)] == [4, 4]
    assert [len(x) for x, _ in data.fix_dl.batches(2)] == [4, 4, 1]


def test_a_batch_of_nothing_but_bad_images_is_left_out(folders):
    names = ImageClassifierData.from_paths(folders, 4, TFMS).val_ds.fnames
    spoil(folders, dict.fromkeys(names[4:8], "half"))
    data = ImageClassifierData.from_paths(folders, 4, TFMS, on_bad="skip")
    assert [len(x) for x, _ in data.val_dl] == [4]
    assert len(data.val_dl) == 1
    spoil(folders, dict.fromkeys(names[:4], "half"))
    assert list(data.val_dl) == []
    assert len(data.val_dl) == 0
    assert list(data.aug_dl) == []


def test_more_than_max_bad_stop_the_epoch(folders):
    data = ImageClassifierData.from_paths(folders, 4, TFMS, on_bad="skip", max_bad=1)
    spoil(folders, {"train/cat/cat0.png": "half"})
    assert sum(len(x) for x, _ in data.fix_dl) == 11
    spoil(folders, {"valid/cat/cat1.png": "half"})
    with pytest.raises(BadImageError, match="more than max_bad=1") as error:
        list(data.val_dl)
    assert error.value.reasons.keys() == {"train/cat/cat0.png", "valid/cat/cat1.png"}


def test_an_image_that_changed_since_the_scan(folders):
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    scan_sets([data.val_ds], 1)
    spoil(folders, {"valid/cat/cat2.png": "half"})
    with pytest.raises(BadImageError, match=r"cat2.png: damaged or truncated JPEG; changed since the scan"):
        list(data.val_dl)


def enormous(fn, side=60_000):
    """A 1-bit PNG that claims side x side pixels, in half a megabyte."""
    row, packed = bytes(1 + side // 8), zlib.compressobj(9)
    pixels = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    fn.write_bytes(png(side, side, 1, 0, pixels))


@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_an_enormous_image_is_never_decoded(folders, on_bad):
    """Neither by the loader nor in the search for the culprit: its pixels would take ten gigabytes."""
    enormous(folders / "valid/cat/cat2.png")
    data = ImageClassifierData.from_paths(folders, 3, TFMS, on_bad=on_bad)
    gave = []
    limit, size = resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (size + (4 << 30), before[1]))
    try:
        if on_bad == "raise":
            with pytest.raises(BadImageError, match=r"cat2.png: too large: 60,000 x 60,000 pixels, max_pixels=178,956"):
                gave.extend(data.val_dl)
            assert gave == []
        else:
            assert [len(x) for x, _ in data.val_dl] == [2, 3, 2]
    finally:
        resource.setrlimit(limit, before)


def test_max_pixels_may_be_raised_or_lowered(folders):
    wide = folders / "valid/cat/cat2.png"
    Image.new("RGB", (400, 300)).save(wide)
    assert len(list(ImageClassifierData.from_paths(folders, 8, TFMS, max_pixels=120_000).val_dl)) == 1
    data = ImageClassifierData.from_paths(folders, 8, TFMS, max_pixels=119_999)
    with pytest.raises(BadImageError, match=r"cat2.png: too large: 400 x 300 pixels"):
        list(data.val_dl)


def test_files_are_decoded_by_the_child_process_once(folders, monkeypatch):
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    scan_sets([data.trn_ds], 1)
    asked = []
    monkeypatch.setattr(
        "fastclf.data.validation.verified.decode",
        lambda task, note: asked.append(len(task.files)) or decode(task, note),
    )
    for _ in range(2):
        for dl in (data.fix_dl, data.trn_dl, data.val_dl):
            assert sum(len(x) for x, _ in dl) == dl.n
    assert asked == [4, 4]  # of valid, which no scan has read
    Image.new("RGB", (9, 9)).save(folders / "train/cat/cat1.png")
    assert sum(len(x) for x, _ in data.fix_dl) == 12
    assert asked == [4, 4, 1]


def test_smaller_copies_of_the_images_that_can_be_decoded(folders):
    spoil(folders, {"valid/cat/cat2.png": "half", "train/dog/dog0.png": "page"})
    with pytest.raises(BadImageError, match="cannot be decoded"):
        ImageClassifierData.from_paths(folders, 4, TFMS).resize(20)
    small = ImageClassifierData.from_paths(folders, 4, TFMS, on_bad="skip").resize(20)
    assert sum(len(x) for x, _ in small.val_dl) == 7
    assert sum(len(x) for x, _ in small.fix_dl) == 11
    assert list(small.val_ds.bad.reasons.values()) == [BAD["half"][1]]


def test_transparency_gives_no_warnings(tmp_path, rng, capfd):
    """Alpha is dropped in silence, by the libraries below as well."""
    for name in ("a", "b"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        im = Image.fromarray(rng.integers(0, 256, (30, 30, 4), dtype=np.uint8), "RGBA")
        im.save(folder / "rgba.png")
        palette = im.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
        palette.save(folder / "p.png", transparency=bytes([0] + [255] * 15))
        im.convert("LA").save(folder / "la.png")
    shutil.copytree(tmp_path / "train", tmp_path / "valid")
    data = ImageClassifierData.from_paths(tmp_path, 4, TFMS)
    capfd.readouterr()
    assert sum(len(x) for x, _ in data.val_dl) == 6
    assert capfd.readouterr() == ("", "")


def test_handles_are_closed(folders):
    """More images than a process with 64 open files could hold open, several times over."""
    pytest.importorskip("nvidia.dali")
    for i in range(80):
        shutil.copy(folders / "train/cat/cat0.png", folders / f"train/cat/more{i}.png")
    run = "; ".join(
        [
            "import resource, sys",
            "from fastclf import ImageClassifierData, tfms_from_stats",
            "tfms = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)",
            "data = ImageClassifierData.from_paths(sys.argv[1], 16, tfms, num_workers=2)",
            "next(iter(data.val_dl))",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))",
            "print(sum(len(x) for _ in range(3) for x, _ in data.fix_dl))",
        ]
    )
    done = subprocess.run([sys.executable, "-c", run, folders], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.split()[-1:] == ["276"], done.stderr


def test_a_wrong_extension_is_no_trouble(folders):
    (folders / "train/cat/cat0.png").rename(folders / "train/cat/cat0.jpg")
    assert sum(len(x) for x, _ in ImageClassifierData.from_paths(folders, 4, TFMS).fix_dl) == 12


def test_broken_metadata_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 1
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(buffer, "JPEG", exif=exif, icc_profile=b"junk" * 30)
    content = bytearray(buffer.getvalue())
    content[content.index(b"Exif") + 6 : content.index(b"Exif") + 20] = b"\xff" * 14
    (tmp_path / "x.jpg").write_bytes(content)
    assert np.abs(open_image(tmp_path / "x.jpg") - 200 / 255).max() < 0.02
