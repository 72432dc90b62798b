"""The pretrained part of a network: images in, pooled features out, parameters in two layer groups."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastclf.models.head import AdaptiveConcatPool2d

Stats = tuple[tuple[float, float, float], tuple[float, float, float]]
NamedStage = tuple[str, nn.Module]
IMAGENET_STATS: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF_STATS: Stats = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

# How children of a network that hold its stages are called, or end; and children that come with or after its pool.
_CONTAINERS = ("blocks", "body", "features", "layers", "levels", "network", "stages", "transformers", "trunk_output")
_HEAD = {"avgpool", "dropout", "flatten", "fc", "classifier", "head"}


MAX_AVERAGE = "max+average pool"
"""How a convolutional network's feature maps are pooled: as `AdaptiveConcatPool2d` does."""


class Body(nn.Module):
    """A network without its classifier, in two layer groups.

    ``body(x)`` maps images ``[B, 3, H, W] float`` to features ``[B, n_features]``.

    Attributes:
        arch: which network this is, as ``'source:name'``.
        n_features: features of an image.
        pooling: how they come from feature maps or tokens; part of the key of cached features.
        mean: of the images that it expects, per channel, in 0..1.
        std: deviation of those images, per channel.
    """

    def __init__(self, arch: str, n_features: int, pooling: str, stats: Stats) -> None:
        super().__init__()
        self.arch = arch
        self.n_features = n_features
        self.pooling = pooling
        self.mean, self.std = stats

    @property
    def groups(self) -> tuple[nn.Module, nn.Module]:
        """The early and the late layers; together they hold every parameter exactly once."""
        raise NotImplementedError

    @property
    def parts(self) -> list[Body]:
        """The bodies that it is made of: itself, or several side by side."""
        return [self]

    @property
    def stages(self) -> list[nn.Module]:
        """The layers between image and pool, in the order in which they first run."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``[B, n_features]`` of images ``[B, 3, H, W]``."""
        raise NotImplementedError

    def check_size(self, sz: int) -> None:
        """Raise ``ValueError`` where the network does not take images of ``sz x sz``; names the nearest sizes."""

    def state_sha256(self) -> str:
        """Hash every parameter and buffer: name, dtype, shape and bytes, in order."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
            raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(raw.numpy().data)
        return digest.hexdigest()


class SequentialBody(Body):
    """A convolutional network whose stages run one after the other; its maps' maxima and averages are the features."""

    def __init__(self, arch: str, stages: Sequence[NamedStage], split: int, channels: int, stats: Stats) -> None:
        super().__init__(arch, 2 * channels, MAX_AVERAGE, stats)
        self.first = nn.Sequential(OrderedDict(stages[:split]))
        self.second = nn.Sequential(OrderedDict(stages[split:]))
        self.pool = AdaptiveConcatPool2d()

    @property
    def groups(self) -> tuple[nn.Module, nn.Module]:
        """``first`` and ``second``."""
        return self.first, self.second

    @property
    def stages(self) -> list[nn.Module]:
        """Those of ``first``, then of ``second``."""
        return [*self.first, *self.second]

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``[B, 2 * channels]`` of images ``[B, 3, H, W]``."""
        out: Tensor = self.pool(self.second(self.first(x)))
        return out


def holds_stages(name: str) -> bool:
    """Tell by its name whether a child of a network is a container of stages, not a stage itself."""
    return name.endswith(_CONTAINERS)


def stages_before_pool(model: nn.Module) -> tuple[list[NamedStage], nn.Sequential]:
    """List a network's stages in the order in which they run, by their place in it, and what follows them."""
    stages: list[NamedStage] = []
    head = []
    for name, module in model.named_children():
        if name in _HEAD:
            head.append(module)
        elif holds_stages(name):
            stages += [(f"{name}.{inner}", stage) for inner, stage in module.named_children()]
        else:
            stages.append((name, module))
    return stages, nn.Sequential(*head)


def half_depth_split(stages: Sequence[NamedStage]) -> int:
    """Find the stage boundary nearest to half the depth.

    Depth is counted in layers that hold parameters of their own (convolutions, linear layers, norms). Of two
    boundaries equally near, the earlier one is taken. Both sides hold parameters.

    Args:
        stages: named stages in the order in which they run.

    Returns:
        Number of stages before the boundary.

    Raises:
        ValueError: fewer than two stages hold parameters.
    """
    depths = [sum(any(True for _ in m.parameters(recurse=False)) for m in stage.modules()) for _, stage in stages]
    total = sum(depths)
    ends = [sum(depths[:i]) for i in range(len(depths) + 1)]
    inner = [i for i, end in enumerate(ends) if 0 < end < total]
    if not inner:
        names = ", ".join(name for name, _ in stages)
        raise ValueError(
            f"the layers cannot be cut into two groups: stages with parameters must be two or more ({names})"
        )
    return min(inner, key=lambda i: (abs(2 * ends[i] - total), i))
