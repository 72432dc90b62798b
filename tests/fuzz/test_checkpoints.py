"""Saved models of any content: either the model that was saved, or an error that names the file, and nothing loaded."""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
import torch
from fuzzing import changed, fuzzed, json_values
from helpers import row_data
from hypothesis import given
from hypothesis import strategies as st

import fastclf
from fastclf import CheckpointError, HeadLearner, WeightsError
from fastclf.checkpoint import _checksum
from fastclf.models.weights import read_weights


class Saved:
    """A learner, the files of a model that it has saved, and what loading other files does to it."""

    def __init__(self, folder, learn, name="m", **fit):
        self.learn, self.name = learn, name
        if fit:
            learn.fit(0.01, 2, state_name=name, **fit)
        else:
            learn.save(name)
        models = folder / "models"
        (weights,) = models.glob(f"{name}.*.safetensors")
        self.json_file, self.weights_file = models / f"{name}.json", weights
        self.json, self.weights = self.json_file.read_bytes(), weights.read_bytes()
        self.info = json.loads(self.json)
        self.saved = self.state()
        with torch.no_grad():
            for p in learn.model.parameters():
                p.add_(1)
        self.other = self.state()

    def state(self):
        return {name: tensor.clone() for name, tensor in self.learn.model.state_dict().items()}

    def put(self, manifest, weights):
        for file in (self.json_file, self.weights_file):
            file.unlink(missing_ok=True)
        if manifest is not None:
            self.json_file.write_bytes(manifest)
        if weights is not None:
            self.weights_file.write_bytes(weights)

    def put_signed(self, info, weights):
        """A manifest whose checksum agrees, so that what comes after it is tried too."""
        info = {key: value for key, value in info.items() if key != "check"}
        info["check"] = _checksum(info)
        self.put(json.dumps(info).encode(), weights)

    def load(self, tally, load=None):
        """Whether the model was loaded; an error names the model, and leaves the learner as it is."""
        self.learn.model.load_state_dict(self.other)
        try:
            (load or self.learn.load)(self.name)
        except (CheckpointError, FileNotFoundError) as error:
            tally.refused(error, f"models/{self.name}")
            assert same(self.state(), self.other)
            return False
        tally.count("loaded")
        return True


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return Saved(folder, HeadLearner(row_data(folder, np.random.default_rng(1)), xtra_fc=[4]))


@fuzzed
@given(st.data())
def test_changed_bytes(model, tally, data):
    where = data.draw(st.sampled_from(["manifest", "weights", "both"]))
    manifest = data.draw(changed(model.json)) if where != "weights" else model.json
    weights = data.draw(changed(model.weights)) if where != "manifest" else model.weights
    model.put(manifest, weights)
    if model.load(tally):
        assert same(model.state(), model.saved)
        assert hashlib.sha256(weights).hexdigest() == model.info["sha256"]


@fuzzed
@given(
    manifest=st.none() | st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode()),
    weights=st.none() | st.binary(max_size=60),
)
def test_any_bytes(model, tally, manifest, weights):
    model.put(manifest, weights)
    assert not model.load(tally)


@pytest.mark.parametrize("text", [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 10_000, b'{"format": 1e999}', b"\xff\xfe"])
def test_deep_and_huge(model, tally, text):
    model.put(text, model.weights)
    assert not model.load(tally)


@fuzzed
@given(
    changes=st.dictionaries(
        st.sampled_from(["labels", "c", "classes", "arch", "head", "transforms", "versions", "precision", "decision"]),
        json_values | st.sampled_from(["one", "several", "numbers", 3, 3.0, True, []]),
        min_size=1,
        max_size=3,
    ),
    without=st.sets(st.sampled_from(["labels", "c", "classes", "arch", "head", "transforms", "versions"]), max_size=2),
)
def test_any_entry_for_who_loads_without_data(model, tally, changes, without):
    info = {key: value for key, value in (model.info | changes).items() if key not in without}
    model.put_signed(info, model.weights)
    loaded = []
    if model.load(tally, lambda name: loaded.append(fastclf.load(model.json_file.with_name(name)))):
        assert loaded[0].predict(np.zeros((2, 10), np.float32)).outputs.shape == (2, 3)


@pytest.mark.filterwarnings("ignore:load. .* was saved with other data")
@fuzzed
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["format", "versions", "weights", "sha256", "classes", "arch", "head", "metrics", "sz", "decision"]
        )
        | st.text(max_size=6),
        json_values | st.sampled_from([["class2", "class0", "class1"], ["class0"], ["class0"] * 3, 1, 1.0, True]),
        min_size=1,
        max_size=3,
    ),
    without=st.sets(st.sampled_from(["format", "weights", "sha256", "classes", "arch", "head", "check"]), max_size=2),
)
def test_any_entry_in_a_manifest_whose_checksum_agrees(model, tally, changes, without):
    info = {key: value for key, value in (model.info | changes).items() if key not in without}
    model.put_signed(info, model.weights)
    if model.load(tally):
        order = info.get("classes", [])
        assert sorted(order) == model.info["classes"]
        place = [order.index(name) for name in model.info["classes"]]
        for name, tensor in model.state().items():
            rows = tensor.shape[:1] == (3,)
            assert torch.equal(tensor, model.saved[name][place] if rows else model.saved[name])


