import sys

import pytest
import torch

from fastclf.errors import BackendError, WeightsError
from fastclf.models.archs import build_body, stats_of

timm = pytest.importorskip("timm")

# Maps, maps with channels last, tokens with 0, 1 and 4 prefix tokens, layers out of order, a recurrent layer.
SMALL = {
    "test_resnet": 96,
    "test_vit": 64,
    "test_vit3": 96,
    "test_convnext": 64,
    "test_mambaout": 64,
    "mobilenetv3_small_050": 288,
    "swin_s3_tiny_224": 768,
    "twins_svt_small": 512,
    "volo_d1_224": 384,
    "pit_ti_224": 256,
    "eva02_tiny_patch14_224": 192,
    "deit_tiny_distilled_patch16_224": 192,
    "sequencer2d_s": 384,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("name", "channels"), SMALL.items())
def test_features_equal_timms_and_groups_hold_every_parameter_once(name, channels):
    body = build_body(name, pretrained=False)
    config = timm.get_pretrained_cfg(name)
    size = config.input_size[1] if config.fixed_input_size else 64
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        maps, theirs = body(x), body.model.forward_features(x)
    assert body.channels == maps.shape[1] == channels
    if theirs.ndim == 3:
        prefix = theirs.shape[1] - maps.shape[3]
        assert torch.equal(maps[0, :, 0].T, theirs[0, prefix:])
    else:
        assert torch.equal(maps, theirs if theirs.shape[1] == channels else theirs.permute(0, 3, 1, 2))
    parts = [list(map(id, group.parameters())) for group in body.groups]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(map(id, body.parameters()))
    assert (body.mean, body.std) == (tuple(config.mean), tuple(config.std)) == stats_of(name)


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("volo_d1_224", 1), ("twins_svt_small", 0)])
def test_class_tokens_are_left_out(name, prefix):
    body = build_body(name, pretrained=False)
    assert body.plan.prefix == prefix


def test_every_parameter_of_a_body_gets_a_gradient():
    body = build_body("mobilenetv3_small_050", pretrained=False)  # its last convolution comes after the pool
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


def test_groups_follow_a_replaced_parameter():
    body = build_body("test_vit", pretrained=False)
    body.model.cls_token = torch.nn.Parameter(torch.zeros_like(body.model.cls_token))
    assert any(p is body.model.cls_token for p in body.groups[0].parameters())


def test_a_local_file_gives_its_weights_whatever_its_classifier(tmp_path):
    model = timm.create_model("test_vit", num_classes=7)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    body = build_body("test_vit", weights=tmp_path / "vit.pth")
    for name, value in body.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    torch.save({"patch_embed.proj.bias": torch.ones(2)}, tmp_path / "vit.pth")
    with pytest.raises(WeightsError, match=r"vit\.pth does not fit the architecture"):
        build_body("test_vit", weights=tmp_path / "vit.pth")


def test_networks_that_cannot_be_cut_or_are_unknown_are_refused():
    with pytest.raises(ValueError, match="coat_tiny cannot be cut"):
        build_body("coat_tiny", pretrained=False)
    with pytest.raises(ValueError, match=r"no model 'resnet43'\. Closest: resnet"):
        build_body("resnet43")
    with pytest.raises(ValueError, match=r"Invalid pretrained tag \(foo\)"):
        stats_of("resnet18.foo")


def test_sizes_that_a_network_does_not_take_are_refused():
    body = build_body("test_vit", pretrained=False)
    with pytest.raises(ValueError, match=r"timm:test_vit takes pictures of \(160, 160\) only, got \(96, 64\)"):
        body(torch.zeros(1, 3, 96, 64))
    body = build_body("halonet_h1", pretrained=False)
    with pytest.raises(ValueError, match=r"takes no pictures of \(65, 65\); \(256, 256\) is its own size"):
        body(torch.zeros(1, 3, 65, 65))


def test_weights_that_cannot_be_had_name_their_place(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(WeightsError, match=r"no network.*huggingface\.co/timm/test_vit.*pretrained=False"):
        build_body("test_vit")
    with pytest.raises(WeightsError, match=r"No pretrained weights exist for halonet_h1.*timm has none for it: pass"):
        build_body("halonet_h1")


def test_pretrained_weights_come_through_timm(monkeypatch):
    whole = timm.create_model("test_vit")
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
