"""A whole classifier as one torch module: pixels of any size to answers, in operations that every exporter knows.

The resampling is two products with matrices of weights, which are made from the image's height and width. An exporter
keeps that as it is, so every runtime computes what validation does; their own operators for resizing differ from
ours in offsets, borders and rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastclf.data.transforms.spec import CropType, TransformSpec
from fastclf.models.head import Head
from fastclf.models.net import Net

BELOW_ONE = 1 - 2.0**-24  # the highest float32 below 1, whose log-odds are finite


class FromPixels(nn.Module):
    """Images ``[n, h, w, 3] uint8`` of one size to answers ``[n, c] float32``.

    Answers are probabilities, or the values of a regression.

    Args:
        net: body and head, in evaluation mode, on the CPU.
        tfms: of validation.
        kind: what an image is labelled with: ``"one"`` class, ``"several"`` classes or ``"numbers"``.
        temperature: the logits are divided by it.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, net: Net, tfms: TransformSpec, kind: str, temperature: float) -> None:
        super().__init__()
        mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (tfms.mean, tfms.std))
        self.body, self.head = net.body, net.head
        self.sz, self.squash = tfms.sz, tfms.crop_type is CropType.NO
        self.kind, self.temperature = kind, temperature
        self.register_buffer("gain", (1 / (255 * std)).float())
        self.register_buffer("offset", (-mean / std).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the answers for ``pixels``."""
        return self.answers(self.crops(pixels))

    def crops(self, pixels: Tensor) -> Tensor:
        """Return what the body gets, ``[n, 3, sz, sz] float32``: cropped, resized and normalised."""
        height, width = pixels.shape[1:3]
        short = None if self.squash else torch.minimum(_number(height), _number(width))
        down, across = (_weights(n, short, self.sz) for n in (height, width))
        rows = torch.matmul(down, pixels.float().flatten(2)).reshape(-1, self.sz, width, 3)
        crops = torch.matmul(rows.permute(0, 3, 1, 2), across.T)
        return crops * self.gain + self.offset

    def answers(self, crops: Tensor) -> Tensor:
        """Return the answers ``[n, c]`` for what the body gets."""
        features = self.body(crops)
        if self.kind == "one":  # log-probabilities are logits that sum up to 1 already
            return torch.softmax(self.head(features) / self.temperature, 1)
        if self.kind == "several" and isinstance(self.head, Head):
            return torch.sigmoid(self.head.logits(features) / self.temperature)
        out: Tensor = self.head(features)
        if self.kind == "several" and self.temperature != 1:
            return torch.sigmoid(torch.logit(out.clamp(max=BELOW_ONE)) / self.temperature)
        return out


def _number(n: int) -> Tensor:
    return torch.full((), n, dtype=torch.int64)


def _weights(n: int, short: Tensor | None, sz: int) -> Tensor:
    """Return the weights ``[sz, n] float32`` by which ``n`` pixels of an axis become the crop's.

    Where the crop lies is what `fastclf.data.transforms.crop_geometry` says of validation, the weights are those of
    `fastclf.ops.crop_resize`: a triangle as wide as the step from one value to the next, at least two pixels.

    Args:
        n: the image's pixels along the axis.
        short: pixels of its shorter side, which is scaled to ``sz``; None to squash both sides to ``sz``.
        sz: side of the crop.
    """
    scaled = torch.full((), sz) if short is None else torch.div(_number(n) * sz, short, rounding_mode="floor")
    spare = scaled - sz
    half = torch.div(spare, 2, rounding_mode="floor")
    start = torch.div(spare + half % 2, 2, rounding_mode="floor")
    step = _number(n).float() / scaled.float()
    low, high = (start.float() * step).double(), ((start + sz).float() * step).double()
    step = (high - low) / sz
    reach = step.clamp(min=1.0)
    middle = low + (torch.arange(sz, dtype=torch.float64) + 0.5) * step
    beyond = n // sz + 2  # pixels outside that a triangle may reach: the outermost ones go on there
    at = torch.arange(n + 2 * beyond) - beyond
    share = torch.relu(1 - (at.double() + 0.5 - middle[:, None]).abs() / reach)
    before, inside, after = share[:, :beyond], share[:, beyond : beyond + n], share[:, beyond + n :]
    pixel = torch.arange(n)
    inside = inside + before.sum(1, keepdim=True) * (pixel == 0) + after.sum(1, keepdim=True) * (pixel == n - 1)
    weights: Tensor = inside / share.sum(1, keepdim=True)
    return weights.float()
