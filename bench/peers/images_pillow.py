"""Pillow decodes, torchvision's transforms follow: what people write."""

from __future__ import annotations

from collections.abc import Callable

from bench.images_setting import ImagesSetting
from bench.peers.images_torchvision import make_loader


def make(setting: ImagesSetting) -> Callable[[int], list[float]]:
    return make_loader(setting, pillow=True)
