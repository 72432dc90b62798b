"""``fastclf env``."""

from __future__ import annotations

import argparse

from fastclf.report import show
from fastclf.versions import library_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no arguments."""


def run(_arguments: argparse.Namespace) -> None:
    """Show `environment`."""
    show(environment())


def environment() -> str:
    """Versions, and which native code, threads and devices are used on this machine."""
    import torch

    from fastclf import ops

    lines = [f"{name:22}{version}" for name, version in library_versions().items()]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: everything runs on the processor"
    lines += [f"{'native code':22}{ops.describe()}", f"{'threads':22}{torch.get_num_threads()}", f"{'GPU':22}{gpu}"]
    return "\n".join(lines)
