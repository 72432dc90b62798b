"""Turns a run's JSON into the tables between the README's markers and a dated file in bench/results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Info = dict[str, Any]


def write_report(found: Path) -> None:
    """Writes both. What did not run this time stays as it was."""
    run = json.loads(found.read_text())
    stamp = _stamp(run)
    fresh = {b["name"]: b["extra_info"] for b in run["benchmarks"] if b["extra_info"]}
    name = f"{stamp['date']}-{re.sub(r'[^A-Za-z0-9]+', '-', stamp['processor'])}.json"
    target = ROOT / "bench" / "results" / name
    target.parent.mkdir(exist_ok=True)
    known = json.loads(target.read_text())["results"] if target.exists() else {}
    results: dict[str, Info] = known | fresh
    target.write_text(json.dumps({"stamp": stamp, "results": results}, indent=1) + "\n")
    print(f"written: {target.relative_to(ROOT)}")
    readme = ROOT / "README.md"
    text = readme.read_text()
    for marker, table in tables(results, stamp).items():
        text = _between(text, marker, table)
    readme.write_text(text)


def tables(results: dict[str, Info], stamp: Info) -> dict[str, str]:
    """Marker -> table, for every kind of benchmark that ran."""
    kinds = {
        "head": ("bench_head_main", head_table),
        "grid": ("bench_head_grid", head_table),
        "accuracy": ("bench_accuracy", accuracy_table),
        "optimizer": ("bench_optimizer", optimizer_table),
        "file": ("bench_large_file", file_table),
    }
    found = {}
    for marker, (prefix, make) in kinds.items():
        chosen = [info for name, info in results.items() if name.startswith(prefix)]
        if chosen:
            where = f"{stamp['processor']}, {stamp['threads']} threads, {stamp['date']}"
            found[marker] = (
                f"{make(chosen)}\nMedians of paired rounds (lowest-highest), smallest ratio first. {where}.\n"
            )
    return found


def head_table(infos: list[Info]) -> str:
    """Rows per second, the ratio to each peer, and the share of the product's rate; the smallest ratio first."""
    names = sorted({name for info in infos for name in info["ratios"]})
    lines = [
        "| D | C | batch | rows/s | share of GEMM | " + " | ".join(f"x {name}" for name in names) + " |",
        "|" + "---|" * (5 + len(names)),
    ]
    for info in sorted(infos, key=_best_ratio):
        shown = [_ratio(info["ratios"].get(name)) for name in names]
        size = f"| {info['columns']} | {info['classes']} | {info['batch']} | {info['rows_per_second']['ours']:,.0f} "
        lines.append(size + f"| {info['share_of_gemm']['median']:.0%}{_mark(info)} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def optimizer_table(infos: list[Info]) -> str:
    """Milliseconds per step, the ratio to each peer, and the share of the copy bandwidth."""
    names = sorted({name for info in infos for name in info["ratios"]})
    lines = [
        "| parameters | groups | ms | share of copy | " + " | ".join(f"x {name}" for name in names) + " |",
        "|" + "---|" * (4 + len(names)),
    ]
    for info in sorted(infos, key=_best_ratio):
        shown = [_ratio(info["ratios"].get(name)) for name in names]
        size = f"| {info['shapes']} | {info['groups']} | {info['milliseconds']['ours']:.1f} "
        lines.append(size + f"| {info['share_of_copy']['median']:.0%}{_mark(info)} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def accuracy_table(infos: list[Info]) -> str:
    """Seconds and epochs until the accuracy was reached."""
    lines = ["| | seconds | epochs | ratio | peak memory |", "|---|---|---|---|---|"]
    for info in infos:
        for name, seconds in info["seconds_to_target"].items():
            cells = (f"{seconds:.2f}", f"{info['epochs_to_target'][name]}", _ratio(info["ratios"].get(name)))
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {info['peak_memory_mb'][name]:,.0f} MB |")
    return "\n".join(lines) + "\n"


def file_table(infos: list[Info]) -> str:
    """The large file against the small one."""
    lines = ["| rows | file | rate, of the small file's | anonymous memory |", "|---|---|---|---|"]
    for info in infos:
        rate = info["rate_of_small_file"]["median"]
        lines.append(f"| {info['rows']:,} | {info['file_gb']:.1f} GB | {rate:.0%} | {info['anonymous_mb']:.0f} MB |")
    return "\n".join(lines) + "\n"


def _best_ratio(info: Info) -> float:
    return min(found["median"] for found in info["ratios"].values())


def _mark(info: Info) -> str:
    """Tells of rounds before or after which the machine's own rates were low."""
    count = info.get("disturbed_rounds", 0)
    return f" ({count} of {len(info['seconds']['ours'])} rounds disturbed)" if count else ""


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} ({found['lowest']:.2f}-{found['highest']:.2f})"


def _between(text: str, marker: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- bench:{marker} -->\n).*?(<!-- /bench:{marker} -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + table + found[2], text)


def _stamp(run: Info) -> Info:
    import numpy as np
    import torch

    from fastclf import ops

    machine = run["machine_info"]
    return {
        "processor": machine["cpu"].get("brand_raw", machine["machine"]),
        "threads": torch.get_num_threads(),
        "date": run["datetime"][:10],
        "commit": run["commit_info"].get("id", "")[:12],
        "engine": ops.describe(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": machine["python_version"]},
    }
