"""Images in parquet files and Hugging Face data sets are served as from folders."""

import pytest
import torch
from helpers import HALF, image_data, three_colours

from fastclf import tfms_from_stats
from fastclf.data.classifier_data import ImageClassifierData

TFMS = tfms_from_stats(HALF, 16)


def rows(folder, part):
    images = sorted(folder.glob(f"{part}/*/*.png"))
    return [{"bytes": file.read_bytes(), "path": None} for file in images], [file.parent.name for file in images]


def assert_same_batches(files, data):
    assert data.classes == files.classes
    for name in ("trn_dl", "val_dl"):
        for (x, y), (x_own, y_own) in zip(getattr(files, name), getattr(data, name), strict=True):
            assert torch.equal(x, x_own)
            assert torch.equal(y, y_own)


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = three_colours(tmp_path / "files", 8, 4, 3)
    for part in ("train", "valid"):
        images, labels = rows(folder, part)
        table = arrow.table({"image": images, "label": labels})
        parquet.write_table(table, tmp_path / f"{part}.parquet", row_group_size=5)
    data = ImageClassifierData.from_parquet(tmp_path / "train.parquet", 8, TFMS, tmp_path / "valid.parquet")
    assert data.val_ds.fnames[1] == "valid.parquet:1"
    assert_same_batches(image_data(folder, augs=()), data)
