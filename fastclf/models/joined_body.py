"""Several pretrained bodies side by side on the same images: their features in a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastclf.models.body import Body


class JoinedBody(Body):
    """Bodies that take the same images, ``[B, n_1 + n_2 + ...]`` features.

    Images come normalised for the first; for each of the others they are normalised anew.

    Attributes:
        bodies: in the order of their features.
    """

    def __init__(self, bodies: Sequence[Body]) -> None:
        first = bodies[0]
        super().__init__(
            "+".join(body.arch for body in bodies),
            sum(body.n_features for body in bodies),
            " | ".join(body.pooling for body in bodies),
            (first.mean, first.std),
        )
        self.bodies = nn.ModuleList(bodies)

    @property
    def parts(self) -> list[Body]:
        """The bodies."""
        return [body for body in self.bodies if isinstance(body, Body)]

    @property
    def groups(self) -> tuple[nn.Module, nn.Module]:
        """The early layers of all bodies, and the late ones."""
        early, late = zip(*(body.groups for body in self.parts), strict=True)
        return nn.ModuleList(early), nn.ModuleList(late)

    @property
    def stages(self) -> list[nn.Module]:
        """Those of all bodies, one body after another."""
        return [stage for body in self.parts for stage in body.stages]

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of images ``[B, 3, H, W]``."""
        return torch.cat([body(self._normalised_for(body, x)) for body in self.parts], 1)

    def check_size(self, sz: int) -> None:
        """See `Body.check_size`; every body must take the size."""
        for body in self.parts:
            body.check_size(sz)

    def _normalised_for(self, body: Body, x: Tensor) -> Tensor:
        if (body.mean, body.std) == (self.mean, self.std):
            return x
        ours, theirs = (
            torch.tensor(values, dtype=torch.float64).view(2, 1, 3, 1, 1)
            for values in ((self.mean, self.std), (body.mean, body.std))
        )
        scale, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
        return x * scale.to(x) + shift.to(x)
