"""Commands take tar archives, parquet files and Hugging Face data sets as they take folders of images."""

import io
import json
import tarfile

import pytest
import torch
from helpers import COLOURS, TFMS, assert_same_batches, three_colours
from test_cli import model  # noqa: F401  # a fixture

import fastclf
from fastclf.cli import _parser, main
from fastclf.commands.data import read_data
from fastclf.commands.sources import kind_of, options_for, rows_of
from fastclf.data.stream import _folder_of_copies

NAMES = sorted(COLOURS)
KINDS = ("shards", "parquet", "hf")


def samples(folder, part):
    return [(image.read_bytes(), image.parent.name) for image in sorted(folder.glob(f"{part}/*/*.png"))]


def write_shard(file, found):
    with tarfile.open(file, "w") as archive:
        for i, (image, name) in enumerate(found):
            for ending, content in (("png", image), ("species", name.encode())):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_parquet(file, found):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images, names = zip(*found, strict=True)
    parquet.write_table(arrow.table({"image": images, "species": names}), file)


def write(kind, folder, out):
    """Write the sets of a folder; what is passed for all, and for the validation set alone."""
    found = {part: samples(folder, part) for part in ("train", "valid")}
    if kind == "hf":
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(image=datasets.Image(), species=datasets.ClassLabel(names=NAMES))
        sets = {
            {"valid": "validation"}.get(part, part): datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": image, "path": None} for image, _ in those],
                    "species": [NAMES.index(name) for _, name in those],
                },
                features=features,
            )
            for part, those in found.items()
        }
        datasets.DatasetDict(sets).save_to_disk(out)
        return str(out), str(out / "validation")
    out.mkdir()
    suffix, writes = {"shards": ("tar", write_shard), "parquet": ("parquet", write_parquet)}[kind]
    half = len(found["train"]) // 2
    writes(out / f"train-0.{suffix}", found["train"][:half])
    writes(out / f"train-1.{suffix}", found["train"][half:])
    writes(out / f"val-0.{suffix}", found["valid"])
    return str(out), str(out / f"val-{{0..0}}.{suffix}")


