"""The body without gradients: every runtime gives torch's features, and none gives stale ones."""

import copy
import gc
import json
import os
import pickle
import re
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from helpers import tiny_body
from networks import FAMILIES, NAMED, randomise
from torch import nn

from fastclf import autotune
from fastclf.models.archs import build_body, efficientnet_lite0
from fastclf.models.body import HALF_STATS, SequentialBody
from fastclf.models.head import Head
from fastclf.models.net import Net
from fastclf.models.runtime import frozen
from fastclf.models.runtime.checksum import checksum
from fastclf.models.runtime.engines import ENGINES, installed
from fastclf.models.runtime.frozen import TOLERANCE, difference
from fastclf.models.runtime.operations import UnknownOperationError
from fastclf.models.runtime.trace import trace
from fastclf.models.summary import summary_table
from fastclf.models.weights import SkipInit

pytest.importorskip("onnxruntime")

# One of each way of attending: tokens, two tokens, patches beside the class token, rotated positions, windows, ...
SIZES = {"inception_v3": 80, "alexnet": 64, "maxvit_t": 224}
TRANSFORMERS = {
    "test_vit": 64,
    "deit_tiny_distilled_patch16_224": 64,
    "eva02_tiny_patch14_224": 56,
    "vit_pe_core_tiny_patch16_384": 64,
    "swin_tiny_patch4_window7_224": 64,
    "swinv2_tiny_window8_256": 64,
    "xcit_nano_12_p16_224": 112,
    "pvt_v2_b0": 64,
    "pit_ti_224": 224,
    "hiera_tiny_224": 224,
    "mobilevit_xxs": 64,
    "torchvision:vit_b_32": 64,
    "torchvision:swin_t": 64,
}


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def ours(monkeypatch):
    """ONNX Runtime is taken whatever the clock says."""
    monkeypatch.setattr(frozen, "installed", lambda: {"onnxruntime": "1"})
    monkeypatch.setattr(autotune, "measure", lambda ways: {name: name == "torch" for name in ways})


@pytest.fixture
def net():
    body = tiny_body()
    randomise(body)
    return Net(body, Head(12, 3)).eval()


def images(*shape):
    return torch.randn(*(shape or (5, 3, 17, 16)))


def in_torch(net, x):
    with torch.no_grad():
        return net.body(x)


def features(net, x):
    with torch.inference_mode():
        return net.features(x)


def runs_elsewhere(net):
    return net._frozen._run is not None


# The same features


def randomised(arch, size=64):
    """Random weights, and statistics near those that belong to them: gates that saturate would let differences grow."""
    with SkipInit():
        body = build_body(arch, pretrained=False)
    randomise(body)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.5
            module.train()
    with torch.no_grad():
        body(images(3, 3, size, size))
    return body.eval()


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        (efficientnet_lite0, 49),
        *((f"torchvision:{name}", SIZES.get(name, 49)) for name in [*(a.name for a in NAMED), *FAMILIES]),
        *TRANSFORMERS.items(),
    ],
    ids=str,
)
def test_features_agree_with_torch(arch, size):
    network = randomised(arch, size)
    x = images(3, 3, size, size)
    model, expected = trace(network, x)
    run = ENGINES["onnxruntime"](model, 1)
    assert expected.std() > 1e-3 * expected.abs().mean()
    assert difference(torch.cat([run(x[:1]), run(x[1:])]), expected) < TOLERANCE
    x = images(3, 3, size, size)
    with torch.no_grad():
        assert difference(run(x), network(x)) < TOLERANCE


RUN_ONCE = """
import torch
from fastclf.models.runtime.engines import ENGINES
from fastclf.models.runtime.trace import trace
model, _ = trace(torch.relu, torch.ones(3, 3, 8, 8))
print(float(ENGINES["onnxruntime"](model, 1)(torch.ones(1, 3, 8, 8)).sum()))
"""


