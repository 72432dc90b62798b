"""Bodies whose network runs itself: features are what its own pooling gives, its layers form two groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastclf.models.body import Body, NamedStage, Stats, half_depth_split, holds_stages
from fastclf.models.weights import SkipInit
from fastclf.settings import float32_networks

OWN = "own pool"
"""Features are what the network's classifier gets: its class token, mean of tokens or attention pool, normalised."""

Pool = Callable[[nn.Module, Tensor], Tensor]
_REACH = 64  # pixels around a size that a network does not take, in which it may take others
_SHAPES = (AssertionError, IndexError, RuntimeError, ValueError)  # what networks raise at images of a wrong size


@dataclass(frozen=True)
class Network:
    """A network that can be built without weights.

    Attributes:
        arch: ``'source:name'``.
        make: builds it.
        size: side of the images that it was trained on.
        smallest: side of the smallest images that it takes, as far as that is known beforehand.
    """

    arch: str
    make: Callable[..., nn.Module]
    size: int
    smallest: int = 1

    @float32_networks()
    def bare(self) -> nn.Module:
        """Build it without storage, in evaluation mode, to find out about its layers and shapes."""
        with torch.device("meta"):
            model = self.make()
        # torch finds the shapes of a recurrent layer by stepping through it, which takes minutes: numbers are faster.
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            with SkipInit():
                model = self.make()
        return model.eval()


@dataclass(frozen=True)
class Plan:
    """How a network becomes a body.

    Attributes:
        early: places of the layers of the first group.
        late: places of the layers of the second group.
        unused: places of layers that its features do not depend on: the classifier and its kin.
        pooling: what ``pool`` does, in words.
        pool: the network, and images ``[B, 3, H, W]``, to features ``[B, n_features]``.
        n_features: features of an image.
    """

    early: tuple[str, ...]
    late: tuple[str, ...]
    unused: tuple[str, ...]
    pooling: str
    pool: Pool
    n_features: int


class WholeBody(Body):
    """A body around a whole network without its classifier."""

    def __init__(self, network: Network, model: nn.Module, plan: Plan, stats: Stats) -> None:
        super().__init__(network.arch, plan.n_features, plan.pooling, stats)
        for path in plan.unused:
            model.set_submodule(path, nn.Identity())
        self.model, self.network, self.plan = model, network, plan

    @property
    def groups(self) -> tuple[nn.Module, nn.Module]:
        """Early and late layers. Parameters that belong to no layer, such as a position embedding, are early."""
        early, late = (
            nn.ModuleDict({path.replace(".", "_"): self.model.get_submodule(path) for path in paths})
            for paths in (self.plan.early, self.plan.late)
        )
        layers = tuple(f"{path}." for path in (*self.plan.early, *self.plan.late))
        for name, parameter in self.model.named_parameters():
            if not name.startswith(layers):
                early.register_parameter(name.replace(".", "_"), parameter)
        return early, late

    @property
    def stages(self) -> list[nn.Module]:
        """Early, then late layers."""
        return [self.model.get_submodule(path) for path in (*self.plan.early, *self.plan.late)]

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``[B, n_features]`` of images ``[B, 3, H, W]``.

        Raises:
            ValueError: the network does not take images of this size.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.network.smallest:
            self.check_size(min(height, width))
        try:
            return self.plan.pool(self.model, x)
        except _SHAPES:
            self.check_size(height)
            self.check_size(width)
            raise

    def check_size(self, sz: int) -> None:
        """Raise ``ValueError`` where the network does not take images of ``sz x sz``; names the nearest sizes."""
        if sz == self.network.size:
            return
        bare = self.network.bare()
        if self._takes(bare, sz):
            return
        sizes = {self.network.size}
        for around in (range(sz - 1, max(sz - _REACH, 0), -1), range(sz + 1, sz + _REACH)):
            sizes.update(islice((n for n in around if self._takes(bare, n)), 1))
        advice = " or ".join(f"sz={n}" for n in sorted(sizes))
        raise ValueError(
            f"{self.arch} takes no images of {sz} x {sz}. Use {advice}; it was trained at {self.network.size}."
        )

    def _takes(self, bare: nn.Module, sz: int) -> bool:
        if sz < self.network.smallest:
            return False
        device = next(bare.parameters()).device
        try:
            with torch.no_grad():
                self.plan.pool(bare, torch.zeros(1, 3, sz, sz, dtype=torch.float32, device=device))
        except _SHAPES:
            return False
        return True


def make_plan(bare: nn.Module, stages: Sequence[NamedStage], size: int, pooling: str, pool: Pool) -> Plan:
    """Find out which layers of a network its features depend on, and in which order they run.

    Args:
        bare: the network, without weights; its hooks stay on it.
        stages: its layers, by their place in it.
        size: side of the images that it was trained on.
        pooling: what ``pool`` does, in words.
        pool: the network, and images ``[B, 3, H, W]``, to features ``[B, n_features]``.

    Raises:
        ValueError: it cannot be cut into two groups.
    """
    stages = [(path, module) for path, module in stages if any(True for _ in module.parameters())]
    order: list[str] = []
    for path, module in bare.named_modules():
        module.register_forward_pre_hook(lambda _module, _args, path=path: order.append(path))
    features = pool(bare, torch.zeros(2, 3, size, size, dtype=torch.float32, device=next(bare.parameters()).device))
    unused = _unused(bare, features, set(order))
    # Stages that are never called as such, like a shared table of positions, serve the first layers too.
    first_call = {path: order.index(path) if path in order else -1 for path, _ in stages}
    gone = tuple(f"{path}." for path in unused)
    kept = [stage for stage in stages if not f"{stage[0]}.".startswith(gone)]
    kept.sort(key=lambda stage: first_call[stage[0]])
    split = half_depth_split(kept)
    return Plan(
        early=tuple(path for path, _ in kept[:split]),
        late=tuple(path for path, _ in kept[split:]),
        unused=unused,
        pooling=pooling,
        pool=pool,
        n_features=features.shape[1],
    )


def stages_of(model: nn.Module) -> Iterator[NamedStage]:
    """Walk over the stages of a network."""
    for name, module in model.named_children():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            yield from ((f"{name}.{inner}", stage) for inner, stage in stages_of(module))
        elif isinstance(module, nn.Sequential) and holds_stages(name):
            yield from ((f"{name}.{inner}", stage) for inner, stage in module.named_children())
        else:
            yield name, module


def _unused(model: nn.Module, features: Tensor, called: set[str]) -> tuple[str, ...]:
    """List the topmost layers that were not called and have no part in the features: the classifier and its kin."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
    used = [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]
    unused: list[str] = []
    for path, module in model.named_modules():
        inside = f"{path}."
        if not path or inside.startswith(tuple(f"{outer}." for outer in unused)):
            continue
        has_parameters = any(True for _ in module.parameters())
        if has_parameters and path not in called and not any(name.startswith(inside) for name in used):
            unused.append(path)
    return tuple(unused)


class Attention(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices, while active, whether positions attend to each other.

    That is a product of two matrices per image, neither of them a weight, that gives more than a vector (which the
    context of a whole image, as in GCNet, is).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at it."""
        out = func(*args, **(kwargs or {}))
        name = func.name()
        self.found |= "scaled_dot_product" in name or (name == "aten::bmm" and min(out.shape[-2:]) > 1)
        return out
