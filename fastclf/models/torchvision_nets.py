"""torchvision's classifiers: how each is built, where it is cut, and where its weights are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.models.body import IMAGENET_STATS, Stage, half_depth_split, stages_before_pool

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


def cut(name: str, model: nn.Module) -> tuple[list[Stage], int, int]:
    """Find the stages up to the pool, how many of them form the first group, and the number of feature maps.

    Raises:
        ValueError: the network has no pool.
    """
    stages, head = stages_before_pool(model)
    if not len(head):
        raise ValueError(f"arch: torchvision's {name} has no pool over feature maps, so it cannot be cut into a body")
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
    """Splits that the lesson prescribes."""
    if name.startswith(("resnet", "resnext", "wide_resnet")):
        return 6
    if name in ("vgg16_bn", "vgg19_bn"):
        return 22
    return 7 if name.startswith("densenet") else None


def _channels(head: nn.Sequential) -> int:
    """Inputs of the first layer after the pool, per position of the pool's output."""
    layer = next(m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv2d))
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels
    pool = next((m for m in head.modules() if isinstance(m, nn.AdaptiveAvgPool2d)), nn.Identity())
    positions: int = pool(torch.zeros(1, 1, 1, 1)).numel()
    return layer.in_features // positions


def weights_url(name: str) -> str:
    """Find the address of torchvision's default weights."""
    from torchvision import models

    url: str = models.get_model_weights(name).DEFAULT.url
    return url


_OLD_DENSE = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what torchvision's files call differently from its networks, and leave out auxiliary heads."""
    return {
        _OLD_DENSE.sub(r"\1\2", name): value
        for name, value in state.items()
        if not name.startswith(("aux1.", "aux2.", "AuxLogits."))
    }
