"""Files from anywhere: hostile names, files of weights that carry code, folders that others can write into."""

import csv
import os
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import HALF, three_colours, tiny_learner
from PIL import Image

import fastclf
from fastclf import BadImageError, ImageClassifierData, ImageModelResults, WeightsError, tfms_from_stats
from fastclf.activations.fill import places_for
from fastclf.models.weights import read_weights

TFMS = tfms_from_stats(HALF, 16)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]")
NAMES = [
    "new\nline",
    "tab\there",
    "\x1b[31mred",
    "right\u202eleft",
    os.fsdecode(b"latin-\xe9"),
    "=cmd|'/c calc'!A1",
    "+1",
    "-rf",
    "@sum",
    "'single'",
    '"double", comma',
    "$x^2$",
    "%s %d {0}",
    "<b>bold",
    "a'; DROP TABLE",
    "back\\slash",
    "x" * 200,
]


def save_image(file, rng):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "PNG")


def hostile_folders(path, rng, bad=False):
    """Two classes in train and valid, one image for each hostile name; those of valid may be empty files."""
    for split in ("train", "valid"):
        for label in ("\x1b[2Jcat", "=dog\n"):
            for name in NAMES:
                file = path / split / label / f"{name}.png"
                save_image(file, rng)
                if bad and split == "valid":
                    file.write_bytes(b"")
    return path


def said(capsys, caught=(), error=None):
    """Everything that a user would read: printed lines, warnings and the error."""
    printed = capsys.readouterr()
    return "\n".join([printed.out, printed.err, *(str(w.message) for w in caught), str(error or "")])


