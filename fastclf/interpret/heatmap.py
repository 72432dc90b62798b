"""Where in an image the evidence for a class lies: Grad-CAM.

Source: Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fastclf.models.head import Head
from fastclf.models.modes import evaluated
from fastclf.models.net import Net

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OPACITY = 0.55  # of the strongest evidence over the image


@dataclass(frozen=True, repr=False)
class Heatmap:
    """An image as the network sees it, and where in it the evidence for a class lies.

    Attributes:
        image: ``[sz, sz, 3] float32`` RGB in 0..1, resized and cropped.
        values: ``[h, w] float32`` in 0..1 on the grid of the network's last maps, 1 where the evidence is strongest;
            zeros where nothing speaks for the class.
        cls: the name of the class.
    """

    image: NDArray[np.float32]
    values: NDArray[np.float32]
    cls: str

    def __repr__(self) -> str:
        """Return the class and the sizes."""
        side, (h, w) = len(self.image), self.values.shape
        return f"Heatmap of {self.cls!r}: {h} x {w} over an image of {side} x {side}"

    def resized(self) -> NDArray[np.float32]:
        """Return the values for every pixel of the image, ``[sz, sz] float32``."""
        grid = torch.from_numpy(self.values)[None, None]
        values: NDArray[np.float32] = functional.interpolate(grid, self.image.shape[:2], mode="bilinear")[0, 0].numpy()
        return values

    def overlaid(self) -> NDArray[np.float32]:
        """Return the image under the map, ``[sz, sz, 3] float32`` in 0..1, such as `plots` takes."""
        painted = coloured(self.resized())
        opacity = painted[..., 3:]
        return np.asarray(self.image * (1 - opacity) + painted[..., :3] * opacity, np.float32)

    def plot(self) -> Figure:
        """Draw the image, and beside it the image under the map."""
        from fastclf.data.sources.names import printable
        from fastclf.interpret.images import plots

        return plots([self.image, self.overlaid()], titles=["as the network sees it", printable(self.cls)])


def coloured(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map ``[h, w]`` in 0..1 as RGBA ``[h, w, 4]`` in 0..1: transparent where it is 0, yellow where 1."""
    from matplotlib import colormaps

    painted = np.asarray(colormaps["inferno"](values), np.float32)
    painted[..., 3] = _OPACITY * values
    return painted


def grad_cam(net: Net, x: Tensor, classes: Tensor) -> NDArray[np.float32]:
    """Return for each image where the evidence for a class lies, 1 where it is strongest.

    The maps are those of the last layer whose values at the single places have a part in the features: of a
    convolutional network the maps before the pool; of a transformer whose class token alone is taken, the patches that
    enter its last block. Each map counts as much as the class's logit (log-probability where the head is the user's
    own) changes with it, in the mean over places; what is negative in their sum is left out.

    Weights, gradients, modes and hooks are afterwards what they were.

    Args:
        net: the network.
        x: images ``[B, 3, sz, sz]``, normalised, on the network's device.
        classes: ``[B] int64``, a class for each.

    Returns:
        ``[B, h, w] float32`` in 0..1; zeros for an image in which nothing speaks for the class.
    """
    with evaluated(net), _outputs(net.body.stages) as outputs, torch.enable_grad():
        # Without a gradient of its input, a frozen body has no graph.
        features = net.body(x.detach().requires_grad_(True))
        scores = net.head.logits(features) if isinstance(net.head, Head) else net.head(features)
        score = scores.gather(1, classes[:, None]).sum()
        for out in reversed(outputs):
            maps_of = _layout(out)
            if maps_of is None:
                continue
            (gradient,) = torch.autograd.grad(score, out, retain_graph=True, allow_unused=True)
            if gradient is not None and maps_of(gradient).any():
                weights = maps_of(gradient).double().mean((2, 3), keepdim=True)
                return _normalised((weights * maps_of(out.detach()).double()).sum(1))
    return np.zeros((len(x), 1, 1), np.float32)


def _normalised(maps: Tensor) -> NDArray[np.float32]:
    positive = maps.clamp_min(0)
    top = positive.amax((1, 2), keepdim=True)
    return np.asarray((positive / torch.where(top > 0, top, 1)).float().cpu().numpy())


def _layout(out: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what brings a layer's output to ``[B, C, n, n]``; None where it has no grid of places.

    Images are square, so maps are too, and tokens that are more than a square number come before the patches.
    """
    if out.ndim == 4 and out.shape[2] == out.shape[3] > 1:
        return lambda maps: maps
    if out.ndim == 4 and out.shape[1] == out.shape[2] > 1:
        return lambda maps: maps.permute(0, 3, 1, 2)
    n = math.isqrt(out.shape[1]) if out.ndim == 3 else 1
    if n == 1:
        return None
    return lambda tokens: tokens[:, -n * n :].reshape(len(tokens), n, n, -1).permute(0, 3, 1, 2)


@contextmanager
def _outputs(layers: list[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what layers give, in the order in which they run."""
    found: list[Tensor] = []

    def note(to: list[Tensor], _module: nn.Module, _args: Any, out: Any) -> None:
        if isinstance(out, Tensor):
            to.append(out)

    hooks = [layer.register_forward_hook(partial(note, found)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
