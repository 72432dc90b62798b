"""Patterns: what lies before them is a folder, whatever marks are in its name; lists and tables are no patterns."""

import fnmatch
import itertools
import os
import tarfile

import numpy as np
import pandas as pd
import pytest
from helpers import TFMS, image_data, three_colours, tiny_learner, write_images

import fastclf
from fastclf import ImageClassifierData
from fastclf.cli import main
from fastclf.commands.sources import files_by_set
from fastclf.data.sources.patterns import files_of, matched
from fastclf.data.stream import items

ODD = ["[2024] set", "{a,b}", "[a-c]", "*", "w?at", "{0..3}", "[!x]", "plain"]


@pytest.mark.parametrize("_", range(30))
def test_a_pattern_below_any_folder_means_what_it_means_in_it(tmp_path, rng, _, monkeypatch):
    """The reference is `fnmatch`, on the names in the folder alone."""
    depth = int(rng.integers(1, 4))
    for other in ODD:
        write_images(tmp_path, {other: 1})  # which the folder's own name would match
    root = tmp_path.joinpath(*rng.choice(ODD, depth))
    names = [f"{a}{b}.png" for a, b in itertools.product("abc", "012")]
    root.mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / name).write_bytes(b"x")
    pattern = str(rng.choice(["a*.png", "[bc]?.png", "?[01].png", "c2.png", "b[!1].png"]))
    expected = sorted(name for name in names if fnmatch.fnmatch(name, pattern))
    monkeypatch.chdir(tmp_path)
    for place in (root, root.relative_to(tmp_path)):
        assert matched(f"{place}/{pattern}", "x") == [f"{place}/{name}" for name in expected]
        assert [item.name for item in items(f"{place}/{pattern}")] == [f"{place}/{name}" for name in expected]
        assert files_of(f"{place}/{pattern}", "x") == [root / name for name in expected]
    assert files_of(f"{root}/{{a,c}}{{1..2}}.png", "x") == [
        root / name for name in ("a1.png", "a2.png", "c1.png", "c2.png")
    ]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        matched(f"{root}/z*", "x")


@pytest.mark.parametrize("name", ODD)
def test_packed_data_in_any_folder(tmp_path, name):
    folder = write_images(tmp_path / name, {f"d/{label}": 4 for label in ("blue", "red")})
    (folder / "packed").mkdir()
    rows = [(file, file.parent.name) for file in sorted((folder / "d").rglob("*.png"))]
    for number in range(2):
        with tarfile.open(folder / "packed" / f"{number}.tar", "w") as archive:
            for file, label in rows[number::2]:
                archive.add(file, f"{label}_{file.name}")
                (tmp_path / "cls").write_text(label)
                archive.add(tmp_path / "cls", f"{label}_{file.stem}.cls")
    (tmp_path / "cls").unlink()
    assert files_by_set(folder / "packed") == {"train": [folder / "packed" / f"{number}.tar" for number in range(2)]}
    for pattern in ("*.tar", "{0..1}.tar", "[01].tar"):
        assert len(ImageClassifierData.from_shards(f"{folder}/packed/{pattern}", 4, TFMS).trn_ds) in (6, 7)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = three_colours(tmp_path_factory.mktemp("patterns") / "data", n=3, n_valid=2)
    learn = tiny_learner(image_data(folder))
    learn.save("colours")
    return folder, fastclf.load(folder / "models" / "colours", model=learn.model)


MISSING = ["gone.png", "gone[1].png", "*.png", "gone?.png", "[0-9]*.png", "{a,b}.png", "**"]


