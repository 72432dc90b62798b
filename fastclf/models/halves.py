"""A body cut where its second layer group begins: the frozen layers before, and those that train on their maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastclf.models.body import Body, SequentialBody

Shape = tuple[int, int, int]


class EarlyBody(Body):
    """The first layer group of a body: images to feature maps, flattened to ``[B, h * w * C]``, channels last.

    Attributes:
        shape: of the maps, ``(h, w, C)``.
    """

    def __init__(self, body: SequentialBody, sz: int) -> None:
        device = next(body.parameters()).device
        with torch.inference_mode():
            maps = body.eval().first(torch.zeros(1, 3, sz, sz, dtype=torch.float32, device=device))
        self.shape: Shape = (*maps.shape[2:], maps.shape[1])
        super().__init__(
            f"{body.arch}, group 0", math.prod(self.shape), f"maps {list(self.shape)}", (body.mean, body.std)
        )
        self.first = body.first

    def forward(self, x: Tensor) -> Tensor:
        """Compute maps ``[B, h * w * C]`` of images ``[B, 3, sz, sz]``."""
        maps: Tensor = self.first(x)
        return maps.permute(0, 2, 3, 1).flatten(1)


class LateBody(Body):
    """The second layer group of one body or several: what `EarlyBody` gives to features ``[B, n_features]``.

    It shares its layers with the bodies that it was made from.

    Args:
        body: whole.
        parts: its bodies.
        shapes: ``(h, w, C)`` of the maps of each, which stand in a row ``[B, F_1 + F_2 + ...]``.
    """

    def __init__(self, body: Body, parts: Sequence[SequentialBody], shapes: Sequence[Shape]) -> None:
        super().__init__(body.arch, body.n_features, body.pooling, (body.mean, body.std))
        self.shapes = list(shapes)
        self.seconds = nn.ModuleList(nn.Sequential(part.second, part.pool) for part in parts)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``[B, n_features]`` of rows of maps."""
        maps = torch.split(x, [math.prod(shape) for shape in self.shapes], 1)
        found = [
            second(part.reshape(-1, *shape).permute(0, 3, 1, 2))
            for second, part, shape in zip(self.seconds, maps, self.shapes, strict=True)
        ]
        return torch.cat(found, 1)


def early_bodies(body: Body, sz: int) -> list[EarlyBody]:
    """Return the first layer groups of a body that can be cut, see `uncut`, or of each of several."""
    return [EarlyBody(part, sz) for part in _sequential(body)]


def late_body(body: Body, early: Sequence[EarlyBody]) -> LateBody:
    """Return what is left of a body after `early_bodies`."""
    return LateBody(body, _sequential(body), [part.shape for part in early])


def uncut(body: Body) -> list[str]:
    """Return the architectures that cannot be cut: those of networks that run themselves, of timm and transformers."""
    return [part.arch for part in body.parts if not isinstance(part, SequentialBody)]


def _sequential(body: Body) -> list[SequentialBody]:
    return [part for part in body.parts if isinstance(part, SequentialBody)]
