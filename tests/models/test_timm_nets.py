import sys
import time
from urllib.error import URLError

import numpy as np
import pytest
import torch
from networks import assert_partition, randomise

from fastclf import ConvLearner, ImageClassifierData, tfms_from_model
from fastclf.activations.fingerprint import describe, sha256_of
from fastclf.errors import BackendError, WeightsError
from fastclf.models import timm_nets
from fastclf.models.archs import build_body, stats_of
from fastclf.models.body import MAX_AVERAGE
from fastclf.models.timm_nets import TOKEN_AND_PATCHES
from fastclf.models.weights import SkipInit
from fastclf.models.whole_body import OWN
from fastclf.report import command_line

timm = pytest.importorskip("timm")

# One of each family, the smallest. Where the network takes no other size, it is its own.
OWN_POOL = {
    "test_vit": 96,  # class token
    "test_vit4": 96,  # mean of patches beside registers
    "test_vit_relpos": 160,
    "deit_tiny_distilled_patch16_224": 96,  # the mean of both tokens
    "vit_pe_core_tiny_patch16_384": 96,  # attention pool
    "vit_tiny_r_s16_p8_224": 96,  # on convolutions
    "eva02_tiny_patch14_336": 98,
    "swin_tiny_patch4_window7_224": 224,
    "swinv2_cr_tiny_ns_224": 224,
    "maxvit_pico_rw_256": 256,
    "xcit_nano_12_p16_224": 112,
    "cait_xxs24_224": 224,
    "pvt_v2_b0": 64,
    "pit_ti_distilled_224": 224,
    "tnt_s_legacy_patch16_224": 224,
    "mvitv2_tiny": 224,
    "hiera_tiny_224": 224,
    "levit_128s": 224,
    "convit_tiny": 224,
    "coat_lite_tiny": 224,
    "crossvit_tiny_240": 240,
    "efficientformer_l1": 224,
    "mobilevit_xxs": 64,
    "caformer_s18": 64,
    "mixer_s32_224": 224,  # tokens without attention
}
SELF_SUPERVISED = {
    "vit_small_patch14_dinov2": 70,
    "vit_small_patch14_reg4_dinov2": 70,
    "vit_small_patch16_dinov3": 64,
    "vit_small_patch16_224.dino": 64,
    "eva02_tiny_patch14_224.mim_in22k": 70,
}
# Maps, maps with channels last, a layer after the pool, a recurrent layer, the context of a whole image.
CONVOLUTIONAL = {
    "test_resnet": 96,
    "test_convnext": 64,
    "test_mambaout": 64,
    "mobilenetv3_small_050": 288,
    "sequencer2d_s": 384,
    "gcresnet33ts": 1280,
}


def built(name):
    """A body with random weights, and timm's own network with the same, as timm makes it by default."""
    with SkipInit():
        body, model = build_body(name, pretrained=False), timm.create_model(name).eval()
    randomise(body)
    model.load_state_dict(body.model.state_dict(), strict=False)
    return body, model


@pytest.mark.parametrize(("name", "size"), OWN_POOL.items())
def test_transformers_give_what_their_own_classifier_gets(name, size):
    body, model = built(name)
    own = torch.randn(1, 3, body.network.size, body.network.size)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(own), pre_logits=True)
        found = body(own)
        other = body(torch.randn(2, 3, size, size))
    assert body.pooling == OWN
    assert body.n_features == found.shape[1]
    assert other.shape == (2, body.n_features)
    assert found.std() > 0
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert_partition(body)
    config = timm.get_pretrained_cfg(name)
    assert (body.mean, body.std) == (tuple(config.mean), tuple(config.std)) == stats_of(name)