def test_no_telemetry_is_gathered(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    ended = subprocess.run(
        [sys.executable, "-c", RUN_ONCE],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "192.0\n"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("runtime", installed())
def test_every_runtime_takes_what_is_recorded(runtime):
    network = randomised(efficientnet_lite0)
    x = images(3, 3, 64, 50)
    model, expected = trace(network, x)
    run = ENGINES[runtime](model, 1)
    assert difference(torch.cat([run(x[:1]), run(x[1:])]), expected) < TOLERANCE


def test_what_is_not_known_is_named():
    unfolded = nn.Unfold(2)
    with pytest.raises(UnknownOperationError, match=r"aten::im2col cannot be written as ONNX"):
        trace(unfolded, images(1, 3, 8, 8))


def test_batches_and_images_of_any_size(net, ours):
    for shape in ((5, 3, 17, 16), (1, 3, 17, 16), (64, 3, 17, 16), (3, 3, 33, 20), (2, 3, 17, 16)):
        x = images(*shape)
        assert difference(features(net, x), in_torch(net, x)) < TOLERANCE
        assert runs_elsewhere(net)
    assert features(net, images()[:0]).shape == (0, 12)


def test_images_in_any_memory_order(net, ours):
    x = images()
    for same in (x.to(memory_format=torch.channels_last), x.flip(3).flip(3), torch.cat([x, x])[::2], x.transpose(2, 3)):
        assert difference(features(net, same), in_torch(net, same)) < TOLERANCE


def test_same_features_bit_for_bit_again_and_after_copies(net, ours):
    x = images()
    first = features(net, x)
    for again in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(features(again, x), first)
        assert runs_elsewhere(again)


# Never stale


def optimizer_step(net):
    net.requires_grad_(True)
    net.features(images()).square().sum().backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1)
    torch.optim.SGD(net.parameters(), 0.1).step()
    net.requires_grad_(False)


def load_other(net):
    other = tiny_body()
    randomise(other)
    net.body.load_state_dict(
        {name: value.flip(0) if value.ndim else value for name, value in other.state_dict().items()}
    )


def through_numpy(net):
    net.body.first.conv1.weight.detach().numpy()[0] += 0.5


def under_no_grad(net):
    with torch.no_grad():
        net.body.second.conv2.weight.mul_(1.5)


def replaced_body(net):
    net.body = tiny_body(seed=8)


def another_activation(net):
    net.body.second.relu2 = nn.Sigmoid().eval()


def batch_statistics(net):
    net.body.train()
    net.features(3 * images() + 1)
    net.eval()


EDITS = {
    "optimizer": optimizer_step,
    "load": load_other,
    "numpy": through_numpy,
    "no_grad": under_no_grad,
    "body": replaced_body,
    "layer": another_activation,
    "training": batch_statistics,
    "data": lambda net: net.body.first.conv1.weight.data.mul_(-1),
    "swap": lambda net: net.body.first.conv1.weight.data.copy_(net.body.first.conv1.weight.data.roll(1, 0)),
    "mirror": lambda net: net.body.first.conv1.weight.data.copy_(net.body.first.conv1.weight.data.flip(3)),
    "parameter": lambda net: setattr(net.body.first.conv1, "weight", nn.Parameter(torch.randn(4, 3, 3, 3))),
    "mean": lambda net: net.body.first.bn1.running_mean.add_(0.5),
    "eps": lambda net: setattr(net.body.first.bn1, "eps", 1.0),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("frozen_body", [True, False])
def test_a_changed_body_gives_its_new_features(net, ours, edit, frozen_body):
    net.body.requires_grad_(not frozen_body)
    x = images()
    before = features(net, x)
    assert runs_elsewhere(net)
    edit(net)
    after = features(net, x)
    assert runs_elsewhere(net)
    assert difference(after, in_torch(net, x)) < TOLERANCE
    assert difference(after, before) > 10 * TOLERANCE


def test_what_has_not_changed_is_not_built_again(net, ours, monkeypatch):
    x = images()
    before = features(net, x)
    monkeypatch.setattr(frozen, "trace", None)
    with torch.no_grad():
        net.head.layers[-1].weight += 1
        net.body.load_state_dict({name: value.clone() for name, value in net.body.state_dict().items()})
    assert torch.equal(features(net, x), before)


@pytest.mark.parametrize("shape", [(7,), (64, 3, 7, 7), (30_001,), (128, 128, 1, 1)])
def test_checksum_sees_every_bit_and_every_place(rng, shape):
    layer = nn.Module()
    layer.weight = nn.Parameter(torch.from_numpy(rng.standard_normal(shape)).float())
    values = layer.weight.data
    known = checksum([layer])
    flat = values.view(-1)
    bits = flat.view(torch.int32)
    for place in rng.choice(len(bits), 5):
        for bit in (0, 11, 31):
            flip = np.array(1 << bit, np.uint32).view(np.int32).item()
            bits[place] ^= flip
            assert checksum([layer]) != known
            bits[place] ^= flip
    assert checksum([layer]) == known
    for edit in (lambda v: -v, lambda v: v.flip(0), lambda v: v.roll(1, 0), lambda v: v.roll(3), lambda v: 0 * v):
        kept = values.clone()
        values.copy_(edit(kept))
        assert checksum([layer]) != known
        values.copy_(kept)
    i, j = rng.choice(len(flat), 2, replace=False)
    flat[[i, j]] = flat[[j, i]]
    assert checksum([layer]) != known


def test_what_runs_a_body_does_not_depend_on_what_it_was_before(net, ours, monkeypatch):
    x = images()
    before = features(net, x)
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "TOLERANCE", -1)
        net.body.first.conv1.weight.data.mul_(2)
        features(net, x)
        assert not runs_elsewhere(net)
    net.body.first.conv1.weight.data.div_(2)
    assert torch.equal(features(net, x), before)
    assert runs_elsewhere(net)


def test_whatever_image_comes_first_the_same_are_compared(net, ours, monkeypatch):
    probes = []

    def noted(eager, probe):
        probes.append(probe)
        return trace(eager, probe)

    monkeypatch.setattr(frozen, "trace", noted)
    for first in (images(), 100 * images(1, 3, 17, 16)):
        features(Net(net.body, net.head).eval(), first)
    assert torch.equal(*probes)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 2), (64, 96)])
