"""Architectures by name: which there are, their image statistics, and how a body is built from one.

Importing this module imports neither torchvision nor timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from torch import nn

from fastclf.models import lite, torchvision_nets
from fastclf.models.body import (
    HALF_STATS,
    IMAGENET_STATS,
    Body,
    NamedStage,
    SequentialBody,
    Stats,
    half_depth_split,
    stages_before_pool,
)
from fastclf.models.joined_body import JoinedBody
from fastclf.models.weights import SkipInit, fetch, lite_weights, load_into, read_weights
from fastclf.models.whole_body import WholeBody
from fastclf.paths import given_path
from fastclf.settings import float32_networks

if TYPE_CHECKING:
    from fastclf.data.image_transforms import AugTfms, Transforms
    from fastclf.data.transforms.spec import CropType

SOURCES = ("torchvision", "timm", "fastclf")
T = TypeVar("T")
_TORCHVISION_STATS = {"efficientnet_v2_l": HALF_STATS}
# What the lesson calls them -> what torchvision calls them.
_ALIASES = {
    "vgg16": "vgg16_bn",
    "vgg19": "vgg19_bn",
    "resnext50": "resnext50_32x4d",
    "resnext101": "resnext101_32x8d",
    "wide_resnet50": "wide_resnet50_2",
    "wide_resnet101": "wide_resnet101_2",
}


@dataclass(frozen=True)
class Arch:
    """A network by name.

    Attributes:
        source: who defines it: ``'torchvision'``, ``'timm'`` or ``'fastclf'``.
        name: what it is called there.
    """

    source: str
    name: str

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"Arch: source must be one of {', '.join(SOURCES)}, got {self.source!r}")
        if self.source == "torchvision":
            object.__setattr__(self, "name", _ALIASES.get(self.name, self.name))
        if self.source == "fastclf" and self.name not in lite.SCALES:
            raise ValueError(f"Arch: fastclf defines {', '.join(lite.SCALES)} only, got {self.name!r}")

    def __str__(self) -> str:
        return f"{self.source}:{self.name}"


Architecture: TypeAlias = Arch | str | Callable[..., Any]
"""What a caller may call an architecture, see `as_arch`."""

resnet18 = Arch("torchvision", "resnet18")
resnet34 = Arch("torchvision", "resnet34")
resnet50 = Arch("torchvision", "resnet50")
resnet101 = Arch("torchvision", "resnet101")
resnet152 = Arch("torchvision", "resnet152")
resnext50 = Arch("torchvision", "resnext50")
resnext101 = Arch("torchvision", "resnext101")
wide_resnet50 = Arch("torchvision", "wide_resnet50")
wide_resnet101 = Arch("torchvision", "wide_resnet101")
vgg16 = Arch("torchvision", "vgg16")
vgg19 = Arch("torchvision", "vgg19")
densenet121 = Arch("torchvision", "densenet121")
densenet161 = Arch("torchvision", "densenet161")
densenet169 = Arch("torchvision", "densenet169")
densenet201 = Arch("torchvision", "densenet201")
efficientnet_lite0 = Arch("fastclf", "efficientnet_lite0")
efficientnet_lite1 = Arch("fastclf", "efficientnet_lite1")
efficientnet_lite2 = Arch("fastclf", "efficientnet_lite2")


def as_arch(arch: Architecture) -> Arch:
    """Turn what a caller may call an architecture into an `Arch`.

    Args:
        arch: an `Arch`; a timm name; ``'source:name'``; or a builder function of torchvision or timm.
            torchvision's ``vgg16`` and ``vgg19`` mean the ones with BatchNorm.

    Raises:
        TypeError: none of these.
        ValueError: an unknown source.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        source, colon, name = arch.partition(":")
        return Arch(source, name) if colon and "/" not in name else Arch("timm", arch)
    module, name = getattr(arch, "__module__", ""), getattr(arch, "__name__", "")
    if callable(arch) and name:
        for source in ("torchvision", "timm"):
            if module.startswith(f"{source}.models"):
                return Arch(source, name)
    raise TypeError(
        f"as_arch: arch must be an Arch such as resnet34, a timm name, 'source:name' or a builder of torchvision or "
        f"timm, got {arch!r}. For a model of your own use Learner.from_model_data."
    )


def as_list(archs: Architecture | Sequence[T]) -> list[Architecture | T]:
    """Return architectures as a list: of one, or of several."""
    return [archs] if isinstance(archs, str) or not isinstance(archs, Iterable) else list(archs)


def stats_of(arch: Architecture) -> Stats:
    """Look up mean and deviation, per channel in 0..1, of the images that an architecture was trained on."""
    arch = as_arch(arch)
    if arch.source == "fastclf":
        return HALF_STATS
    if arch.source == "torchvision":
        return _TORCHVISION_STATS.get(arch.name, IMAGENET_STATS)
    from fastclf.models import timm_nets

    return timm_nets.stats(arch.name)


