"""Saved models: killed, full disks, damage, malice, and what is left over."""

import errno
import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import replaced
from helpers import row_data
from processes import lines_of
from torch import nn

from fastclf import CheckpointError, HeadLearner, ImageClassifierData, Learner, WeightsError, checkpoint, files
from fastclf.checkpoint import load_checkpoint, load_tensors, save_checkpoint
from fastclf.files import given_up_sibling, is_left_behind, temporary_sibling
from fastclf.models.weights import read_weights

OLD, NEW = {"w": torch.zeros(700)}, {"w": torch.ones(700), "more": torch.arange(5)}
INFO = {"classes": ["ant", "bee"]}


def names(folder):
    return sorted(p.name for p in folder.iterdir())


KILLED = """
import sys
from pathlib import Path
import torch
from faults import NthCall, in_child, kill, status_of
from pytest import MonkeyPatch
from test_checkpoint import INFO, NEW, OLD, load_checkpoint, save_checkpoint

folder = Path(sys.argv[1])
torch.set_num_threads(1)

n = 0
while True:
    n += 1
    path = folder / str(n) / "model"
    save_checkpoint(path, OLD, INFO)

    def save():
        NthCall(MonkeyPatch(), n, kill)
        save_checkpoint(path, NEW, INFO)

    code = status_of(in_child(save))
    found, _ = load_checkpoint(path)
    whole = any(found.keys() == t.keys() and all(torch.equal(found[k], t[k]) for k in t) for t in (OLD, NEW))
    assert whole, n
    old = torch.equal(found["w"], OLD["w"])
    left = [p.name for p in path.parent.iterdir() if ".tmp-" in p.name]
    save_checkpoint(path, NEW, INFO)
    assert not [p.name for p in path.parent.iterdir() if ".tmp-" in p.name], n
    print(n, code, "old" if old else "new", len(left))
    if code == 0:
        break
"""


def test_killed_at_every_call_of_a_save(tmp_path):
    rows = [line.split() for line in lines_of(KILLED, tmp_path)]
    assert [row[1] for row in rows] == ["137"] * (len(rows) - 1) + ["0"]
    found = [row[2] for row in rows]
    assert found == sorted(found, reverse=True)  # the old model up to one call, the new one from there on
    assert {"old", "new"} == set(found)
    assert sum(int(row[3]) for row in rows) > 5  # temporary files were there to be removed
    assert len(rows) > 15


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_a_call_that_fails_leaves_the_old_model(tmp_path, monkeypatch, call, code):
    path = tmp_path / "model"
    save_checkpoint(path, OLD, INFO)
    before = names(tmp_path)

    def failing_at(at):
        calls = iter(range(1, at + 1))

        def failing(original, *args, **kwargs):
            if next(calls) < at:
                return original(*args, **kwargs)
            if call == "write":
                original(args[0], args[1][:100])
            raise OSError(code, os.strerror(code))

        return failing

    for at in (1, 2):
        replaced(monkeypatch, call, failing_at(at))
        with pytest.raises(CheckpointError) as caught:
            save_checkpoint(path, NEW, INFO)
        monkeypatch.undo()
        if code in (errno.ENOSPC, errno.EDQUOT):
            assert re.search(r"the disk is full: model needs 3,\d\d\d bytes, [\d,]+ are free in ", str(caught.value))
        else:
            assert os.strerror(code) in str(caught.value)
        assert torch.equal(load_checkpoint(path)[0]["w"], OLD["w"])
        assert not [name for name in names(tmp_path) if ".tmp-" in name]
    save_checkpoint(path, NEW, INFO)
    assert len(names(tmp_path)) == len(before)


def test_a_save_that_fails_does_not_end_a_fit(tmp_path, rng, monkeypatch):
    learn = HeadLearner(row_data(tmp_path, rng), ps=0, xtra_fc=[4])

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    replaced(monkeypatch, "write", full)
    with pytest.warns(UserWarning, match="could not be written .*the disk is full") as caught:
        learn.fit(0.01, 4, cycle_len=1, best_save_name="best", cycle_save_name="c", state_name="run")
    assert sorted(str(w.message).split()[1] for w in caught) == ["SaveBest", "SaveCycles", "the"]
    assert len(learn.sched.val_losses) == 4
    assert names(tmp_path / "models") == []
    monkeypatch.undo()
    learn.fit(0.01, 1, best_save_name="best")
    learn.load("best")