def test_synthetic_images(size):
    found = frozen._synthetic_images(3, (3, *size))
    assert found.shape == (3, 3, *size)
    assert float(found.mean()) == pytest.approx(0, abs=1e-5)
    assert float(found.std()) == pytest.approx(1, abs=1e-5)


def test_training_lets_the_runtime_go(net, ours):
    features(net, images())
    held = weakref.ref(net._frozen._run)
    net.features(images()).sum().backward()
    gc.collect()
    assert held() is None


# What torch must do itself


def test_gradients_flow_where_they_are_asked_for(net, ours):
    x = images()
    features(net, x)
    net.requires_grad_(False)
    assert not net.features(x).requires_grad
    assert runs_elsewhere(net)
    x.requires_grad_()
    net.features(x).sum().backward()
    assert x.grad.abs().sum() > 0
    net.body.second.requires_grad_(True)
    net.features(x.detach()).sum().backward()
    assert net.body.second.conv2.weight.grad.abs().sum() > 0


def test_layers_in_training_mode_and_hooks_are_respected(net, ours):
    x = images()
    features(net, x)
    table = summary_table(net, x)
    assert table.count("Conv2d") == 2
    before = net.body.first.bn1.running_mean.clone()
    net.body.train()
    features(net, x)
    assert not torch.equal(net.body.first.bn1.running_mean, before)


def test_other_numbers_than_float32_stay_with_torch(net, ours):
    x = images()
    with torch.autocast("cpu", torch.bfloat16):
        assert features(net, x).dtype == in_torch(net, x).dtype
    assert not runs_elsewhere(net)
    assert features(net.double(), x.double()).dtype == torch.float64


# Which runtime


def test_without_a_runtime_torch_runs_it_and_says_so_once(net, monkeypatch, capsys):
    monkeypatch.setattr(frozen, "installed", dict)
    x = images()
    net.requires_grad_(False)
    for size in (x, images(2, 3, 20, 20)):
        assert torch.equal(features(net, size), in_torch(net, size))
    assert capsys.readouterr().out.splitlines() == [
        "test:tiny runs in torch, with the same results, but slower: onnxruntime is not installed "
        "(pip install onnxruntime)"
    ]


def unknown(net, monkeypatch):
    net.body.second.relu2 = nn.Softplus().eval()
    return r"cannot run it: aten::softplus cannot be written as ONNX"


def refusing(net, monkeypatch):
    monkeypatch.setattr(frozen, "ENGINES", dict.fromkeys(ENGINES, refuse))
    return "does not take it: out of order"


def refuse(_model, _threads):
    raise RuntimeError("out\nof order")


def wrong(net, monkeypatch):
    def build(model, threads):
        run = ENGINES["onnxruntime"](model, threads)
        return lambda x: run(x) * (1 + 3e-4)

    monkeypatch.setattr(frozen, "ENGINES", dict.fromkeys(ENGINES, build))
    return r"computes other features \(by 3\.\de-04\)"


