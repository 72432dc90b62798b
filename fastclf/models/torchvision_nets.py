"""torchvision's classifiers: how each is built, where it is cut, and where its weights are."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastclf.models.body import IMAGENET_STATS, NamedStage, half_depth_split, stages_before_pool
from fastclf.models.whole_body import OWN, Network, Plan, make_plan, stages_of

# GoogLeNet and Inception: auxiliary heads off, and their input as their weights want it, with or without weights.
_OWN_INPUT = {"googlenet", "inception_v3"}


class _HalfNormalize(nn.Module):
    """From ImageNet's mean and deviation to .5 and .5, which GoogLeNet and Inception were trained with."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in IMAGENET_STATS)
        self.register_buffer("scale", (std / 0.5).float().view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5).float().view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.scale + self.shift
        return out


def build(name: str, init: bool = True) -> nn.Module:
    """Build a whole torchvision classifier; without ``init``, weights must be loaded next.

    Raises:
        ValueError: torchvision has no such classifier.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, 0.4)
        raise ValueError(f"arch: torchvision has no classifier {name!r}. Closest: {', '.join(close) or 'none'}.")
    options: dict[str, Any] = {}
    if name in _OWN_INPUT:
        options = {"transform_input": True, "aux_logits": False, "init_weights": init}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def attends(model: nn.Module) -> bool:
    """Return whether a network is a transformer."""
    return any("Attention" in type(module).__name__ for module in model.modules())


def transformer(name: str) -> tuple[Network, Plan]:
    """Find out how a transformer becomes a body: its features are what its classifier gets."""
    size = _weights(name).transforms().crop_size[0]
    network = Network(f"torchvision:{name}", partial(_transformer, name, size), size)
    bare = network.bare()
    classifier = [path for path, module in bare.named_modules() if isinstance(module, nn.Linear)][-1]
    bare.set_submodule(classifier, nn.Identity())
    is_vit = hasattr(bare, "encoder")
    stages = list(_vit_stages(bare) if is_vit else stages_of(bare))
    plan = make_plan(bare, stages, size, OWN, _class_token if is_vit else _run)
    return network, replace(plan, unused=(classifier,))


def _transformer(name: str, size: int) -> nn.Module:
    model = build(name)
    if getattr(model, "image_size", size) == size:
        return model
    from torchvision import models

    larger: nn.Module = models.get_model(name, weights=None, image_size=size)  # what the best weights are for
    return larger


def _vit_stages(model: nn.Module) -> Iterator[NamedStage]:
    for path in ("conv_proj", *(f"encoder.layers.{name}" for name, _ in model.encoder.layers.named_children())):  # type: ignore[union-attr]
        yield path, model.get_submodule(path)
    yield "encoder.ln", model.get_submodule("encoder.ln")


def _run(model: nn.Module, x: Tensor) -> Tensor:
    features: Tensor = model(x)
    return features


def _class_token(model: Any, x: Tensor) -> Tensor:
    """Compute what torchvision's vision transformers do up to their classifier, at any multiple of the patch."""
    rows, columns = (n // model.patch_size for n in x.shape[-2:])
    if (rows * model.patch_size, columns * model.patch_size) != tuple(x.shape[-2:]):
        raise ValueError(f"sides must be multiples of {model.patch_size}")
    encoder = model.encoder
    patches = model.conv_proj(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([model.class_token.expand(len(x), -1, -1), patches], 1)
    tokens = encoder.dropout(tokens + _positions(encoder.pos_embedding, rows, columns))
    features: Tensor = encoder.ln(encoder.layers(tokens))[:, 0]
    return features


def _positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """Resample positions ``[1, 1 + n * n, C]`` of a class token and n x n patches for rows x columns patches."""
    n = math.isqrt(table.shape[1] - 1)
    if (rows, columns) == (n, n):
        return table
    grid = table[:, 1:].transpose(1, 2).reshape(1, -1, n, n)
    grid = functional.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def cut(name: str, model: nn.Module) -> tuple[list[NamedStage], int, int]:
    """Find the stages up to the pool, how many of them form the first group, and the number of feature maps."""
    stages, head = stages_before_pool(model)
    split = _fixed_split(name)
    if split is None:
        split = half_depth_split(stages)
    if name.startswith("densenet"):
        stages.append(("relu", nn.ReLU(inplace=True)))
    if name in _OWN_INPUT:
        stages.insert(0, ("normalize", _HalfNormalize()))
        split += 1
    return stages, split, _channels(head)


def _fixed_split(name: str) -> int | None:
    """Return the split that the lesson prescribes; None for other networks."""
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        return 6
    if name in ("vgg16_bn", "vgg19_bn"):
        return 22
    return 7 if name.startswith("densenet") else None


def _channels(head: nn.Sequential) -> int:
    """Return the inputs of the first layer after the pool, per position of the pool's output."""
    layer = next(m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    pool = next((m for m in head.modules() if isinstance(m, nn.AdaptiveAvgPool2d)), nn.Identity())
    positions: int = pool(torch.zeros(1, 1, 1, 1, dtype=torch.float32)).numel()
    return layer.in_features // positions


def weights_url(name: str) -> str:
    """Find the address of torchvision's default weights."""
    url: str = _weights(name).url
    return url


def _weights(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name).DEFAULT


_AUXILIARY = re.compile(r"(^|\.)(aux1|aux2|AuxLogits)\.")
_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what torchvision's files call differently from its networks, and leave out auxiliary heads."""
    return {_OLD_DENSE.sub(r"\1\2", name): value for name, value in state.items() if not _AUXILIARY.search(name)}