@pytest.fixture(scope="module", params=KINDS)
def packed(request, tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("packed")
    folder = three_colours(tmp_path / "files", 4, 3, 0)
    return request.param, folder, *write(request.param, folder, tmp_path / "packed")


def data_of(*typed, tfms=TFMS):
    return read_data(_parser().parse_args(typed), tfms)


@pytest.mark.parametrize("command", ["train", "check", "audit", "curve", "sweep", "compare"])
def test_the_data_are_those_of_the_folder(packed, command):
    _, folder, data, _ = packed
    more = ["resnet34"] if command == "compare" else []
    typed = data_of(command, data, *more, "--label-col", "species", "--bs", "8")
    assert_same_batches(data_of(command, str(folder), *more, "--bs", "8"), typed)


def test_sets_by_options(packed):
    kind, _, data, valid = packed
    columns = ["--label-col", "species", "--bs", "8"]
    if kind == "hf":
        typed = data_of("check", data, "--val", "validation", *columns)
    else:
        pattern = valid.replace("val-{0..0}", "train-{0..1}")
        typed = data_of("check", pattern, *columns)
        assert (len(typed.trn_ds), len(typed.val_ds)) == (10, 2)  # held out
        typed = data_of("check", pattern, "--val", valid, *columns)
    assert (len(typed.trn_ds), len(typed.val_ds)) == (12, 9)


@pytest.mark.parametrize("kind", ["shards", "parquet"])
def test_a_set_that_is_named_leaves_the_others(tmp_path, kind):
    """Only --test, or only --val, beside files whose names tell their set."""
    folder = three_colours(tmp_path / "files", 4, 3, 0)
    write(kind, folder, tmp_path / "packed")
    ending, writes = {"shards": ("tar", write_shard), "parquet": ("parquet", write_parquet)}[kind]
    writes(tmp_path / f"more.{ending}", samples(folder, "train")[::2])
    (tmp_path / "packed" / f"test-0.{ending}").write_bytes((tmp_path / f"more.{ending}").read_bytes())
    columns = ["--label-col", "species", "--bs", "8"]
    for options, sizes in (([], (12, 9, 6)), (["--test"], (12, 9, 6)), (["--val"], (12, 6, 6))):
        words = [word for option in options for word in (option, str(tmp_path / f"more.{ending}"))]
        data = data_of("check", str(tmp_path / "packed"), *words, *columns)
        assert (len(data.trn_ds), len(data.val_ds), len(data.test_ds)) == sizes
        named = {"--test": data.test_ds, "--val": data.val_ds}
        assert all("more" in named[option].fnames[0] for option in options)


def test_predict_reads_no_labels(tmp_path, model, capsys):  # noqa: F811
    """What lies beside the images may be anything, as here a caption where labels could be."""
    folder = three_colours(tmp_path / "files", 1, 1, 0)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, (image, _) in enumerate(samples(folder, "train")):
            for ending, content in (("png", image), ("json", b'{"caption": "x"}')):
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    assert main(["predict", str(model[0]), str(tmp_path / "a.tar"), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_eval_and_predict_say_what_they_say_of_the_folder(packed, model, capsys):  # noqa: F811
    kind, folder, data, valid = packed
    path = str(model[0])

    def shown(*typed):
        assert main([*typed, "--json"]) == 0
        return capsys.readouterr().out

    want = json.loads(shown("eval", path, str(folder / "valid")))
    assert json.loads(shown("eval", path, valid, "--label-col", "species")) == want
    options = ["--image-col", {"shards": "png"}.get(kind, "image")]
    want = [json.loads(line) for line in shown("predict", path, str(folder / "valid")).splitlines()]
    found = [json.loads(line) for line in shown("predict", path, valid, *options).splitlines()]
    assert [{**one, "file": ""} for one in found] == [{**one, "file": ""} for one in want]
    assert found[1]["file"] == {"shards": "val-0.tar/001.png", "parquet": "val-0.parquet:1", "hf": "validation:1"}[kind]
    assert main(["eval", path, data]) == 1
    assert "DATA must be one" in capsys.readouterr().err


def test_a_bad_image_is_named_with_its_place(tmp_path, model, capsys):  # noqa: F811
    folder = three_colours(tmp_path / "files", 2, 2, 0)
    found = samples(folder, "valid")
    write_shard(tmp_path / "a.tar", [*found[:2], (b"\x89PNG broken", "red"), *found[2:]])
    assert main(["predict", str(model[0]), str(tmp_path / "*.tar")]) == 1
    printed = capsys.readouterr()
    assert "a.tar/002.png cannot be decoded" in printed.err
    assert len(printed.out.splitlines()) == 7
    assert main(["eval", str(model[0]), str(tmp_path / "a.tar"), "--label-col", "species"]) == 1
    assert "a.tar/002.png" in capsys.readouterr().err


def test_what_does_not_fit_is_an_error(tmp_path, capsys):
    folder = three_colours(tmp_path / "files", 2, 2, 0)
    (tmp_path / "tar").mkdir()
    write_shard(tmp_path / "tar" / "train-0.tar", samples(folder, "train"))
    write_shard(tmp_path / "tar" / "more.tar", samples(folder, "train"))
    for typed, words in (
        (["check", str(tmp_path / "tar")], "must begin with train, val or test, or none of them, got"),
        (
            ["check", str(folder), "--label-col", "x"],
            "--label-col cannot be used with folders of images",
        ),
        (["check", str(tmp_path / "{0..3}.tar")], "4 of 4 files are not there"),
    ):
        assert main(typed) == 1
        assert words in capsys.readouterr().err


def test_the_archive_beside_the_folders_of_its_images_is_not_the_data(tmp_path):
    folder = three_colours(tmp_path, 2, 2, 0)
    write_shard(folder / "train.tar", samples(folder, "train"))
    assert kind_of(folder) == "folders"
    for own in ("tmp", "models"):
        (folder / "archives" / own).mkdir(parents=True)
    (folder / "train.tar").rename(folder / "archives" / "train.tar")
    assert kind_of(folder / "archives") == "shards"


def test_the_cache_of_archives_is_that_of_their_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("fastclf.activations.cached", lambda data: asked.append(data) or [])
    folder = three_colours(tmp_path / "files", 1, 1, 0)
    write_shard(tmp_path / "a.tar", samples(folder, "train"))
    assert main(["cache", "list", str(tmp_path / "*.tar")]) == 0
    assert asked == [tmp_path]


def test_nothing_is_left_of_what_was_copied(packed, model):  # noqa: F811
    _, folder, _, valid = packed
    arguments = _parser().parse_args(["eval", str(model[0]), valid, "--label-col", "species"])
    clf = fastclf.load(model[0])
    kind = kind_of(arguments.data)
    rows = rows_of(kind, [arguments.data], options_for(kind, arguments), labelled=True)
    made = clf.predict(rows.source, batch_size=2)
    torch.testing.assert_close(
        torch.from_numpy(made.outputs), torch.from_numpy(clf.predict(folder / "valid", batch_size=2).outputs)
    )
    assert not list(_folder_of_copies().iterdir())