def tfms_from_model(
    arch: Architecture,
    sz: int,
    aug_tfms: AugTfms = None,
    max_zoom: float | None = None,
    pad: int = 0,
    crop_type: CropType | None = None,
) -> tuple[Transforms, Transforms]:
    """Make the training and the validation transforms of an architecture: its mean and deviation, size ``sz``.

    Args:
        arch: see `as_arch`.
        sz: side of the square that the model sees, in pixels.
        aug_tfms: augmentations of training, e.g. ``transforms_side_on``, or your own, see `tfms_from_stats`.
        max_zoom: with probability 0.75 the training image is enlarged by U(1, max_zoom).
        pad: mirrored border of training images, in pixels.
        crop_type: how training takes the square (``CropType.RANDOM`` by default).

    Returns:
        (training, validation), see `tfms_from_stats`.

    Raises:
        ValueError: an argument is out of its range, or the architecture is unknown.
    """
    from fastclf.data.image_transforms import tfms_from_stats

    return tfms_from_stats(stats_of(arch), sz, aug_tfms, max_zoom, pad, crop_type)


def build_bodies(
    archs: Architecture | Sequence[Architecture], pretrained: bool = True, weights: str | Path | None = None
) -> Body:
    """Build one body, see `build_body`, or several side by side, see `JoinedBody`.

    Raises:
        ValueError: there is none, or one is there twice; or ``weights`` are given for several.
    """
    known = [as_arch(arch) for arch in as_list(archs)]
    if not known or len({*known}) < len(known):
        raise ValueError(f"arch must be one architecture or several different ones, got {[*map(str, known)]}")
    if len(known) == 1:
        return build_body(known[0], pretrained, weights)
    if weights is not None:
        raise ValueError("weights: a file holds the weights of one body; leave it out where there are several bodies")
    return JoinedBody([build_body(arch, pretrained) for arch in known])


@float32_networks()
def build_body(arch: Architecture, pretrained: bool = True, weights: str | Path | None = None) -> Body:
    """Build the body of an architecture: the network without its classifier, in two layer groups.

    A convolutional network is cut at its pool; its features are the maximum and the average of every feature map. A
    transformer's features are what its own classifier gets: see `fastclf.models.timm_nets`.

    Args:
        arch: see `as_arch`.
        pretrained: whether to load its published weights; downloaded once where they are not installed.
        weights: a ``.pth``, ``.pt`` (state dict) or ``.safetensors`` file to load instead; its classifier is ignored.

    Returns:
        The body, on the CPU, in evaluation mode.

    Raises:
        ValueError: the architecture is unknown, or cannot be cut into two groups.
        WeightsError: weights cannot be had or do not fit.
        BackendError: a package that the architecture or its weights come from is not installed.
    """
    arch = as_arch(arch)
    file = None if weights is None else given_path(weights)
    if arch.source == "timm":
        from fastclf.models import timm_nets

        return timm_nets.build_body(arch.name, pretrained, file).eval()
    return _build(arch, pretrained, file).eval()


def _build(arch: Arch, pretrained: bool, file: Path | None) -> Body:
    random = file is None and not pretrained
    if random:
        model = _network(arch, init=True)
    else:
        with SkipInit():
            model = _network(arch, init=False)
    if torchvision_nets.attends(model):
        network, plan = torchvision_nets.transformer(arch.name)
        with nullcontext() if random else SkipInit():
            model = network.make()
        if not random:
            _load(arch, model, [name for name in model.state_dict() if not name.startswith(plan.unused)], file)
        return WholeBody(network, model, plan, stats_of(arch))
    stages, split, channels = _cut(arch, model)
    if not random:
        kept = tuple(f"{path}." for path, _ in stages)
        _load(arch, model, [name for name in model.state_dict() if name.startswith(kept)], file)
    named = [(path.replace(".", "_"), stage) for path, stage in stages]
    return SequentialBody(str(arch), named, split, channels, stats_of(arch))


def _network(arch: Arch, init: bool) -> nn.Module:
    return lite.build(arch.name) if arch.source == "fastclf" else torchvision_nets.build(arch.name, init)


def _cut(arch: Arch, model: nn.Module) -> tuple[list[NamedStage], int, int]:
    if arch.source == "torchvision":
        return torchvision_nets.cut(arch.name, model)
    stages, _ = stages_before_pool(model)
    return stages, half_depth_split(stages), lite.CHANNELS


def _load(arch: Arch, model: nn.Module, used: list[str], file: Path | None) -> None:
    if file is not None:
        state, origin = read_weights(file), str(file)
    elif arch.source == "fastclf":
        state, origin = lite_weights(arch.name, model.state_dict())
    else:
        origin = torchvision_nets.weights_url(arch.name)
        state = fetch(origin)
    if arch.source == "torchvision":
        state = torchvision_nets.current_names(state)
    load_into(model, used, state, origin)
