"""A new kind of source is one class: images in a zip archive go the whole way."""

import time
import zipfile

import numpy as np
import pytest
import torch
from helpers import COLOURS, TFMS, three_colours, tiny_learner
from odd_images import bad_files

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.source import Source, Version
from fastclf.errors import BadImageError
from fastclf.interpret.results import ImageModelResults


class ZipSource(Source):
    """Images in a zip archive."""

    def stat(self, row):
        with zipfile.ZipFile(self.root) as archive:
            info = archive.getinfo(self.name(row))
        modified = int(time.mktime((*info.date_time, 0, 0, -1))) * 10**9
        return Version(info.file_size, modified, self.root.stat().st_ctime_ns, info.CRC)

    def read(self, row):
        with zipfile.ZipFile(self.root) as archive:
            return archive.read(self.name(row))


def names_in(folder, part):
    return sorted(file.relative_to(folder).as_posix() for file in folder.glob(f"{part}/**/*.*"))


def zipped(folder, file):
    with zipfile.ZipFile(file, "w") as archive:
        for part in ("train", "valid", "test"):
            for name in names_in(folder, part):
                archive.write(folder / name, name)
    return file


def data_of(folder, kind, root, path, **kwargs):
    """The same three sets, from any kind of source."""

    def labelled(part):
        names = names_in(folder, part)
        return kind(root, names), [name.split("/")[1] for name in names]

    test = kind(root, names_in(folder, "test"))
    return ImageClassifierData.from_arrays(path, labelled("train"), labelled("valid"), 8, TFMS, test=test, **kwargs)


@pytest.fixture
def both(tmp_path):
    """Data over files, and data over the same images in an archive."""
    folder = three_colours(tmp_path / "files", 8, 4, 3)
    archive = zipped(folder, tmp_path / "images.zip")
    return data_of(folder, FileSource, folder, folder), data_of(folder, ZipSource, archive, tmp_path)


def test_batches_are_those_of_files(both):
    files, archive = both
    assert archive.classes == [*COLOURS]
    for name in ("trn_dl", "fix_dl", "val_dl", "test_dl"):
        for (x, y), (x_zip, y_zip) in zip(getattr(files, name), getattr(archive, name), strict=True):
            assert torch.equal(x, x_zip)
            assert torch.equal(y, y_zip)


def test_scan_and_check(both):
    reports = [data.check() for data in both]
    assert str(reports[0]) == str(reports[1])
    assert reports[1].scan.decoded == 39
    assert both[1].scan().decoded == 0


def test_the_lesson(both):
    """Cached activations, training, predictions and results are those of files."""
    learners = [tiny_learner(data, precompute=True) for data in both]
    values = [learn.fit(0.05, 2) for learn in learners]
    assert values[0] == values[1]
    for precompute in (True, False):
        for learn in learners:
            learn.precompute = precompute
        predictions = [learn.predict() for learn in learners]
        np.testing.assert_array_equal(*predictions)
    results = ImageModelResults(both[1].val_ds, predictions[1])
    drawn = results.plot_most_uncertain("red", 1).axes[0]
    row = results.most_uncertain("red", 1)[0]
    assert both[1].val_ds.fnames[row].rpartition("/")[2] in drawn.get_title()


def test_copies_and_parts(both):
    files, archive = both
    small = [data.resize(16).without_duplicates() for data in both]
    for (x, _), (x_zip, _) in zip(small[0].val_dl, small[1].val_dl, strict=True):
        assert torch.equal(x, x_zip)
    rows = np.array([5, 2])
    assert [*archive.trn_ds.take(rows).fnames] == [files.trn_ds.fnames[row] for row in rows]


def test_bad_images_are_named_and_skipped(tmp_path):
    folder = three_colours(tmp_path / "files", 8, 4, 3)
    for name, kind in {"train/red/001.png": "half.png", "valid/blue/002.png": "zero.jpg"}.items():
        (folder / name).write_bytes(bad_files()[kind][0])
    archive = zipped(folder, tmp_path / "images.zip")
    with pytest.raises(BadImageError, match=r"2 of 39 images .*train/red/001\.png: damaged or truncated PNG"):
        data_of(folder, ZipSource, archive, tmp_path).scan()
    data = data_of(folder, ZipSource, archive, tmp_path, on_bad="skip")
    predictions = tiny_learner(data, precompute=True).predict()
    assert np.isnan(predictions).all(1).sum() == 1
    assert "train/red/001.png" in (tmp_path / "tmp/bad_images.csv").read_text()


def test_what_pillow_decodes_is_served_from_its_copy(tmp_path):
    folder = three_colours(tmp_path / "files", 8, 4, 3)
    from PIL import Image

    for file in folder.glob("*/red/*.png"):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    archive = zipped(folder, tmp_path / "images.zip")
    files, data = data_of(folder, FileSource, folder, folder), data_of(folder, ZipSource, archive, tmp_path)
    for (x, _), (x_zip, _) in zip(files.val_dl, data.val_dl, strict=True):
        assert torch.equal(x, x_zip)


def test_an_archive_that_changes_is_decoded_anew(both, tmp_path):
    """And one that cannot be read any more is an error that names the images."""
    _, data = both
    data.scan()
    folder = tmp_path / "files"
    (folder / "train/red/001.png").write_bytes(bad_files()["half.png"][0])
    zipped(folder, tmp_path / "images.zip")
    with pytest.raises(BadImageError, match=r"train/red/001\.png: damaged or truncated PNG; changed since the scan"):
        list(data.fix_dl)
    (tmp_path / "images.zip").unlink()
    with pytest.raises(BadImageError, match="not found; changed since the scan"):
        list(data.val_dl)


def test_sets_of_different_kinds_are_refused(both, tmp_path):
    files, archive = (data.trn_ds.source for data in both)
    y = both[0].trn_y
    with pytest.raises(ValueError, match=r"of one kind, got a FileSource of .*files and a ZipSource of .*images\.zip"):
        ImageClassifierData.from_arrays(tmp_path, (files, y), (archive, y), 8, TFMS)
    with pytest.raises(ValueError, match=r"val x and y must be equally long, got x \[24\] and y \[3\]"):
        ImageClassifierData.from_arrays(tmp_path, (files, y), (files, y[[0, 8, 16]]), 8, TFMS)