def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine = temporary_sibling(tmp_path / "model.json")
    base, machine, pid, start, token = mine.name.rsplit("-", 4)
    dead = tmp_path / f"{base}-{machine}-{child.pid}-{start}-{token}"
    number_given_again = tmp_path / f"{base}-{machine}-{pid}-{int(start) - 1}-{token}"
    elsewhere = tmp_path / f"{base}-{'0' * 16}-{child.pid}-{start}-{token}"
    older_version = tmp_path / f"{base}-00000000-{child.pid}-{token}"
    old = tmp_path / f"other{base}-{'0' * 16}-{child.pid}-{start}-{token}"
    given_up = given_up_sibling(tmp_path / "model.json")
    files = (mine, dead, number_given_again, elsewhere, older_version, old, given_up)
    for file in (*files, tmp_path / "my.tmp-notes"):
        file.write_text("")
    os.utime(old, (time.time() - 100_000,) * 2)
    assert [is_left_behind(f) for f in files] == [False, True, True, False, False, True, True]
    save_checkpoint(tmp_path / "model", OLD, INFO)
    left = {mine.name, elsewhere.name, older_version.name, "my.tmp-notes"}
    assert left == {name for name in names(tmp_path) if ".tmp-" in name}


def test_a_folder_of_another_machine_lives_while_something_is_written_into_it(tmp_path):
    folder = tmp_path / f"k.tmp-{'0' * 16}-1-1-00000000"
    folder.mkdir()
    (folder / "rows").write_text("")
    long_ago = (time.time() - 100_000,) * 2
    os.utime(folder, long_ago)
    assert not is_left_behind(folder)
    os.utime(folder / "rows", long_ago)
    assert is_left_behind(folder)


def test_a_zombie_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    base, machine, _, _, token = temporary_sibling(tmp_path / "m").name.rsplit("-", 4)
    assert fields[0] == "Z"
    assert is_left_behind(tmp_path / f"{base}-{machine}-{child.pid}-{fields[19]}-{token}")
    child.wait()


def test_two_processes_that_save_under_one_name_lose_neither(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save_checkpoint(path, {"w": torch.full((3,), 7.0)}, INFO)
    original = files.publish

    def publish(file, write):
        if file.suffix == ".json":  # another one saves while this one has written its weights alone
            monkeypatch.undo()
            save_checkpoint(path, NEW, INFO)
        original(file, write)

    monkeypatch.setattr(files, "publish", publish)
    save_checkpoint(path, OLD, INFO)
    assert torch.equal(load_checkpoint(path)[0]["w"], OLD["w"])


def test_weights_that_nothing_points_to_are_removed_later(tmp_path):
    path = tmp_path / "model"
    orphan = tmp_path / f"model.{'0' * 12}.safetensors"
    orphan.write_text("")
    save_checkpoint(path, OLD, INFO)
    assert orphan.exists()
    os.utime(orphan, (time.time() - 4000,) * 2)
    save_checkpoint(path, NEW, INFO)
    assert len(names(tmp_path)) == 2


def test_tied_weights(tmp_path):
    tied = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(tied, nn.ReLU(), tied)
    save_checkpoint(tmp_path / "m", model.state_dict(), INFO)
    load_tensors(model, load_checkpoint(tmp_path / "m")[0], "m")


class _MoreState(nn.Linear):
    def get_extra_state(self):
        return {"version": 2}


def test_what_is_no_dense_tensor_is_named(tmp_path):
    sparse = nn.Module()
    sparse.register_buffer("table", torch.eye(3).to_sparse())
    for name, module, what in (("body._extra_state", _MoreState(2, 2), "a dict"), ("body.table", sparse, "a sparse")):
        state = nn.ModuleDict({"body": module}).state_dict()
        with pytest.raises(
            CheckpointError, match=f"{name} in the model's state_dict is {what}.*Register it as a buffer"
        ):
            save_checkpoint(tmp_path / "m", state, INFO)
    assert not names(tmp_path)


# Damage and malice


def written(folder, data=None, **changes):
    """A saved model whose JSON is changed, with a checksum that fits."""
    save_checkpoint(folder / "m", OLD, INFO)
    manifest = folder / "m.json"
    info = json.loads(manifest.read_text()) | changes
    if data is not None:
        (folder / info["weights"]).write_bytes(data)
        info["sha256"] = hashlib.sha256(data).hexdigest()
    info["check"] = checkpoint._checksum(info)
    manifest.write_text(json.dumps(info))
    return folder / "m"


@pytest.mark.parametrize("part", ["json", "safetensors"])
def test_any_flipped_bit_is_noticed(tmp_path, rng, part):
    save_checkpoint(tmp_path / "m", OLD, INFO)
    (file,) = tmp_path.glob(f"m.*{part}") if part == "safetensors" else [tmp_path / "m.json"]
    good = file.read_bytes()
    for _ in range(50):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= 1 << int(rng.integers(8))
        file.write_bytes(bad)
        if part == "json" and _same(bad, good):
            continue  # white space
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / "m")


