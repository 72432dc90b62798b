"""`python -m bench.gpu [PART ...] [--out FOLDER] [--rehearse]`: measures on the GPU, into one JSON and one table.

Both are written anew after each part; parts that are asked for later are added to what the same card gave that day.
Each part runs in a process of its own, at most five minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

from bench.gpu.parts import PARTS, REHEARSED, Found, in_own_process
from bench.gpu.table import table

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where there is no GPU, or a part has failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all by default: {' '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the two files go")
    parser.add_argument(
        "--rehearse", action="store_true", help="small, on the CPU: shows that the code works, not how fast"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"PART must be one of {', '.join(PARTS)}, got {unknown[0]!r}.")
    if not options.rehearse and not torch.cuda.is_available():
        print("bench.gpu: no GPU that torch can use was found; nothing is measured. Try --rehearse.", file=sys.stderr)
        return 1
    names = options.parts or (REHEARSED if options.rehearse else [*PARTS])
    found = _measure(names, None if options.rehearse else options.out)
    print(table(found))
    if options.rehearse:
        print("a rehearsal: these figures mean nothing")
    return int(any(isinstance(one, dict) and "failed" in one for one in found["parts"].values()))


def _measure(names: list[str], out: Path | None) -> Found:
    """Measure parts, and write what is there after each; nothing in a rehearsal, where ``out`` is None."""
    stamp = _stamp(on_gpu=out is not None)
    found: Found = {"stamp": stamp, "parts": {}}
    file = None
    if out is not None:
        file = out / f"{stamp['date']}-{re.sub(r'[^A-Za-z0-9]+', '-', stamp['card'])}.json"
        if file.is_file() and (before := json.loads(file.read_text()))["stamp"] == stamp:
            found = before
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            limits = found["parts"].get("limits", {})
            known = {} if "failed" in limits else limits
            found["parts"][name] = in_own_process(name, small=out is None, known=known, folder=Path(folder))
            if file is not None:
                file.write_text(json.dumps(found, indent=1) + "\n")
                file.with_suffix(".md").write_text(table(found))
    return found


def _stamp(*, on_gpu: bool) -> dict[str, str]:
    """Card, driver and versions."""
    said = {"date": str(date.today()), "python": platform.python_version(), "torch": str(torch.__version__)}
    if on_gpu:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
        said |= {"card": torch.cuda.get_device_name(), "driver": driver, "cuda": str(torch.version.cuda)}
    return said


if __name__ == "__main__":
    sys.exit(main())