def test_hostile_names_are_read_and_only_escapes_of_them_are_printed(tmp_path, rng, capsys):
    path = hostile_folders(tmp_path / "data", rng)
    (path / "train" / "stray\x1b[2J.txt").touch()
    (path / "train" / "loop\x1b").symlink_to(path / "train", target_is_directory=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = ImageClassifierData.from_paths(path, bs=8, tfms=TFMS)
        x, _ = next(data.val_dl.batches(0))
        text = said(capsys, caught) + str(data.check())
    assert x.shape == (8, 3, 16, 16)
    assert len(data.trn_ds) == 2 * len(NAMES)
    assert CONTROL.findall(text) == []


def test_bad_images_with_hostile_names_are_listed_on_one_line_each(tmp_path, rng, capsys):
    path = hostile_folders(tmp_path / "data", rng, bad=True)
    data = ImageClassifierData.from_paths(path, bs=8, tfms=TFMS)
    with pytest.raises(BadImageError) as error:
        data.scan()
    assert CONTROL.findall(said(capsys, error=error.value)) == []
    assert len(error.value.reasons) == 2 * len(NAMES)
    with (path / "tmp" / "bad_images.csv").open(encoding="utf-8", newline="") as file:
        lines = file.read().splitlines()
        rows = list(csv.reader(lines))
    assert len(lines) == len(rows) == 1 + 2 * len(NAMES)
    assert all(len(row) == 2 for row in rows)
    cells = [cell for row in rows for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert CONTROL.findall("".join(cells)) == []


def test_images_with_hostile_names_are_drawn(tmp_path, rng):
    data = ImageClassifierData.from_paths(hostile_folders(tmp_path, rng), bs=8, tfms=TFMS)
    log_probs = np.log(np.where(np.eye(2)[data.val_y], 0.9, 0.1))
    figure = ImageModelResults(data.val_ds, log_probs).plot_most_correct(0)
    texts = [text.get_text() for ax in figure.axes for text in [ax.title]] + [figure.get_suptitle()]
    assert CONTROL.findall("".join(texts)) == []
    figure.canvas.draw()  # a name is never read as a formula


@pytest.mark.parametrize("target", ["../outside.png", "/etc/hostname"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_link_out_of_the_folder_is_not_read(tmp_path, rng, target, whole):
    path = three_colours(tmp_path / "data", 2, 2, 0)
    save_image(tmp_path / "outside.png", rng)
    save_image(tmp_path / "far" / "x.png", rng)
    link = path / "train" / "red" / "link.png"
    link.symlink_to(tmp_path / target if target[0] == "." else target)
    if whole:
        link.unlink()
        (path / "train" / "red" / "folder").symlink_to(tmp_path / "far", target_is_directory=True)
    with pytest.raises(fastclf.DataError, match=r"red/(link\.png|folder) is a link out of"):
        ImageClassifierData.from_paths(path, bs=4, tfms=TFMS)


# Files of weights


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.mknod, (str(self.marker),))


def evil_files(folder):
    """A pickle that runs code, under every name and in every wrapping that weights come in."""
    evil = Evil(folder / "marker")
    for name in ("raw.pth", "raw.pt", "raw.pkl", "raw.h5", "raw.bin", "raw.safetensors", "raw.ckpt"):
        (folder / name).write_bytes(pickle.dumps({"weight": evil}))
    for legacy in (False, True):
        file = folder / f"saved{legacy:d}.pth"
        torch.save({"weight": evil}, file, _use_new_zipfile_serialization=not legacy)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (folder / f"protocol{protocol}.pth").write_bytes(pickle.dumps(evil, protocol))
    return sorted(file for file in folder.iterdir() if file.is_file())


def test_the_trap_works(tmp_path):
    pickle.loads(pickle.dumps(Evil(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


def test_code_in_a_file_of_weights_is_never_run(tmp_path):
    files = evil_files(tmp_path)
    assert len(files) > 12
    for file in files:
        with pytest.raises(WeightsError, match=re.escape(file.name)):
            read_weights(file)
    assert not (tmp_path / "marker").exists()


def test_code_in_a_saved_model_is_never_run(tmp_path):
    learn = tiny_learner(ImageClassifierData.from_paths(three_colours(tmp_path, 4, 2, 0), bs=4, tfms=TFMS))
    learn.save("m")
    (weights,) = (tmp_path / "models").glob("*.safetensors")
    for file in (weights, tmp_path / "models" / "m.json", *(tmp_path / "models" / f"m.{end}" for end in ("h5", "pth"))):
        kept = file.read_bytes() if file.exists() else None
        file.write_bytes(pickle.dumps(Evil(tmp_path / "marker")))
        if kept is None:
            learn.load("m")  # has no eye for it
        else:
            with pytest.raises(fastclf.CheckpointError):
                learn.load("m")
            file.write_bytes(kept)
    np.save(tmp_path / "x.npy", np.array([Evil(tmp_path / "marker")]), allow_pickle=True)
    with pytest.raises(ValueError):
        ImageClassifierData.from_arrays(tmp_path, (tmp_path / "x.npy", [0]), (tmp_path / "x.npy", [0]))
    assert not (tmp_path / "marker").exists()


FORBIDDEN = {
    r"\bpickle\.(load|loads|Unpickler)\b": "unpickles",
    r"\b(cPickle|dill|joblib|shelve|marshal|cloudpickle)\b": "unpickles",
    r"(?<![\w.])(eval|exec|compile|__import__)\(": "runs text",
    r"allow_pickle\s*=\s*True": "unpickles",
    r"\bos\.system\(|shell\s*=\s*True": "runs a shell",
    r"\byaml\.(unsafe_)?load\(": "makes any object",
    r"\b(mktemp|tempnam)\(": "is a name that somebody else can take first",
    r"\bLOAD_TRUNCATED_IMAGES\b": "changes what the whole process decodes",
}


def test_nothing_in_the_package_unpickles_or_runs_text():
    sources = {file: file.read_text() for file in Path(fastclf.__file__).parent.rglob("*.py")}
    assert len(sources) > 40
    found = [
        f"{file.name}: {match[0]} {why}"
        for file, text in sources.items()
        for pattern, why in FORBIDDEN.items()
        for match in re.finditer(pattern, text)
    ]
    for file, text in sources.items():
        loads = re.findall(r"torch\.(?:hub\.load\w*|jit\.load|load)\([^()]*(?:\([^()]*\)[^()]*)*\)", text)
        found += [f"{file.name}: {load}" for load in loads if "weights_only=True" not in load]
        loads = re.findall(r"\bnp\.load\([^()]*(?:\([^()]*\)[^()]*)*\)", text)
        found += [f"{file.name}: {load}" for load in loads if "allow_pickle=False" not in load]
    assert found == []


# Folders that others can write into


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Where activations of the data below tmp_path/data are kept: beside it, else in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return places_for(tmp_path / "data" / "tmp")


def learner(tmp_path):
    return tiny_learner(
        ImageClassifierData.from_paths(three_colours(tmp_path / "data", 6, 3, 0), bs=4, tfms=TFMS), seed=1
    )


def test_activations_are_not_taken_from_a_folder_that_others_can_write_into(tmp_path, places):
    shared, own = places
    learn = learner(tmp_path)
    learn.precompute = True
    files = {file: file.read_bytes() for file in shared.rglob("rows.bin")}
    for file, rows in files.items():
        file.write_bytes(bytes(len(rows)))  # by somebody else, who makes the checksums agree as well
    for mode in (0o777, 0o702):
        shared.chmod(mode)
        with pytest.warns(UserWarning, match="others may write into it"):
            learn.precompute = True
        assert {file.read_bytes() for file in own.rglob("rows.bin")} == {*files.values()}


def test_activations_are_not_taken_from_a_folder_of_somebody_else(tmp_path, places, monkeypatch):
    shared, own = places
    learn = learner(tmp_path)
    shared.mkdir(parents=True)
    real, foreign = os.stat, shared.stat().st_uid + 1

    def stat(file, *args, **kwargs):
        found = real(file, *args, **kwargs)
        if isinstance(file, int) or Path(os.fsdecode(file)) != shared:
            return found
        return os.stat_result([*found[:4], foreign, *found[5:]])

    monkeypatch.setattr(os, "stat", stat)
    with pytest.warns(UserWarning, match=f"belongs to another user .uid {foreign}"):
        learn.precompute = True
    assert list(shared.iterdir()) == []
    assert len(list(own.rglob("rows.bin"))) == 2


def test_the_cache_folder_is_for_its_user_alone(tmp_path, places):
    before = os.umask(0)
    try:
        learner(tmp_path).precompute = True
    finally:
        os.umask(before)
    shared, _ = places
    assert shared.stat().st_mode & 0o777 == 0o700
    assert len(list(shared.rglob("rows.bin"))) == 2
    assert all(file.stat().st_mode & 0o077 == 0 for file in shared.rglob("*"))