def _same(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


def _file(header, body=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


TENSOR = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
MALFORMED = {
    "empty": b"",
    "too short": b"\1\2\3",
    "zero header": _file(b""),
    "huge header": _file(b"{}", length=2**62),
    "header beyond the file": _file(b"{}", length=1000),
    "no json": _file(b"\xff" * 20),
    "truncated": _file({"w": TENSOR}, b"\0" * 9),
    "too long": _file({"w": TENSOR}, b"\0" * 20),
    "overlap": _file({"w": TENSOR, "v": TENSOR}),
    "hole": _file({"w": TENSOR, "v": TENSOR | {"data_offsets": [20, 36]}}, b"\0" * 36),
    "offsets backwards": _file({"w": TENSOR | {"data_offsets": [16, 0]}}),
    "shape overflows": _file({"w": TENSOR | {"shape": [2**40, 2**40]}}),
    "negative shape": _file({"w": TENSOR | {"shape": [-4]}}),
    "unknown dtype": _file({"w": TENSOR | {"dtype": "X7"}}),
    "deep": _file(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "a pickle": pickle.dumps({"w": 1}),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_safetensors(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"m.*safetensors is not a safetensors file"):
        load_checkpoint(written(tmp_path, MALFORMED[name]))


CHANGES = {
    "another format": {"format": 99},
    "no text": {"weights": 5},
    "outside": {"weights": "../m.safetensors"},
    "absolute": {"weights": "/etc/passwd"},
    "nul": {"weights": "a\0b"},
    "sha": {"sha256": None},
    "classes": {"classes": "ant"},
    "classes of numbers": {"classes": [1, 2]},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_description_that_makes_no_sense(tmp_path, name):
    path = written(tmp_path)
    info = json.loads((tmp_path / "m.json").read_text()) | CHANGES[name]
    info["check"] = checkpoint._checksum(info)
    (tmp_path / "m.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=r"m\.json"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", [b"", b"[]", b"5", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format": 1}'])
def test_a_description_that_is_none(tmp_path, text):
    path = written(tmp_path)
    (tmp_path / "m.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"m\.json is not a description of a model"):
        load_checkpoint(path)


def _head(folder):
    x, y = np.zeros((6, 2), np.float32), np.arange(6) % 2
    return HeadLearner(ImageClassifierData.from_arrays(folder, (x, y), (x, y), bs=3), xtra_fc=[2])


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".h5", ".pkl", ".safetensors"])
def test_a_pickle_is_never_run(tmp_path, suffix):
    marker = tmp_path / "marker"
    content = pickle.dumps({"w": Evil(marker)})
    pickle.loads(content)
    assert marker.exists()
    marker.unlink()
    file = tmp_path / f"evil{suffix}"
    if suffix in (".pth", ".pt"):
        torch.save({"w": Evil(marker)}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(WeightsError, match=f"evil{suffix}"):
        read_weights(file)
    models = tmp_path / "models"
    models.mkdir()
    learn = _head(tmp_path)
    learn.save("evil")
    (weights,) = models.glob("evil.*.safetensors")
    weights.write_bytes(content)
    (models / f"evil{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError):
        learn.load("evil")
    assert not marker.exists()


def test_heads_of_other_sizes_and_classes_name_what_differs(tmp_path, rng):
    learn = HeadLearner(row_data(tmp_path, rng, c=3), xtra_fc=[4])
    learn.save("three")
    with pytest.raises(CheckpointError, match=r"class0.*class2.*\(3\), the data has .*class3'\] \(4\)"):
        HeadLearner(row_data(tmp_path, rng, c=4), xtra_fc=[4]).load("three")
    with pytest.raises(CheckpointError, match=r"three holds HeadLearner|three holds Head.* does not fit this model"):
        HeadLearner(row_data(tmp_path, rng, c=3), xtra_fc=[4, 4]).load("three")


def test_permuted_classes_of_a_network_that_is_not_ours_are_refused(tmp_path, rng):
    def learner(classes):
        x, y = rng.standard_normal((9, 2)).astype(np.float32), np.arange(9) % 3
        data = ImageClassifierData.from_arrays(tmp_path, (x, y), (x, y), classes=classes, bs=3)
        return Learner.from_model_data(nn.Sequential(nn.Linear(2, 3), nn.LogSoftmax(1)), data)

    learner(["a", "b", "c"]).save("m")
    with pytest.raises(CheckpointError, match="another order"):
        learner(["b", "a", "c"]).load("m")


RELEASED = sorted((Path(__file__).parent / "released").glob("format*.json"))


@pytest.mark.parametrize("manifest", RELEASED, ids=lambda path: path.stem)
def test_models_of_every_released_format_can_be_loaded(manifest, tmp_path):
    known = json.loads((manifest.parent / "predictions" / manifest.name).read_text())
    rows = np.array(known["rows"], np.float32)
    y = np.arange(len(rows)) % 3
    data = ImageClassifierData.from_arrays(tmp_path, (rows, y), (rows, y), classes=["ant", "bee", "cat"], bs=2)
    (tmp_path / "models").symlink_to(manifest.parent)
    learn = HeadLearner(data, xtra_fc=[4], seed=1)
    learn.load(manifest.stem)
    np.testing.assert_allclose(learn.predict(), known["log_probs"], atol=1e-5)
    assert RELEASED
