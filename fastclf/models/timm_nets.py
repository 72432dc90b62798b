"""timm's networks: features through their own ``forward_features``, whatever its layout, parameters in two groups."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.errors import BackendError, WeightsError
from fastclf.models.body import Body, Stage, Stats, half_depth_split, holds_stages
from fastclf.models.weights import SkipInit, load_into, read_weights


class TimmBody(Body):
    """A body around a timm network; its groups are sets of layers, run by the network itself."""

    def __init__(self, name: str, model: nn.Module, plan: Plan, stats: Stats) -> None:
        super().__init__(f"timm:{name}", plan.channels, stats)
        self.model = model
        self.plan = plan

    @property
    def groups(self) -> tuple[nn.Module, nn.Module]:
        """Early and late layers. Parameters that belong to no layer, such as a position embedding, are early."""
        early, late = (
            nn.ModuleDict({path.replace(".", "_"): self.model.get_submodule(path) for path in paths})
            for paths in (self.plan.early, self.plan.late)
        )
        for name, parameter in self.model.named_parameters(recurse=False):
            early.register_parameter(name, parameter)
        return early, late

    def forward(self, x: Tensor) -> Tensor:
        """Compute feature maps ``[B, channels, h, w]`` of pictures ``[B, 3, H, W]``; tokens become ``h = 1``.

        Raises:
            ValueError: the network does not take pictures of this size.
        """
        size, own = tuple(x.shape[-2:]), self.plan.size
        if self.plan.fixed and size != own:
            raise ValueError(f"{self.arch} takes pictures of {own} only, got {size}. Use sz={own[0]}.")
        try:
            features = self.model.forward_features(x)  # type: ignore[operator]
        except AssertionError as error:
            raise ValueError(f"{self.arch} takes no pictures of {size}; {own} is its own size. {error}") from error
        return self.plan.to_maps(features)


@dataclass(frozen=True)
class Plan:
    """How a timm network is cut.

    Attributes:
        early: places of the layers of the first group.
        late: places of the layers of the second group.
        unused: places of layers that its features do not depend on.
        layout: ``'NCHW'``, ``'NHWC'`` or ``'NLC'``: what ``forward_features`` returns.
        prefix: tokens to leave out at the front (class token, registers), in ``'NLC'``.
        channels: number of feature maps.
        size: (height, width) of the pictures that it was made for.
        fixed: whether it takes no other size.
    """

    early: tuple[str, ...]
    late: tuple[str, ...]
    unused: tuple[str, ...]
    layout: str
    prefix: int
    channels: int
    size: tuple[int, int]
    fixed: bool

    def to_maps(self, features: Tensor) -> Tensor:
        """Bring features to ``[B, channels, h, w]``."""
        if self.layout == "NHWC":
            return features.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            return features[:, self.prefix :].transpose(1, 2).unsqueeze(2)
        return features


def stats(name: str) -> Stats:
    """Look up mean and deviation in timm's configuration.

    Raises:
        ValueError: timm has no such model.
    """
    config = _config(name)
    return tuple(config.mean), tuple(config.std)


def build_body(name: str, pretrained: bool, file: Path | None) -> TimmBody:
    """Build the body of a timm network; see `fastclf.models.archs.build_body`."""
    config = _config(name)
    plan = make_plan(name, config)
    with nullcontext() if file is None and not pretrained else SkipInit():
        model = _pretrained(name, config) if pretrained and file is None else _create(name)
    if file is not None:
        unused = tuple(f"{path}." for path in plan.unused)
        used = [key for key in model.state_dict() if not key.startswith(unused)]
        load_into(model, used, read_weights(file), str(file))
    for path in plan.unused:
        model.set_submodule(path, nn.Identity())
    return TimmBody(name, model, plan, stats(name))


def make_plan(name: str, config: Any) -> Plan:
    """Find out how a network can be cut, by one pass over a twin without weights.

    Raises:
        ValueError: it has no feature maps or tokens, or cannot be cut into two groups.
    """
    twin = _twin(name)
    stages = [(path, module) for path, module in _stages(twin) if any(True for _ in module.parameters())]
    order: list[str] = []
    for path, module in stages:
        module.register_forward_pre_hook(lambda _module, _args, path=path: order.append(path))
    features = _features(name, twin, torch.zeros(2, *config.input_size, device=next(twin.parameters()).device))
    unused = _unused(twin, features)
    # Stages that are never called as such, like a shared table of positions, serve the first layers too.
    first_call = {path: order.index(path) if path in order else -1 for path, _ in stages}
    kept = sorted((stage for stage in stages if stage[0] not in unused), key=lambda stage: first_call[stage[0]])
    split = half_depth_split(kept)
    layout, prefix = _layout(twin, features)
    return Plan(
        early=tuple(path for path, _ in kept[:split]),
        late=tuple(path for path, _ in kept[split:]),
        unused=unused,
        layout=layout,
        prefix=prefix,
        channels=features.shape[1 if layout == "NCHW" else -1],
        size=tuple(config.input_size[1:]),
        fixed=bool(config.fixed_input_size),
    )


def _twin(name: str) -> nn.Module:
    with torch.device("meta"):
        twin = _create(name)
    # torch finds the shapes of a recurrent layer by stepping through it, which takes minutes: real numbers are faster.
    if any(isinstance(module, nn.RNNBase) for module in twin.modules()):
        with SkipInit():
            twin = _create(name)
    return twin.eval()


def _stages(model: nn.Module) -> Iterator[Stage]:
    """Walk over the stages of a network."""
    for name, module in model.named_children():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{inner}", stage) for inner, stage in _stages(module))
        elif isinstance(module, nn.Sequential) and holds_stages(name):
            yield from ((f"{name}.{inner}", stage) for inner, stage in module.named_children())
        else:
            yield name, module


def _features(name: str, model: nn.Module, pictures: Tensor) -> Tensor:
    forward = getattr(model, "forward_features", None)
    features = forward(pictures) if forward is not None else None
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        what = "has no forward_features" if forward is None else "gives something else"
        raise ValueError(
            f"arch: timm's {name} cannot be cut: feature maps or tokens, one tensor, are needed; it {what}"
        )
    return features


def _unused(model: nn.Module, features: Tensor) -> tuple[str, ...]:
    """List the topmost layers whose parameters the features do not depend on: the classifier and its kin."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    used = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    unused: list[str] = []
    for path, module in model.named_modules():
        inside = f"{path}."
        if not path or inside.startswith(tuple(f"{outer}." for outer in unused)):
            continue
        if any(True for _ in module.parameters()) and not any(name.startswith(inside) for name in used):
            unused.append(path)
    return tuple(unused)


def _layout(model: nn.Module, features: Tensor) -> tuple[str, int]:
    if features.ndim == 4:
        return ("NHWC" if str(getattr(model, "output_fmt", "")).endswith("NHWC") else "NCHW"), 0
    # VOLO is the one network that puts a class token in front without saying so.
    prefix = getattr(model, "num_prefix_tokens", 1 if type(model).__name__ == "VOLO" else 0)
    return "NLC", prefix


def _create(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name)
    return model


def _pretrained(name: str, config: Any) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub, its transport, and the readers of files fail in many ways
        place = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
        advice = f"Get the file from {place} and pass weights='<file>', or" if place else "timm has none for it:"
        raise WeightsError(
            f"pretrained weights of timm's {name} cannot be had ({error}). {advice} pass pretrained=False."
        ) from error
    return model


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
