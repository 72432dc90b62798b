"""What is measured, each part in a process of its own: one that dies or takes too long costs itself alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from bench.gpu import fine_tune, head, images, limits, optimizer, precompute, start
from bench.gpu.timing import Bench

Found: TypeAlias = dict[str, Any]
Measure: TypeAlias = Callable[[Bench, dict[str, float], Path], Any]

PATIENCE = 300  # seconds for a part
_LAST = 400  # characters of what a part that failed had to say


def _limits(bench: Bench, _known: dict[str, float], _folder: Path) -> dict[str, float]:
    return limits.measure(bench)


PARTS: dict[str, Measure] = {  # in the order in which they run: the first finds what others are shares of
    "limits": _limits,
    **{f"start-{name}": partial(start.race, arch) for name, arch in start.ARCHS.items()},
    **{f"precompute-{name}": partial(precompute.race, arch) for name, arch in precompute.ARCHS.items()},
    **{f"fine-tune-{name}": partial(fine_tune.race, arch) for name, arch in fine_tune.ARCHS.items()},
    "images": images.race,
    **{f"head-{batch}": partial(head.race, batch) for batch in head.BATCHES},
    "optimizer": optimizer.race,
}
REHEARSED = ("limits", "start-lite0", "precompute-lite0", "fine-tune-lite0", "images", "head-64", "optimizer")


def measure(name: str, *, small: bool, known: dict[str, float], folder: Path) -> Any:
    """Measure a part in this process.

    Args:
        name: of the part.
        small: the rehearsal, on the processor.
        known: the limits; empty where they were not measured.
        folder: for files that parts share, such as images.
    """
    return PARTS[name](Bench(torch.device("cpu" if small else "cuda"), small=small), known, folder)


def in_own_process(name: str, *, small: bool, known: dict[str, float], folder: Path) -> Any:
    """Measure a part in a process that has seen nothing before: no cache of ours, no plan of cuDNN's.

    Returns:
        What `measure` returns; where it fails, ``{"failed": why}``.
    """
    result = folder / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.gpu.parts", name, str(int(small)), json.dumps(known), str(folder)]
    return answer_of(command, result, PATIENCE, {"XDG_CACHE_HOME": str(folder / f"cache-{name}")})


def answer_of(command: list[str], result: Path, patience: float, environment: dict[str, str]) -> Any:
    """Run a process that writes ``result``, and return what it wrote; ``{"failed": why}`` where it did not."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=Path(__file__).parents[2],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {patience:g} s"}
    if done.returncode == 0 and result.is_file():
        return json.loads(result.read_text())
    ended = f"ended with {done.returncode} after {time.monotonic() - began:.0f} s"
    return {"failed": f"{ended}: {done.stdout.strip()[-_LAST:]}"}


def main(name: str, small: str, known: str, folder: str) -> None:
    """Measure a part and write what was found."""
    found = measure(name, small=bool(int(small)), known=json.loads(known), folder=Path(folder))
    unfinished = Path(folder) / f"{name}.part"
    unfinished.write_text(json.dumps(found))
    unfinished.rename(Path(folder) / f"{name}.json")
    sys.stdout.flush()
    os._exit(0)  # what was measured counts, whatever libraries do at the end


if __name__ == "__main__":
    main(*sys.argv[1:])