@pytest.mark.parametrize("missing", MISSING)
def test_names_in_lists_are_no_patterns(model, missing):
    folder, clf = model
    good = str(folder / "test" / "000.png")
    files = [good, str(folder / "test" / missing), good]
    for given in (files, tuple(files), np.array(files), pd.Series(files), iter(files)):
        found = clf.predict(given, on_bad="nan")
        assert found.files == files
        assert [label is None for label in found.labels] == [False, True, False]
    with pytest.raises(FileNotFoundError, match="no file"):
        clf.predict(files[1]) if missing == "gone.png" else clf.predict(f"{folder}/none/{missing}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that commands can load, and images for it."""
    folder = three_colours(tmp_path_factory.mktemp("typed") / "data", n=3, n_valid=2, n_test=3)
    data = ImageClassifierData.from_paths(folder, bs=8, tfms=fastclf.tfms_from_model(fastclf.efficientnet_lite0, 32))
    fastclf.ConvLearner.pretrained(fastclf.efficientnet_lite0, data, pretrained=False).save("m")
    return folder / "models" / "m", folder / "test"


def typed(capsys, *words):
    code = main(["predict", *map(str, words)])
    printed = capsys.readouterr()
    return code, [line.split("\t")[0] for line in printed.out.splitlines()], printed.err


@pytest.mark.parametrize("missing", MISSING)
def test_names_in_tables_are_no_patterns(saved, tmp_path, capsys, missing):
    model, images = saved
    (tmp_path / "t.csv").write_text("\n".join(["file", "000.png", f'"{missing}"', "002.png"]))
    code, files, _ = typed(capsys, model, images, "--csv", tmp_path / "t.csv")
    assert (code, files) == (1, [str(images / name) for name in ("000.png", missing, "002.png")])


def test_a_table_of_names_as_they_stand_needs_no_list_of_the_folder(saved, tmp_path, capsys, monkeypatch):
    model, images = saved
    listed = []
    find_files = fastclf.data.sources.tables.resolve.find_files
    monkeypatch.setattr(
        "fastclf.data.sources.tables.resolve.find_files", lambda *x, **y: listed.append(x) or find_files(*x, **y)
    )
    for text, lists in (
        ("file\n002.png\n000.png", False),
        ("002.png\n000.png", False),  # whose first line is a row
        (f"n,where\n1,{images}/002.png\n2,000.png", False),
        ("file\n002.png\n000.PNG", True),
    ):
        (tmp_path / "t.csv").write_text(text)
        code, files, _ = typed(capsys, model, images, "--csv", tmp_path / "t.csv")
        assert (code, files) == (0, [str(images / "002.png"), str(images / "000.png")])
        assert bool(listed) == lists


def test_tables_that_name_folders_or_what_is_nowhere(saved, tmp_path, capsys):
    model, images = saved
    (images / "sub").mkdir(exist_ok=True)
    os.link(images / "000.png", images / "sub" / f"{os.getpid()}.png")
    for text, says in (
        ("file\n000.png\nsub\n", "line 3 names the folder 'sub'"),
        ("file\n/no/such.png\n/no/other.png\n", "2 of 2 rows have no file in"),
        (f"file\n{images}/none.png\n", "1 of 1 rows have no file in"),
    ):
        (tmp_path / "t.csv").write_text(text)
        code, files, errors = typed(capsys, model, images, "--csv", tmp_path / "t.csv")
        assert (code, files) == (1, [])
        assert says in errors
        assert "relative name" not in errors


def test_several_images_patterns_and_archives_are_typed(saved, tmp_path, capsys):
    model, images = saved
    code, files, _ = typed(capsys, model, images / "00[01].png", images / "002.png", images / "gone.png")
    assert (code, files) == (1, [str(images / f"{name}.png") for name in ("000", "001", "002", "gone")])
    for number in range(2):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            archive.add(images / "000.png", f"{number}.png")
    code, files, _ = typed(capsys, model, tmp_path / "1.tar", tmp_path / "0.tar")
    assert (code, [file.rpartition("/")[2] for file in files]) == (0, ["1.png", "0.png"])
    code, files, errors = typed(capsys, model, tmp_path / "1.tar", images / "000.png")
    assert (code, files) == (1, [])
    assert "tar archives and folders of images" in errors