@pytest.mark.parametrize(("name", "size"), SELF_SUPERVISED.items())
def test_networks_without_a_classifier_give_class_token_and_patches(name, size):
    with SkipInit():
        body = build_body(name, pretrained=False)
        model = timm.create_model(name, img_size=size).eval()
    randomise(body)
    body_at_size = {key: value for key, value in body.model.state_dict().items() if key != "pos_embed"}
    model.load_state_dict(body_at_size, strict=False)
    if model.pos_embed is not None:
        positions = timm.layers.resample_abs_pos_embed(
            body.model.pos_embed,
            [size // model.patch_embed.patch_size[0]] * 2,
            num_prefix_tokens=0 if model.no_embed_class else model.num_prefix_tokens,
        )
        model.pos_embed.data = positions.detach()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        tokens = model.forward_features(x)
        found = body(x)
    prefix = tokens.shape[1] - (size // model.patch_embed.patch_size[0]) ** 2
    mean = model.fc_norm(tokens[:, prefix:].mean(1))
    assert body.pooling == TOKEN_AND_PATCHES
    assert torch.allclose(found, torch.cat([model.fc_norm(tokens[:, 0]), mean], 1), rtol=1e-4, atol=1e-5)
    assert_partition(body)


@pytest.mark.parametrize(("name", "channels"), CONVOLUTIONAL.items())
def test_convolutional_networks_give_maxima_and_averages(name, channels):
    body, _ = built(name)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        found, maps = body(x), body.model.forward_features(x)
    maps = maps if maps.shape[1] == channels else maps.permute(0, 3, 1, 2)
    assert body.pooling == MAX_AVERAGE
    assert body.n_features == found.shape[1] == 2 * channels
    assert torch.equal(found, torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))
    assert_partition(body)


def test_every_parameter_of_a_body_gets_a_gradient():
    for name in ("mobilenetv3_small_050", "swin_tiny_patch4_window7_224"):  # layers after the pool, a head with a pool
        body = build_body(name, pretrained=False)
        body(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None for p in body.parameters())


def test_early_layers_run_before_late_ones():
    body = build_body("twins_svt_small", pretrained=False)  # it registers all position layers after all blocks
    early, late = body.groups
    order = []
    for group, mark in ((early, "early"), (late, "late")):
        for module in group.children():
            module.register_forward_pre_hook(lambda _m, _a, mark=mark: order.append(mark))
    with torch.no_grad():
        body(torch.randn(1, 3, 224, 224))
    assert order == sorted(order)


def test_groups_are_patches_and_the_first_half_and_the_second_half():
    body = build_body("vit_tiny_patch16_224", pretrained=False)
    early, late = ([name for name, _ in group.named_children()] for group in body.groups)
    assert early == ["patch_embed", *(f"blocks_{i}" for i in range(6))]
    assert late == [*(f"blocks_{i}" for i in range(6, 12)), "norm"]
    assert {name for name, _ in body.groups[0].named_parameters(recurse=False)} == {"cls_token", "pos_embed"}


def test_groups_follow_a_replaced_parameter():
    body = build_body("test_vit", pretrained=False)
    body.model.cls_token = torch.nn.Parameter(torch.zeros_like(body.model.cls_token))
    assert any(p is body.model.cls_token for p in body.groups[0].parameters())


# Sizes


def test_positions_are_interpolated_and_stay_as_they_were_trained():
    body, _ = built("test_vit")
    before = body.state_sha256()
    with torch.no_grad():
        for size in (32, 96, 224):
            x = torch.randn(1, 3, size, size)
            theirs = timm.create_model("test_vit", img_size=size).eval()
            state = body.model.state_dict()
            state["pos_embed"] = timm.layers.resample_abs_pos_embed(
                body.model.pos_embed, [size // 16] * 2, num_prefix_tokens=1
            )
            theirs.load_state_dict(state, strict=False)
            expected = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
            assert torch.allclose(body(x), expected, rtol=1e-5, atol=1e-5)
    assert body.state_sha256() == before


@pytest.mark.parametrize(
    ("name", "size", "advice"),
    [
        ("test_vit", 100, "Use sz=96 or sz=112 or sz=160; it was trained at 160"),
        ("vit_small_patch14_dinov2", 225, "Use sz=224 or sz=238 or sz=518; it was trained at 518"),
        ("pit_ti_224", 192, "Use sz=224; it was trained at 224"),
        ("mixer_s32_224", 16, "Use sz=224; it was trained at 224"),
    ],
)
def test_sizes_that_a_network_does_not_take_are_refused_with_the_nearest(name, size, advice):
    with SkipInit():
        body = build_body(name, pretrained=False)
    message = rf"timm:{name} takes no images of {size} x {size}\. {advice}"
    with pytest.raises(ValueError, match=message):
        body.check_size(size)
    with pytest.raises(ValueError, match=message):
        body(torch.zeros(1, 3, size, size))


def learner(path, sz, **kwargs):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 40, 40, 3)).astype(np.uint8), np.arange(12) % 2
    tfms = tfms_from_model("test_vit", sz)
    data = ImageClassifierData.from_arrays(path, (x, y), (x[:4], y[:4]), bs=4, tfms=tfms)
    return data, lambda: ConvLearner.pretrained("test_vit", data, pretrained=False, **kwargs)


