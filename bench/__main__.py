"""`python -m bench [--quick] [pytest arguments]`: runs the benchmarks, then writes the tables."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

from bench.report import write_report

HERE = Path(__file__).parent


def main() -> int:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        files = [] if any(a.startswith("bench/") for a in arguments) else sorted(map(str, HERE.glob("bench_*.py")))
        options = [
            "-o",
            "python_functions=bench_*",
            "-o",
            "timeout=0",
            f"--benchmark-json={found}",
            "--benchmark-disable-gc",
            "-W",
            "default::pytest_benchmark.logger.PytestBenchmarkWarning",  # all were skipped: no error
        ]
        status = pytest.main([*files, *options, "-q", *arguments])
        if found.exists() and found.stat().st_size:
            write_report(found)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
