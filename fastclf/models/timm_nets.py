"""timm's networks as bodies, whatever their layout.

What attends or gives tokens is taken as it was trained: its features are those of its own ``forward_head``. A network
that was trained without a classifier, as DINO and MAE are, has the mean of its patches beside its class token: which of
them is better depends on the task (Oquab et al., 2023, "DINOv2", table of frozen features). Convolutional networks are
cut at their pool, and pooled as all others are here.
"""

from __future__ import annotations

import difflib
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.errors import BackendError, WeightsError
from fastclf.models.body import MAX_AVERAGE, Stats
from fastclf.models.weights import SkipInit, check_reachable, load_into, own_weights, read_weights
from fastclf.models.whole_body import OWN, Attention, Network, Plan, Pool, WholeBody, make_plan, stages_of
from fastclf.report import remedy

TOKEN_AND_PATCHES = "class token and mean of patches"


def stats(name: str) -> Stats:
    """Look up mean and deviation in timm's configuration.

    Raises:
        ValueError: timm has no such model.
    """
    config = _config(name)
    return tuple(config.mean), tuple(config.std)


def build_body(name: str, pretrained: bool, file: Path | None) -> WholeBody:
    """Build the body of a timm network; see `fastclf.models.archs.build_body`."""
    config = _config(name)
    network, plan = plan_of(name, config)
    with nullcontext() if file is None and not pretrained else SkipInit():
        model = _pretrained(name, config, network) if pretrained and file is None else network.make()
    if file is not None:
        unused = tuple(f"{path}." for path in plan.unused)
        used = [key for key in model.state_dict() if not key.startswith(unused)]
        load_into(model, used, read_weights(file), str(file))
    return WholeBody(network, model, plan, stats(name))


def plan_of(name: str, config: Any) -> tuple[Network, Plan]:
    """Find out how a network becomes a body, by passes over a copy without weights.

    Raises:
        ValueError: it gives no features, or cannot be cut into two groups.
    """
    size = config.input_size[-1]
    network = Network(f"timm:{name}", partial(_create, name), size)
    bare = network.bare()
    if config.fixed_input_size:
        if hasattr(bare, "dynamic_img_size"):
            network = Network(network.arch, partial(_create, name, dynamic_img_size=True), size)
            bare = network.bare()
        else:  # a table of positions would be stretched over the single position of a much smaller image
            network = Network(network.arch, network.make, size, size // 2)
    pooling, pool = _pool(name, bare, size)
    return network, make_plan(bare, list(stages_of(bare)), size, pooling, pool)


def _pool(name: str, bare: nn.Module, size: int) -> tuple[str, Pool]:
    if not hasattr(bare, "forward_features"):
        raise ValueError(f"arch: timm's {name} cannot be cut: it has no forward_features")
    with torch.no_grad(), Attention() as attention:
        maps = bare.forward_features(torch.zeros(1, 3, size, size, device=next(bare.parameters()).device))  # type: ignore[operator]
        bare.forward_head(maps, pre_logits=True)  # type: ignore[operator]
    if isinstance(maps, Tensor) and maps.ndim == 4 and not attention.found:
        last = str(getattr(bare, "output_fmt", "")).endswith("NHWC")
        return MAX_AVERAGE, partial(_maxima_and_averages, channels_last=last)
    classified = getattr(bare, "num_classes", 0) > 0 or getattr(bare, "attn_pool", None) is not None
    if getattr(bare, "cls_token", None) is not None and not classified:
        return TOKEN_AND_PATCHES, _token_and_patches
    return OWN, _own


def _maxima_and_averages(model: nn.Module, x: Tensor, channels_last: bool) -> Tensor:
    maps = model.forward_features(x)  # type: ignore[operator]
    maps = maps.permute(0, 3, 1, 2) if channels_last else maps
    return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)


def _own(model: nn.Module, x: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(x), pre_logits=True)  # type: ignore[operator]
    return features


def _token_and_patches(model: nn.Module, x: Tensor) -> Tensor:
    tokens = model.forward_features(x)  # type: ignore[operator]
    norm = getattr(model, "fc_norm", nn.Identity())
    return torch.cat([norm(tokens[:, 0]), norm(tokens[:, model.num_prefix_tokens :].mean(1))], 1)


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, **options)
    return model


def _pretrained(name: str, config: Any, network: Network) -> nn.Module:
    try:
        if config.hf_hub_id and not _in_cache(config.hf_hub_id):
            from huggingface_hub import hf_hub_url

            check_reachable(hf_hub_url(config.hf_hub_id, "model.safetensors"))
        return network.make(pretrained=True)
    except Exception as error:  # the hub, its transport, and the readers of files fail in many ways
        place = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        none = remedy("pass pretrained=False", "pass --arch with another network, or --weights FILE")
        advice = f"Get the file from {place} and pass {own_weights()}" if place else f"timm has none for it: {none}"
        raise WeightsError(f"pretrained weights of timm's {name} cannot be had ({error}). {advice}.") from error


def _in_cache(repository: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "snapshots"
    return folder.is_dir()


def _config(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise BackendError("arch: a timm name needs timm, which is not installed. Run: pip install timm") from error
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), 3, 0.4)
        raise ValueError(f"arch: timm has no model {name!r}. Closest: {', '.join(close) or 'none'}.")
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(
            f"arch: {error} timm.list_pretrained({name.split('.')[0]!r} + '.*') lists the tags."
        ) from error
