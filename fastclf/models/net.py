"""A pretrained body and a new head as one network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastclf.models.body import Body
from fastclf.models.head import Head
from fastclf.models.runtime.frozen import FrozenBody


class Net(nn.Module):
    """Images ``[B, 3, h, w]`` to the head's output ``[B, c]``; the body's features ``[B, F]`` lie between.

    Args:
        body: the pretrained part, in two groups.
        head: what is trained on its features: a `Head`, or a module of one's own.
    """

    def __init__(self, body: Body, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._frozen = FrozenBody()

    @property
    def groups(self) -> list[nn.Module]:
        """The three layer groups: the body's halves and the head."""
        return [*self.body.groups, self.head]

    def features(self, x: Tensor) -> Tensor:
        """Compute the body's features ``[B, F]``: what a file of activations holds.

        Without gradients, and on a processor, they come from the fastest runtime that agrees with torch to 1e-4.
        """
        return self._frozen.features(self.body, x)

    def prepare(self, sz: int) -> None:
        """Choose now what runs a frozen body on images of ``sz x sz``, so that nothing is logged amid a fit's table."""
        parameters = list(self.body.parameters())
        if all(p.device.type == "cpu" and not p.requires_grad for p in parameters):
            self.body.eval()
            self.features(torch.zeros(1, 3, sz, sz, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's output for images ``x``."""
        out: Tensor = self.head(self.features(x))
        return out


def head_of(module: nn.Module) -> Head | None:
    """Return the `Head` that ``module`` is or ends in; None where it has none."""
    head = module.head if isinstance(module, Net) else module
    return head if isinstance(head, Head) else None
