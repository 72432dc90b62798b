"""Networks that tests of models share: their names, and weights for them."""

import torch
from torch import nn

from fastclf.models import archs
from fastclf.models.archs import Arch

NAMED = [a for a in vars(archs).values() if isinstance(a, Arch) and a.source == "torchvision"]
# One of each further family, the smallest.
FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vgg13_bn",
]
NUMBERS = torch.randn(2**24)  # drawn once: drawing afresh for every layer would take most of the time


def randomise(module):
    """Values for a network built without, scaled so that signals neither vanish nor explode."""
    for p in module.parameters():
        numbers = NUMBERS[: p.numel()].view(p.shape)
        scale = (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        p.detach().copy_(numbers * scale + (p.ndim == 1))
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 2)


def assert_partition(body):
    """The two groups of a body hold each of its parameters once."""
    parts = [list(map(id, group.parameters())) for group in body.groups]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(map(id, body.parameters()))
