"""Images in tar archives are served as from folders."""

import io
import tarfile

import pytest
import torch
from helpers import HALF, image_data, three_colours

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData
from fastclf.errors import DataError, LabelError

TFMS = tfms_from_stats(HALF, 16)


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def shard(folder, part, file, *, labels=True):
    with tarfile.open(file, "w") as archive:
        for image in sorted(folder.glob(f"{part}/*/*.png")):
            key = f"{image.parent.name}.d/{image.stem}"
            add(archive, f"{key}.png", image.read_bytes())
            if labels:
                add(archive, f"{key}.cls", image.parent.name.encode())
    return file


@pytest.fixture
def folder(tmp_path):
    return three_colours(tmp_path / "files", 8, 4, 3)


def test_batches_are_those_of_folders(folder, tmp_path):
    files = image_data(folder, augs=())
    trn, val = shard(folder, "train", tmp_path / "t-00.tar"), shard(folder, "valid", tmp_path / "v.tar")
    data = ImageClassifierData.from_shards(str(trn).replace("00", "{00..00}"), 8, TFMS, val)
    assert data.classes == files.classes
    for name in ("trn_dl", "val_dl"):
        for (x, y), (x_tar, y_tar) in zip(getattr(files, name), getattr(data, name), strict=True):
            assert torch.equal(x, x_tar)
            assert torch.equal(y, y_tar)


def test_what_cannot_be_used_is_named(folder, tmp_path):
    without = shard(folder, "train", tmp_path / "t.tar", labels=False)
    with pytest.raises(LabelError, match="samples must have a label"):
        ImageClassifierData.from_shards(without, 8, TFMS)
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shard(folder, "train", tmp_path / "u.tar").read_bytes()[:20000])
    with pytest.raises(DataError, match="cut off"):
        ImageClassifierData.from_shards(cut, 8, TFMS)
