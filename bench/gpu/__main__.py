"""`python -m bench.gpu [--out FOLDER] [--rehearse]`: measures on the GPU, writes one JSON and one table.

`--rehearse` runs everything once in small on the CPU and writes nothing: it shows that the code works, not how fast.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

from bench.gpu import head, images, limits, optimizer
from bench.gpu.timing import Bench

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the two files go")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU, nothing written")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        print("bench.gpu: no GPU that torch can use was found; nothing is measured. Try --rehearse.", file=sys.stderr)
        return 1
    bench = Bench(torch.device("cpu" if options.rehearse else "cuda"), small=options.rehearse)
    found: dict[str, Any] = {"stamp": stamp(bench), "limits": limits.measure(bench)}
    for part in (head, optimizer):
        found[part.__name__.rpartition(".")[2]] = part.race(bench, found["limits"])
    found["images"] = images.race(bench)
    text = table(found)
    print(text)
    if options.rehearse:
        print("a rehearsal: these figures mean nothing")
    else:
        name = f"{found['stamp']['date']}-{re.sub(r'[^A-Za-z0-9]+', '-', found['stamp']['card'])}"
        (options.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        (options.out / f"{name}.md").write_text(text)
    return 0


def stamp(bench: Bench) -> dict[str, str]:
    """Card, driver and versions."""
    said = {"date": str(date.today()), "python": platform.python_version(), "torch": str(torch.__version__)}
    if bench.device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        said |= {"card": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
    return said


def table(found: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    lines = [f"{name}: {value}" for name, value in found["stamp"].items()]
    lines += ["", "| limit | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value:.3g} |" for name, value in found["limits"].items()]
    lines += ["", "| head, rows/s | " + " | ".join(f"B={one['batch']}" for one in found["head"]) + " |"]
    lines += ["|---" * (len(found["head"]) + 1) + "|"]
    names = dict.fromkeys(name for one in found["head"] for name in one["rows_per_second"])
    for name in names:
        rates = (one["rows_per_second"].get(name) for one in found["head"])
        lines.append(f"| {name} | " + " | ".join("-" if r is None else f"{r:,.0f}" for r in rates) + " |")
    skipped = {name: why for one in (*found["head"], found["images"]) for name, why in one["skipped"].items()}
    lines += ["", *(f"skipped: {name} ({why})" for name, why in skipped.items())]
    lines += [
        "",
        "| one optimizer step, µs (share of copy) | " + " | ".join(found["optimizer"][0]["microseconds"]) + " |",
    ]
    lines += ["|---" * (len(found["optimizer"][0]["microseconds"]) + 1) + "|"]
    for one in found["optimizer"]:
        cells = (f"{t:,.1f} ({one['share_of_copy'][name]:.2f})" for name, t in one["microseconds"].items())
        lines.append(f"| {one['shapes']}, {one['groups']} groups | " + " | ".join(cells) + " |")
    lines += ["", "| images, from files | per second |", "|---|---|"]
    rates = found["images"].get("images_per_second", {})
    lines += [f"| {name} | {rate:,.0f} |" for name, rate in rates.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
