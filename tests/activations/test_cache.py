"""What the caches hold, and removing what was not asked for longest: `cached`, `prune` and the command."""

import os
import time

import numpy as np
import pytest
from stores import KIND, described, keys_of, kind_of, opened, read_by_the_readme, written

from fastclf.activations import cached, cached_copies, prune
from fastclf.activations.fingerprint import sha256_of
from fastclf.activations.segment import SegmentWriter, segments_in
from fastclf.activations.store import Store
from fastclf.cli import main
from fastclf.files import temporary_sibling

NOW, DAY, N = 1_900_000_000, 86_400, 30
KEYS = keys_of(N)
OTHER, OTHER_ABOUT = kind_of(7, "float16", salt=2)
ROW = 3 * 4 + 36
OTHER_ROW = 7 * 2 + 36


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder and a user's cache with a store each, last used 0 to 29 and 100 to 129 days ago, row by row."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    rows, folder = np.arange(N)[:, None].repeat(7, 1), tmp_path / "data"
    days = np.arange(N)
    own, users = stores_of(folder)
    written(described(own), KEYS, rows[:, :3].astype("f4"), 7, KIND, (NOW - days * DAY).astype("u4"))
    written(described(users, OTHER_ABOUT), KEYS, rows.astype("f2"), 4, OTHER, (NOW - (100 + days) * DAY).astype("u4"))
    return folder


def stores_of(folder):
    return folder / "tmp/activations" / KIND.name, folder.parent / "cache/fastclf/activations" / OTHER.name


def left(folder):
    """Which rows there still are in both stores."""
    found = []
    for store, kind in zip(stores_of(folder), (KIND, OTHER), strict=True):
        rows = np.setdiff1d(np.arange(N), Store([store], kind).missing(KEYS))
        read = np.asarray(opened(store, KEYS[rows], kind))
        np.testing.assert_array_equal(read, rows[:, None].repeat(kind.width, 1))
        found.append(rows.tolist())
    return found


def test_what_is_there(data, tmp_path):
    mine, users = cached(data)
    assert (mine.rows, mine.about["width"], mine.last_used) == (N, 3, NOW)
    assert (users.folder, users.rows, users.last_used) == (stores_of(data)[1], N, NOW - 100 * DAY)
    assert [store.size for store in (mine, users)] == [
        sum(file.stat().st_size for file in store.rglob("*")) for store in stores_of(data)
    ]
    assert cached() == [users]
    assert cached(tmp_path / "none") == [users]


@pytest.mark.parametrize(
    ("limits", "mine", "users"),
    [
        ({}, N, N),
        ({"older_than": 9.5}, 10, 0),
        ({"older_than": 105.5}, N, 6),
        ({"older_than": 1000, "keep": 10**9}, N, N),
        ({"keep": 12 * ROW}, 12, 0),
        ({"keep": 13 * ROW - 1}, 12, 0),
        ({"keep": N * ROW + 4 * OTHER_ROW}, N, 4),
        ({"keep": 20 * ROW, "older_than": 4.5}, 5, 0),
        ({"keep": 0}, 0, 0),
    ],
)
def test_the_rows_that_were_used_last_stay(data, limits, mine, users):
    before = sum(store.size for store in cached(data))
    freed = prune(data, **limits)
    assert left(data) == [[*range(mine)], [*range(users)]]
    assert [store.rows for store in cached(data)] == [n for n in (mine, users) if n]
    assert freed == before - sum(store.size for store in cached(data))
    assert (freed > 0) == (mine + users < 2 * N)
    assert all(len(segments_in(store)) == bool(n) for store, n in zip(stores_of(data), (mine, users), strict=True))
    assert prune(data, **limits) == 0  # and they are as old as they were


def test_without_a_folder_the_users_cache_alone_is_pruned(data):
    prune(older_than=0.5)
    assert left(data) == [[*range(N)], []]


def a_copy(place, size, days):
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.write_bytes(bytes(size))
    os.utime(place, (NOW - days * DAY, NOW - (days + 9) * DAY))  # it was read after it was written
    return place


@pytest.fixture
def copies(data):
    """Files of 1,000 bytes that were last read 0 to 5 days ago: of two scans, a tar archive, and a parquet file."""
    cache, groups = data.parent / "cache/fastclf", data / "tmp/row_groups"
    of_cache = [cache / "scans/a/0.png", cache / "scans/a/1.png", cache / "scans/b/2.png", cache / "shards/3.npz"]
    for folder in ("scans", "shards"):
        (cache / folder).mkdir(parents=True, mode=0o700)
    places = [*of_cache, groups / "4.arrow", groups / "5.arrow"]
    return [a_copy(place, 1000, days) for days, place in enumerate(places)]