def test_a_learner_goes_on_with_images_of_another_size(tmp_path):
    data, make = learner(tmp_path, 32, precompute=True)
    learn = make()
    assert learn.data.trn_dl.ds is not data.trn_ds
    learn.fit(0.01, 1)
    learn.set_data(learner(tmp_path, 48)[0])
    learn.precompute = False
    learn.unfreeze()
    learn.fit([1e-4, 1e-3, 1e-2], 1)
    with pytest.raises(ValueError, match=r"takes no images of 50 x 50\. Use sz=48 or sz=64"):
        learn.set_data(learner(tmp_path, 50)[0])
    with pytest.raises(ValueError, match=r"takes no images of 50 x 50"):
        learner(tmp_path, 50)[1]()


def test_lines_about_a_frozen_body_stand_before_the_table(tmp_path, monkeypatch, capsys):
    from fastclf.models.runtime import frozen

    monkeypatch.setattr(frozen, "installed", dict)
    learner(tmp_path, 32)[1]().fit(0.01, 1)
    lines = capsys.readouterr().out.splitlines()
    said = next(i for i, line in enumerate(lines) if line.startswith("timm:test_vit runs in torch"))
    assert said < next(i for i, line in enumerate(lines) if line.startswith("epoch"))


def test_cached_features_of_another_pool_are_not_taken(tmp_path):
    _, make = learner(tmp_path, 32)
    body = make().model.body
    keys = set()
    for pooling in (OWN, MAX_AVERAGE):
        body.pooling = pooling
        keys.add(sha256_of(describe(body, {}, dtype="float16", precision="float32")))
    assert len(keys) == 2


# Weights


def test_a_local_file_gives_its_weights_whatever_its_classifier(tmp_path):
    model = timm.create_model("test_vit", num_classes=7)
    torch.save({"module." + name: value for name, value in model.state_dict().items()}, tmp_path / "vit.pth")
    body = build_body("test_vit", weights=tmp_path / "vit.pth")
    for name, value in body.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    torch.save({"patch_embed.proj.bias": torch.ones(2)}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit\.pth does not fit the architecture"):
        build_body("test_vit", weights=tmp_path / "vit.pth")


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match=r"no model 'resnet43'\. Closest: resnet"):
        build_body("resnet43")
    with pytest.raises(ValueError, match=r"Invalid pretrained tag \(foo\)"):
        stats_of("resnet18.foo")


def test_without_a_network_weights_are_asked_for_once(monkeypatch, tmp_path):
    asked = []

    def refuse(url):
        asked.append(url)
        raise URLError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm_nets, "check_reachable", refuse)
    start = time.monotonic()
    with pytest.raises(WeightsError, match=r"no network.*huggingface\.co/timm/test_vit.*weights=.*pretrained=False"):
        build_body("test_vit")
    assert len(asked) == 1
    assert asked[0].startswith("https://huggingface.co/timm/test_vit")
    assert time.monotonic() - start < 30  # far less than the hub's own retries, however busy the machine
    with pytest.raises(WeightsError, match=r"No pretrained weights exist for halonet_h1.*timm has none for it: pass"):
        build_body("halonet_h1")
    with command_line():
        for name, option in (("test_vit", "--weights FILE"), ("halonet_h1", "--arch")):
            with pytest.raises(WeightsError, match=option) as raised:
                build_body(name)
            assert "=" not in str(raised.value).rpartition(").")[2]


def test_pretrained_weights_come_through_timm(monkeypatch):
    whole = timm.create_model("test_vit")
    monkeypatch.setattr(timm_nets, "check_reachable", lambda url: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_a, **_k: whole.state_dict())
    body = build_body("test_vit")
    assert torch.equal(body.model.blocks[3].mlp.fc2.weight, whole.blocks[3].mlp.fc2.weight)


def test_without_timm_the_install_line_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(BackendError, match="pip install timm"):
        build_body("resnet18")


def test_timms_settings_stay_as_they_are():
    from timm.layers import config

    names = ("is_no_jit", "is_exportable", "is_scriptable", "use_fused_attn")
    before = [getattr(config, name)() for name in names]
    build_body("test_vit", pretrained=False)
    assert [getattr(config, name)() for name in names] == before
