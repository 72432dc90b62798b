"""What a row costs, counted on few of them: calls of the system, and bytes of memory."""

import gc
import tracemalloc
from pathlib import Path

import pytest
from helpers import HALF, image_data, three_colours

from fastclf import tfms_from_stats
from fastclf.data import sets
from fastclf.data.data_loaders import DataLoaders
from fastclf.data.sources.files import FileSource
from fastclf.data.sources.folders import FolderRules
from fastclf.data.sources.layout import SetFolders
from fastclf.data.sources.listing import Found
from fastclf.data.sources.names import Names
from fastclf.data.sources.row_labels import LabelledRows, LabelRules
from fastclf.data.sources.tables.reading import read_csv
from fastclf.data.sources.tables.rules import TableRules

TFMS = tfms_from_stats(HALF, 16)
ROWS, CLASSES = 8_000, 100
NAME = "train/n{0:08d}/n{0:08d}_{1:05d}.JPEG"


@pytest.fixture
def stats(monkeypatch):
    """The images that are looked at."""
    found = []
    original = FileSource.stat
    monkeypatch.setattr(FileSource, "stat", lambda self, row: found.append(self.name(row)) or original(self, row))
    return found


def test_each_image_is_looked_at_once_by_a_scan_and_an_epoch(tmp_path, stats):
    folder = three_colours(tmp_path, 5, 3, 2)
    image_data(folder).scan()
    stats.clear()
    data = image_data(folder)
    repr(data)
    data.trn_dl.chunks(0)
    assert stats == []
    data.scan()
    assert len(stats) == len(set(stats)) == 15 + 9 + 2
    stats.clear()
    for _ in data.trn_dl:
        pass
    assert len(stats) == len(set(stats)) == 15
    stats.clear()
    data.check()
    assert len(stats) <= 3 * 26  # the scan, the sizes, and those of one size


def measured(make):
    """Bytes per row at the peak, and of what stays."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    del made
    return peak / ROWS, stays / ROWS


def opened(made):
    trn, val, test = made
    return DataLoaders(Path("/data"), trn, val, test, bs=64, tfms=TFMS)


def test_a_row_of_folders_takes_few_bytes(monkeypatch):
    names = [NAME.format(row % CLASSES, row // CLASSES) for row in range(ROWS)]
    found = Found(Path("/data"), "train", sorted(names), classes=sorted({name.split("/")[1] for name in names}))
    monkeypatch.setattr(sets, "find_files", lambda *_, **__: found)
    folders = SetFolders("train", None, None)
    hold_out = sets.HoldOut(0.2, 0)

    def make():
        made = sets.from_folders(Path("/data"), TFMS, folders, hold_out, None, FolderRules(), test_with_labels=False)
        return opened(made)

    peak, stays = measured(make)
    assert stays < len(names[0]) + 40
    assert peak < 500


def test_a_row_of_a_table_takes_few_bytes(tmp_path, monkeypatch):
    names = [NAME.format(row % CLASSES, row // CLASSES) for row in range(ROWS)]
    (tmp_path / "t.csv").write_text("file,label\n" + "".join(f"{name},{name.split('/')[1]}\n" for name in names))
    found = Found(tmp_path, ".", sorted(names))
    monkeypatch.setattr(sets, "find_files", lambda *_, **__: found)

    def make():
        read = {"train": read_csv("t.csv", tmp_path, None, "utf-8")}
        rules = TableRules("from_csv", "")
        return opened(
            sets.from_tables(tmp_path, TFMS, read, ".", rules, None, sets.HoldOut(0.2, 0), None, allow_outside=False)
        )

    peak, stays = measured(make)
    assert stays < len(names[0]) + 40
    assert peak < 900


def test_a_row_of_archives_takes_few_bytes(tmp_path):
    names = Names(NAME.format(row % CLASSES, row // CLASSES) for row in range(ROWS))
    labels = [f"class {c}" for c in range(CLASSES)]

    def make():
        rows = LabelledRows(FileSource(tmp_path, names), [labels[row % CLASSES] for row in range(ROWS)])
        rules = LabelRules("from_shards")
        return opened(sets.from_rows(TFMS, {"train": rows}, rules, None, sets.HoldOut(0.2, 0)))

    peak, stays = measured(make)
    assert stays < len(names[0]) + 40
    assert peak < 600


def test_duplicates_are_found_without_reading_what_is_known(tmp_path, monkeypatch):
    folder = three_colours(tmp_path, 5, 3, 0)
    (folder / "valid/red/copy.png").write_bytes((folder / "train/red/001.png").read_bytes())
    reads = []
    original = FileSource.read
    monkeypatch.setattr(FileSource, "read", lambda self, row: reads.append(self.name(row)) or original(self, row))
    monkeypatch.setattr("fastclf.data.validation.verified._is_settled", lambda _: True)
    data = image_data(folder)
    want = [("train/red/001.png", "valid/red/copy.png")]
    assert data.check().leaks == want
    assert 2 <= len(reads) < 10
    reads.clear()
    assert image_data(folder).check().leaks == want
    assert reads == []
    assert len(image_data(folder).without_duplicates().trn_ds) == 14
