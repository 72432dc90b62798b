"""EfficientNet-Lite0 to Lite2, layer for layer the networks that timm calls ``tf_efficientnet_lite0`` to ``2``.

Written out here because importing timm takes longer than everything else a learner does before its first batch.
Source: Tan and Le, "EfficientNet", 2019, and its Lite variants without squeeze-and-excitation and with ReLU6.
Names of parameters are timm's, so files of either kind fit.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 1280
# name -> factor of the channels, factor of the repeats
SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
_EPS = 1e-3
# repeats, kernel, stride, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does: output size is ceil(input size / stride), the odd pixel goes last."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``[B, in, H, W]`` to ``[B, out, ceil(H/stride), ceil(W/stride)]``."""
        (top, bottom), (left, right) = (self._pads(x.shape[axis], axis - 2) for axis in (2, 3))
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pads(self, size: int, axis: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise kxk, project 1x1, each with BatchNorm; adds its input where the shapes agree.

    Without expansion (factor 1) the first convolution is absent, and timm counts the names on from the second.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = n_in * expansion
        self.has_skip = stride == 1 and n_in == n_out
        depthwise = _conv(width, width, kernel, stride, groups=width)
        if expansion == 1:
            parts = [("conv_dw", depthwise), ("bn1", _norm(width)), ("act1", nn.ReLU6(inplace=True))]
            parts += [("conv_pw", _conv(width, n_out)), ("bn2", _norm(n_out))]
        else:
            parts = [("conv_pw", _conv(n_in, width)), ("bn1", _norm(width)), ("act1", nn.ReLU6(inplace=True))]
            parts += [("conv_dw", depthwise), ("bn2", _norm(width)), ("act2", nn.ReLU6(inplace=True))]
            parts += [("conv_pwl", _conv(width, n_out)), ("bn3", _norm(n_out))]
        for name, part in parts:
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, n_in, H, W]`` to ``[B, n_out, ceil(H/stride), ceil(W/stride)]``."""
        out = x
        for part in self.children():
            out = part(out)
        return out + x if self.has_skip else out


def build(name: str) -> nn.Sequential:
    """Build one of `SCALES` whole, 1,000 ImageNet classes, randomly initialised."""
    wider, deeper = SCALES[name]
    blocks, width = [], 32
    for k, (repeats, kernel, stride, expansion, channels) in enumerate(_STAGES):
        stage, n_out = [], _multiple_of_8(wider * channels)
        # The Lite variants keep the number of layers of the first and the last stage.
        for i in range(repeats if k in (0, len(_STAGES) - 1) else math.ceil(deeper * repeats)):
            stage.append(InvertedResidual(width, n_out, kernel, stride if i == 0 else 1, expansion))
            width = n_out
        blocks.append(nn.Sequential(*stage))
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv_stem=_conv(3, 32, 3, 2),
            bn1=_norm(32),
            act1=nn.ReLU6(inplace=True),
            blocks=nn.Sequential(*blocks),
            conv_head=_conv(width, CHANNELS),
            bn2=_norm(CHANNELS),
            act2=nn.ReLU6(inplace=True),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(CHANNELS, 1000),
        )
    )


def _multiple_of_8(channels: float) -> int:
    """Round to the nearest multiple of 8 that is at least nine tenths of ``channels``."""
    nearest = int(channels + 4) // 8 * 8
    return nearest if nearest >= 0.9 * channels else nearest + 8


def _conv(n_in: int, n_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    kind = SameConv2d if stride > 1 else nn.Conv2d
    conv = kind(n_in, n_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    nn.init.normal_(conv.weight, std=math.sqrt(2 * groups / (kernel * kernel * n_out)))
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=_EPS)