dtypes = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "I32", "U8", "BOOL", "C64", "F8_E4M3", "F4", "x", ""])
counts = st.integers(-1, 70) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30, 1.5, "3"])


@st.composite
def tensors_files(draw, whole):
    """A safetensors file: entries of its header changed or made up, and bytes that may be too few or too many."""
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    for name in draw(st.lists(st.sampled_from([*header, "x", "", "__metadata__", "head.\ud800"]), max_size=3)):
        what = draw(st.sampled_from(["remove", "rename", "shape", "offsets", "dtype", "anything"]))
        entry = header.get(name)
        if not isinstance(entry, dict):
            entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        if what == "remove":
            header.pop(name, None)
        elif what == "rename":
            header[draw(st.text(max_size=3))] = header.pop(name, entry)
        elif what == "anything":
            header[name] = draw(json_values)
        else:
            key = "data_offsets" if what == "offsets" else what
            header[name] = entry | {
                key: draw(dtypes if what == "dtype" else st.lists(counts, max_size=3) | json_values)
            }
    text = json.dumps(header).encode()
    length = draw(st.sampled_from([len(text)] * 6 + [0, len(text) - 1, len(text) + 1, 10**8, 2**63, 2**64 - 1]))
    body = draw(st.sampled_from([body] * 4 + [b"", body[:-1], body + b"\0", body * 2]))
    return length.to_bytes(8, "little") + text + body


@fuzzed
@given(st.data())
def test_any_tensors_in_a_file_whose_checksum_agrees(model, tally, data):
    weights = data.draw(st.one_of(tensors_files(model.weights), changed(model.weights), st.binary(max_size=60)))
    model.put_signed(model.info | {"sha256": hashlib.sha256(weights).hexdigest()}, weights)
    if model.load(tally):
        assert model.state().keys() == model.saved.keys()


@pytest.mark.parametrize("name", ["\ud800", "..", ".", "", "a/b", "/etc/passwd", "\0", "x" * 300])
def test_weights_of_another_name(model, tally, name):
    model.put_signed(model.info | {"weights": name}, model.weights)
    assert not model.load(tally)


@pytest.mark.parametrize("dtype", ["complex64", "int64", "bool", "float8_e4m3fn"])
def test_tensors_of_another_type(model, tally, dtype):
    from safetensors.torch import save

    tensors = {f"head.{name}": tensor.to(getattr(torch, dtype)) for name, tensor in model.saved.items()}
    weights = save(tensors)
    model.put_signed(model.info | {"sha256": hashlib.sha256(weights).hexdigest()}, weights)
    assert not model.load(tally)


@pytest.fixture(scope="module", params=["engine", "torch"])
def fit(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("fit")
    rows = row_data(folder, np.random.default_rng(2), n=16, n_valid=6)
    opt_fn = partial(torch.optim.SGD, momentum=0.9) if request.param == "torch" else None
    return Saved(folder, HeadLearner(rows, xtra_fc=[4], opt_fn=opt_fn), cycle_len=1)


def places(tree, at=()):
    """The paths of all that is inside a tree of dicts and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def with_changes(draw, tree, n):
    tree = json.loads(json.dumps(tree))
    for _ in range(n):
        *path, last = draw(st.sampled_from(sorted(places(tree), key=str)))
        inner = tree
        for key in path:
            inner = inner[key]
        if draw(st.booleans()):
            inner[last] = draw(json_values)
        else:
            del inner[last]
    return tree


@fuzzed
@given(st.data())
def test_any_state_of_a_fit(fit, tally, data):
    state = with_changes(data.draw, fit.info["fit"], data.draw(st.integers(1, 2)))
    fit.put_signed(fit.info | {"fit": state}, fit.weights)
    seen = torch.get_rng_state()

    def go_on(name):
        fit.learn.fit(0.01, 2, cycle_len=1, state_name=name, resume=True)

    if not fit.load(tally, go_on):
        assert torch.equal(torch.get_rng_state(), seen)


@pytest.fixture(scope="module")
def weights_files(tmp_path_factory):
    """A file of weights of each kind, and the state dict in it."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    state = {"conv.weight": torch.arange(12.0).reshape(3, 4), "bn.count": torch.tensor(3)}
    torch.save(state, folder / "w.pth")
    save_file(state, folder / "w.safetensors")
    return {file: file.read_bytes() for file in (folder / "w.pth", folder / "w.safetensors")}, state


@fuzzed
@given(st.data())
def test_files_of_weights(weights_files, tally, data):
    files, state = weights_files
    file = data.draw(st.sampled_from(sorted(files)))
    file.write_bytes(data.draw(changed(files[file]) | st.binary(max_size=50)))
    try:
        found = read_weights(file)
    except WeightsError as error:
        return tally.refused(error, str(file))
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    return tally.count("the same" if found.keys() == state.keys() else "another state dict")