def one_batch_size(net, monkeypatch):
    net.body.second.relu2 = Ranked().eval()
    return "it|features"


class Ranked(nn.Module):
    """Adds to each image a constant per place in the batch that was recorded."""

    def forward(self, x):
        return x + torch.arange(len(x)).view(-1, 1, 1, 1).float()


@pytest.mark.parametrize("fault", [unknown, refusing, wrong, one_batch_size])
def test_what_does_not_agree_is_not_used_and_logged_once(net, ours, monkeypatch, capsys, fault):
    message = fault(net, monkeypatch)
    x = images()
    features(net, x)
    assert capsys.readouterr().out == ""  # of a body that trains nothing is said
    net = Net(net.body.requires_grad_(False), net.head).eval()
    for _ in range(2):
        assert torch.equal(features(net, x), in_torch(net, x))
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(set(said)) <= len(ENGINES)
    assert all(line.startswith("test:tiny runs in torch, with the same results, but slower: ") for line in said)
    assert re.search(message, said[0])


def test_the_fastest_is_chosen_and_remembered(net, monkeypatch, tmp_path):
    x = images()
    asked = []

    def measure(ways):
        asked.append(set(ways))
        return {name: float(name != "torch") for name in ways}

    monkeypatch.setattr(autotune, "measure", measure)
    for again in (net, copy.deepcopy(net)):
        features(again, x)
        assert not runs_elsewhere(again)
    assert asked == [{"torch", *installed()}]
    (file,) = (tmp_path / "cache" / "fastclf" / "runtimes").iterdir()
    known = json.loads(file.read_text())
    assert (known["arch"], known["pictures"], known["choice"]) == ("test:tiny", [3, 17, 16], "torch")
    features(net, images(2, 3, 30, 30))
    assert len(asked) == 2


def test_measuring_takes_the_shortest_of_interleaved_runs():
    order = []
    found = autotune.measure({"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 3
    assert found.keys() == {"a", "b"}


SITUATION = {"arch": "x", "pictures": [3, 8, 8]}
WAYS = {"torch": lambda: None, "onnxruntime": lambda: None}


@pytest.fixture
def torch_is_faster(monkeypatch):
    monkeypatch.setattr(autotune, "measure", lambda ways: {name: float(name != "torch") for name in ways})


def test_a_damaged_memory_is_made_anew(torch_is_faster):
    for text in ("", "{", "[]", '{"choice": 3}', "\0\xff"):
        autotune._file(SITUATION).parent.mkdir(parents=True, exist_ok=True)
        autotune._file(SITUATION).write_text(text)
        assert autotune.cached(SITUATION) is None
        assert autotune.autotune(SITUATION, WAYS, "onnxruntime") == "torch"
        assert autotune.cached(SITUATION) == "torch"
    assert [file.suffix for file in autotune._file(SITUATION).parent.iterdir()] == [".json"]


def test_where_nothing_can_be_remembered_the_choice_does_not_depend_on_the_clock(
    torch_is_faster, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert autotune.autotune(SITUATION, WAYS, "onnxruntime") == "onnxruntime"
    assert autotune.cached(SITUATION) is None


def test_who_chose_first_has_chosen_for_all(monkeypatch):
    def measure_while_another_process_does(ways):
        file = autotune._file(SITUATION)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"choice": "onnxruntime"}))
        return {name: float(name != "torch") for name in ways}

    monkeypatch.setattr(autotune, "measure", measure_while_another_process_does)
    assert autotune.autotune(SITUATION, WAYS, "torch") == "onnxruntime"


def test_large_tensors_go_through_columns(ours):
    body = SequentialBody(
        "test:wide", [("a", nn.Conv2d(3, 128, 1)), ("b", nn.Conv2d(128, 256, 1))], 1, 256, HALF_STATS
    ).eval()
    net, x = Net(body, nn.Identity()).eval(), images(2, 3, 4, 4)
    before = features(net, x)
    body.second.b.weight.data[[0, 1]] = body.second.b.weight.data[[1, 0]]
    after = features(net, x)
    assert difference(after, in_torch(net, x)) < TOLERANCE
    assert difference(after, before) > 10 * TOLERANCE
