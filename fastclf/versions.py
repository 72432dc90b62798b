"""Which libraries are installed."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def library_versions() -> dict[str, str]:
    """Return the versions of the installed libraries that decide what a model computes."""
    versions = {}
    for name in ("fastclf", "torch", "torchvision", "timm", "nvidia-dali-cuda130", "pillow", "onnxruntime"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
