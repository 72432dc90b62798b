"""The command line: ``fastclf demo`` and ``fastclf env``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastclf.report import show


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that ``argv`` (the process's own by default) names."""
    parser = argparse.ArgumentParser(prog="fastclf", description="From a folder of images to a classifier.")
    commands = parser.add_subparsers(dest="command")
    demo = commands.add_parser("demo", help="the whole lesson, on handwritten digits or on your own images")
    demo.add_argument("data", nargs="?", type=Path, help="a folder with train/<class>/ and, if you like, valid/, test/")
    demo.add_argument("--out", type=Path, default=Path("demo_data"), help="where digits and plots are written")
    commands.add_parser("env", help="what fastclf runs on here: versions, processor, native code, GPU")
    arguments = parser.parse_args(argv)
    if arguments.command == "demo":
        from fastclf.demo import run

        run(arguments.data, arguments.out)
    elif arguments.command == "env":
        show(environment())
    else:
        show(parser.format_help())


def environment() -> str:
    """Return versions, and which native code, threads and devices are used on this machine."""
    import torch

    from fastclf import ops

    names = ("fastclf", "torch", "torchvision", "nvidia-dali-cuda130", "numpy", "timm")
    lines = [f"{name:22}{_version(name)}" for name in names]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none: everything runs on the processor"
    lines += [f"{'native code':22}{ops.describe()}", f"{'threads':22}{torch.get_num_threads()}", f"{'GPU':22}{gpu}"]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
