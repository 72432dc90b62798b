"""Pictures that cannot be decoded are named, all of a batch at once, with the reason."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.image import open_image
from fastclf.data.transforms import tfms_from_stats
from fastclf.errors import BadImageError

TFMS = tfms_from_stats(([0.5] * 3, [0.5] * 3), 16)


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
    "gif": (encoded("GIF"), "unsupported format GIF"),
    "heic": (b"\0\0\0\x18ftypheic" + b"\0" * 50, "unsupported format HEIC"),
    "resource fork": (b"\0\5\x16\7" * 30, "no known picture format"),
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
    with pytest.raises(BadImageError, match="2 of the 4 pictures of a batch") as error:
        list(data.val_dl)
    assert error.value.reasons == {name: error.value.reasons[name] for name in list(names)[:2]}
    for name in list(names)[:2]:
        assert f"{name}: " in str(error.value)
        assert BAD[names[name]][1] in error.value.reasons[name]
        (folders / name).write_bytes(good)
    with pytest.raises(BadImageError, match=r"1 of the 4 pictures.*valid/dog/dog3.png"):
        list(data.val_dl)
    (folders / "valid/dog/dog3.png").write_bytes(good)
    assert sum(len(x) for x, _ in data.val_dl) == 8


def test_batches_before_the_bad_one_arrive(folders):
    (folders / "valid/dog/dog3.png").write_bytes(b"")
    batches = iter(ImageClassifierData.from_paths(folders, 4, TFMS).val_dl)
    assert len(next(batches)[0]) == 4
    with pytest.raises(BadImageError, match=r"valid/dog/dog3.png: empty file"):
        next(batches)


def test_a_loop_left_before_a_bad_picture(folders):
    (folders / "valid/dog/dog3.png").write_bytes(b"")
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    for _ in range(2):
        for x, _ in data.val_dl:
            assert len(x) == 4
            break


def test_a_file_taken_away_after_the_scan(folders):
    data = ImageClassifierData.from_paths(folders, 4, TFMS)
    (folders / "valid/cat/cat2.png").unlink()
    with pytest.raises(BadImageError, match=r"valid/cat/cat2.png: not found; the folder was changed since"):
        list(data.val_dl)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folders):
    (folders / "valid/cat/cat2.png").chmod(0)
    with pytest.raises(BadImageError, match=r"valid/cat/cat2.png: Permission denied"):
        list(ImageClassifierData.from_paths(folders, 4, TFMS).val_dl)


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