@pytest.mark.parametrize(
    ("limits", "stay"),
    [
        ({}, 6),
        ({"older_than": 2.5}, 3),
        ({"keep": 10**6}, 6),
        ({"keep": 1000 + ROW}, 1),  # of both kinds what was used last
        ({"keep": 2000 + 2 * ROW}, 2),
        ({"keep": 2000 + 2 * ROW, "older_than": 0.5}, 1),
        ({"keep": 0}, 0),
    ],
)
def test_decoded_copies_go_with_the_rows(data, copies, limits, stay):
    (copies[0].parent / "scanned-0.sqlite").touch()
    held = sum(one.size for one in [*cached(data), *cached_copies(data)])
    freed = prune(data, **limits)
    assert [copy.exists() for copy in copies] == [True] * stay + [False] * (6 - stay)
    assert freed == held - sum(one.size for one in [*cached(data), *cached_copies(data)])
    assert (copies[0].parent / "scanned-0.sqlite").exists()


def test_copies_of_a_data_folder_are_left_alone_where_it_is_not_named(copies):
    prune(keep=0)
    assert [copy.exists() for copy in copies] == [False] * 4 + [True] * 2


def test_copies_are_listed_by_folder(data, copies, capsys):
    assert main(["cache", "list", str(data)]) == 0
    kinds = ("decoded copies", "indexes of archives")
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(kinds)]
    assert [line[-4:] for line in shown] == [
        [n, "0.0", days, str(copies[place].parent)]
        for n, days, place in (("2", "4", 4), ("2", "0", 0), ("1", "2", 2), ("1", "3", 3))
    ]


def test_what_a_living_process_writes_stays(data):
    store = stores_of(data)[0]
    with SegmentWriter(store, KIND) as writer:
        writer.write(keys_of(5, "new"), np.ones((5, 3), np.float32), np.zeros(5, np.uint32))
        prune(data, keep=0)
        assert opened(store, keys_of(5, "new")) is not None
    assert left(data) == [[], []]
    assert len(read_by_the_readme(store)) == 5


def test_what_nobody_can_use_goes(data):
    own, users = stores_of(data)
    (own.parent / ("f" * 64)).mkdir()  # of version 2
    (own.parent / ("f" * 64) / "manifest.jsonl").touch()
    (own.parent / ("f" * 64 + ".tmp-12345678")).mkdir()
    living = temporary_sibling(own.parent / ("e" * 64))  # a process of version 2 that is at work
    living.mkdir()
    (users / "store.json").write_text("{")
    written(own, KEYS, np.full((N, 3), 9, np.float32))  # twice, the other one comes first or last
    assert sum(store.about is None for store in cached(data)) == 4
    prune(data)
    assert {store.folder for store in cached(data)} == {own, living}
    assert len(segments_in(own)) == 1


def test_a_folder_that_others_can_write_into_is_not_touched(data):
    stores_of(data)[1].parent.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write into it"):
        prune(data, keep=0)


@pytest.mark.parametrize("limit", [-1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["keep", "older_than"])
def test_a_limit_that_makes_no_sense_removes_nothing(data, name, limit):
    before = left(data)
    with pytest.raises(ValueError, match=f"prune: {name} must be"):
        prune(data, **{name: limit})
    assert left(data) == before


def test_the_command(data, capsys):
    assert main(["cache", "list", str(data)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["activations", "of", "rows", "or", "files", "MB", "days", "unused", "folder"]
    assert len(shown) == 3
    assert shown[1].split()[-4:-1] == ["30", "0.0", "0"]
    assert shown[2].endswith(str(stores_of(data)[1]))
    assert main(["cache", "prune", str(data), "--keep", "1kB", "--older-than", "9.5"]) == 0
    assert capsys.readouterr().out.startswith("freed 0.0 MB\n")
    assert left(data) == [[*range(10)], []]
    assert main(["cache", "prune", "--keep=0"]) == 0
    assert main(["cache", "list", "--keep=0"]) == 1
    capsys.readouterr()
    for size in ("much", "1.2.3MB", ".", "-1", "²GB"):
        with pytest.raises(SystemExit):
            main(["cache", "prune", f"--keep={size}"])
        assert f"{size!r} must be a size such as 500MB or 2GB" in capsys.readouterr().err


def test_the_list_says_what_rows_were_computed_with(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    transforms = {"sz": 224, "train": True}
    about = OTHER_ABOUT | {"arch": "torchvision:resnet34", "transforms": transforms, "dtype": "float16"}
    assert main(["cache", "list"]) == 0
    assert "nothing is kept" in capsys.readouterr().out
    store = tmp_path / "fastclf" / "activations" / sha256_of(about)
    written(described(store, about), KEYS, np.ones((N, 7), np.float16), 7, OTHER._replace(name=store.name))
    assert main(["cache", "list"]) == 0
    assert "torchvision:resnet34, 224 px, augmented, float16" in capsys.readouterr().out
