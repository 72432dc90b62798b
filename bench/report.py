"""Turns a run's JSON into the tables between the markers of the READMEs, and a dated file in bench/results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
READMES = (ROOT / "README.md", ROOT / "bench" / "README.md")
Info = dict[str, Any]


def write_report(found: Path) -> None:
    """Writes both. What did not run this time stays as it was."""
    run = json.loads(found.read_text())
    stamp = _stamp(run)
    fresh = {b["name"]: b["extra_info"] for b in run["benchmarks"] if b["extra_info"]}
    # Of one number of threads, as the stamp is that of all results in the file.
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{stamp['date']} {stamp['processor']} {stamp['threads']} threads") + ".json"
    target = ROOT / "bench" / "results" / name
    target.parent.mkdir(exist_ok=True)
    known = json.loads(target.read_text())["results"] if target.exists() else {}
    results: dict[str, Info] = known | fresh
    target.write_text(json.dumps({"stamp": stamp, "results": results}, indent=1) + "\n")
    print(f"written: {target.relative_to(ROOT)}")
    made = tables(results, stamp)
    for readme in READMES:
        text = readme.read_text()
        for marker, table in made.items():
            text = _between(text, marker, table)
        readme.write_text(text)


def tables(results: dict[str, Info], stamp: Info) -> dict[str, str]:
    """Marker -> table, for every kind of benchmark that ran."""
    where = f"{stamp['processor']}, {stamp['threads']} threads, {stamp['date']}"
    found = {}
    for marker, (prefix, make) in KINDS.items():
        chosen = [info for name, info in results.items() if f"{name}[".startswith(prefix)]
        if chosen:
            found[marker] = f"{make(chosen)}\n{where}.\n"
    return found


def head_table(infos: list[Info]) -> str:
    """Rows per second, the share of the product's rate, and the ratio to each peer; the smallest ratio first."""
    columns = {
        "D": lambda info: f"{info['columns']}",
        "C": lambda info: f"{info['classes']}",
        "batch": lambda info: f"{info['batch']}",
        "rows/s": lambda info: f"{info['rows_per_second']['ours']:,.0f}",
        "share of GEMM": lambda info: f"{info['share_of_gemm']['median']:.0%}",
    }
    return _against_peers(infos, columns)


def heads_table(infos: list[Info]) -> str:
    """Rows of all heads per second, and the ratio to one head after another."""
    columns = {
        "F": lambda info: f"{info['columns']}",
        "hidden": lambda info: f"{info['hidden'] or 'none'}",
        "rows/s": lambda info: f"{info['rows_per_second']['ours']:,.0f}",
    }
    return _against_peers(infos, columns)


def optimizer_table(infos: list[Info]) -> str:
    """Milliseconds per step, the share of the copy bandwidth, and the ratio to each peer."""
    columns = {
        "parameters": lambda info: info["shapes"],
        "groups": lambda info: f"{info['groups']}",
        "ms": lambda info: f"{info['milliseconds']['ours']:.1f}",
        "share of copy": lambda info: f"{info['share_of_copy']['median']:.0%}",
    }
    return _against_peers(infos, columns)


def body_table(infos: list[Info]) -> str:
    """Images per second, the share of the product's rate, and the ratio to each peer."""
    columns = {
        "body": lambda info: info["arch"].partition(":")[2],
        "images/s": lambda info: f"{info['images_per_second']['ours']:.0f}",
        "share of GEMM": lambda info: f"{info['share_of_gemm']['median']:.0%}",
    }
    return _against_peers(infos, columns)


def images_table(infos: list[Info]) -> str:
    """Images per second, the share of decoding alone, and the ratio to each peer."""
    columns = {
        "": lambda info: "augmented" if info["augment"] else "plain",
        "images/s": lambda info: f"{info['images_per_second']['ours']:,.0f}",
        "share of decode": lambda info: f"{info['share_of_decode']['median']:.0%}",
    }
    return _against_peers(infos, columns)


def accuracy_table(infos: list[Info]) -> str:
    """Seconds and epochs until the accuracy was reached."""
    rows = [
        (
            name,
            f"{seconds:.2f}",
            f"{info['epochs_to_target'][name]}",
            _ratio(info["ratios"].get(name)),
            f"{info['peak_memory_mb'][name]:,.0f} MB",
        )
        for info in infos
        for name, seconds in info["seconds_to_target"].items()
    ]
    return _table(("", "seconds", "epochs", "ratio", "peak memory"), rows)


def file_table(infos: list[Info]) -> str:
    """The large file against the small one."""
    rows = [
        (
            f"{info['rows']:,}",
            f"{info['file_gb']:.1f} GB",
            f"{info['rate_of_small_file']['median']:.0%}",
            f"{info['anonymous_mb']:.0f} MB",
        )
        for info in infos
    ]
    return _table(("rows", "file", "rate, of the small file's", "anonymous memory"), rows)


def precompute_table(infos: list[Info]) -> str:
    """The pass against its two halves."""
    rows = [
        (
            f"{info['images']:,}",
            *(f"{info['images_per_second'][name]:,.0f}" for name in ("decode", "body", "whole")),
            _spread(info["share_of_both_alone"], "{:.0%}"),
        )
        for info in infos
    ]
    return _table(("images", "decode alone/s", "body alone/s", "whole pass/s", "share"), rows)


def memory_table(infos: list[Info]) -> str:
    """Peak memory of a short and of a long pass."""
    rows = [
        (*(f"{n} images: {peak:,.0f} MB" for n, peak in info["peak_memory_mb"].items()), f"{info['ratio']:.3f}")
        for info in infos
    ]
    return _table(("short pass", "long pass", "ratio"), rows)


def lesson_table(infos: list[Info]) -> str:
    """Seconds of each stage, the ratio, and what came out."""
    rows = [
        (
            name,
            f"{sorted(seconds)[len(seconds) // 2]:.1f}",
            ", ".join(f"{stage} {taken:.1f}" for stage, taken in info["stages"][name].items()),
            _ratio(info["ratios"].get(name)),
            ", ".join(f"{value:.3f}" for value in info["accuracy"][name]),
        )
        for info in infos
        for name, seconds in info["seconds"].items()
    ]
    return _table(("", "seconds", "of which", "ratio", "accuracy, seed by seed"), rows)


def views_table(infos: list[Info]) -> str:
    """Loss, metric, file and time of one view, of several, and without precompute."""
    rows = []
    for info in infos:
        for name, title in (("one view", "1 view"), ("views", f"{info['views']} views")):
            rows.append(
                (
                    info["images"],
                    title,
                    _spread(info[f"accuracy of {name}"], "{:.3f}"),
                    _spread(info[f"loss of {name}"], "{:.4f}"),
                    f"{info[f'file mb of {name}']['median']:.1f} MB",
                    f"{info[f'seconds of {name}']['median']:.2f}",
                )
            )
        drawn = info["without precompute"]
        found = (f"{drawn['accuracy']:.3f}", f"{drawn['loss']:.4f}", "", f"{drawn['seconds']:.1f}")
        rows.append((info["images"], "precompute=False", *found))
    return _table(("", "", "accuracy", "log loss", "file", "seconds of the fit"), rows)


def tta_table(infos: list[Info]) -> str:
    """TTA from cached views and from images, by the same learner."""
    rows = [
        (
            info["images"],
            f"from {source}",
            f"{info['tta'][f'from {source}']['tta accuracy']:.3f}",
            f"{info['tta'][f'from {source}']['tta loss']:.4f}",
            f"{info['tta'][f'seconds from {source}']:.2f}",
        )
        for info in infos
        for source in ("views", "images")
    ]
    return _table(("", "TTA", "accuracy", "log loss", "seconds"), rows)


def unfreeze_table(infos: list[Info]) -> str:
    """Accuracy of the frozen body's head, in the worst epoch after unfreezing, and after all of them."""
    names = list(infos[0]["after"])
    rows = [
        (
            info["images"],
            _spread(info["frozen"], "{:.3f}"),
            *(_spread(info[when][name], "{:.3f}") for name in names for when in ("worst epoch", "after")),
        )
        for info in infos
    ]
    columns = (f"{name}: {when}" for name in names for when in ("worst epoch", "at the end"))
    return _table(("training images", "frozen", *columns), rows)


def fine_tune_head_table(infos: list[Info]) -> str:
    """Accuracy and log loss over seeds of three heads on the same rows, and the least advantage over scikit-learn."""
    rows = []
    for info in infos:
        runs, peer = info["runs"], "scikit-learn"
        lead = [run["fine_tune"][0] - run[peer][0] for run in runs]
        rows.append(
            (
                info["images"],
                *(_mean(run[way][0] for run in runs) for way in ("lesson", peer, "fine_tune")),
                f"{sum(lead) / len(lead):+.3f} ({min(lead):+.3f} to {max(lead):+.3f})",
                *(_mean(run[way][1] for run in runs) for way in ("lesson", peer, "fine_tune")),
                *(f"{sum(run[way][2] for run in runs) / len(runs):.0f}" for way in (peer, "fine_tune")),
            )
        )
    ways = ("lesson", "scikit-learn", "fine_tune")
    columns = (
        "training images",
        *ways,
        "lead",
        *(f"log loss: {way}" for way in ways),
        "s: scikit-learn",
        "s: fine_tune",
    )
    return _table(columns, rows)


def fine_tune_layers_table(infos: list[Info]) -> str:
    """Accuracy and log loss, run by run: the frozen body, the weights after training, their mean, and the peers."""
    rows = [
        (
            info["images"],
            f"{seed}",
            f"{run['frozen']:.3f}",
            f"{run['after']:.3f}" if "after" in run else "",
            f"{run['fine_tune'][0]:.3f} ({'all layers' if run['kept'] else 'frozen'})",
            f"{run['lesson'][0]:.3f}",
            f"{run['fastai'][0]:.3f}" if "fastai" in run else "",
            *(f"{run[way][1]:.3f}" if way in run else "" for way in ("fine_tune", "lesson", "fastai")),
            *(f"{run[way][2]:.0f}" if way in run else "" for way in ("fine_tune", "lesson", "fastai")),
        )
        for info in sorted(infos, key=lambda info: (info["images"], info["seeds"]))
        for seed, run in zip(info["seeds"], info["runs"], strict=True)
    ]
    ways = ("fine_tune", "lesson", "fastai")
    measured = (f"{what}: {way}" for what in ("log loss", "s") for way in ways)
    return _table(("training images", "seed", "unfreeze=False", "weights after", *ways, *measured), rows)


def depth_table(infos: list[Info]) -> str:
    """Seconds, size and result of training layer group 1 and the head: on feature maps, and on images."""
    rows = [
        (
            f"{info['images']:,} at {info['sz']}",
            way,
            f"{run['pass seconds']:.1f}" if run["mb"] else "",
            f"{run['epoch seconds']:.2f}",
            f"{run['epoch processor seconds']:.2f}",
            f"{run['pass seconds'] + info['epochs'] * run['epoch seconds']:.1f}",
            f"{run['mb']:,.0f} MB" if run["mb"] else "",
            f"{run['accuracy']:.3f}",
            f"{run['loss']:.4f}",
        )
        for info in infos
        for way, run in info["runs"].items()
    ]
    both = f"with {infos[0]['epochs']} epochs, s"
    columns = ("images", "from", "pass, s", "epoch, s", "of the processor", both, "maps", "accuracy", "log loss")
    return _table(columns, rows)


def answers_table(infos: list[Info]) -> str:
    """Seconds of each answer and of its peers, by number of rows."""
    rows = [
        (name, *(f"{info['seconds'][name]:.1f}" for info in infos), *(_accuracy(info, name) for info in infos))
        for name in infos[0]["seconds"]
    ]
    peak = ("peak memory of all, GB", *(f"{info['peak GB']:.1f}" for info in infos), *("" for _ in infos))
    sizes = [f"{info['rows']:,} rows" for info in infos]
    return _table(("seconds", *sizes, *(f"accuracy, {size}" for size in sizes)), [*rows, peak])


def store_table(infos: list[Info]) -> str:
    """Seconds to open the store, and the head's rate on its rows against one plain mapped file."""
    rows = [
        (
            f"{info['rows']:,}",
            *(f"{info['seconds_to_open'][name]:.2f}" for name in ("opened first", "opened again")),
            f"{info['rows_per_second']['plain']:,.0f}",
            *(_ratio(info["times_plain"][name]) for name in ("in order", "scattered")),
        )
        for info in infos
    ]
    columns = ("rows", "opened first, s", "again, s", "plain file, rows/s", "x in order", "x scattered")
    return _table(columns, rows)


def choice_table(infos: list[Info]) -> str:
    """Accuracy, log loss and seconds out of fold, by way."""
    ways = ("cross_validate", "audit", "scikit-learn")
    rows = [
        (
            info["rows"],
            *(f"{info['runs'][way][0]:.3f}" for way in ways),
            *(f"{info['runs'][way][1]:.3f}" for way in ways),
            *(f"{info['runs'][way][2]:.1f}" for way in ways),
            *(f"{seconds:.1f}" for seconds in info["runs"]["learning_curve"] or ()),
        )
        for info in infos
    ]
    columns = ("training images", *ways, *(f"log loss: {way}" for way in ways), *(f"s: {way}" for way in ways))
    rows = [(*row, "") if len(row) == len(columns) else row for row in rows]
    return _table((*columns, "s: learning_curve"), rows)


def planted_table(infos: list[Info]) -> str:
    """Precision and recall of an audit's list of planted labels, means over seeds."""
    rows = []
    for info in infos:
        for share in sorted({run[0] for run in info["planted"]}):
            of = [run[1:] for run in info["planted"] if run[0] == share]
            precision, recall, seconds = (_mean(column) for column in zip(*of, strict=True))
            rows.append((info["images"], f"{share:.0%}", precision, recall, f"{float(seconds):.1f}"))
    return _table(("images", "planted", "precision", "recall", "s"), rows)


def _accuracy(info: Info, name: str) -> str:
    return f"{info['accuracy'][name]:.3f}" if name in info["accuracy"] else ""


def scan_table(infos: list[Info]) -> str:
    """The scan against decoding the same files."""
    rows = [
        (f"{info['images']:,}", _ratio(info["times_decode"]), _ratio(info["second_scan_times_decode"]))
        for info in infos
    ]
    return _table(("images", "first scan, of a decode", "second scan"), rows)


KINDS: dict[str, tuple[str, Callable[[list[Info]], str]]] = {
    "head": ("bench_head_main", head_table),
    "grid": ("bench_head_grid", head_table),
    "heads": ("bench_heads", heads_table),
    "accuracy": ("bench_accuracy", accuracy_table),
    "optimizer": ("bench_optimizer", optimizer_table),
    "file": ("bench_large_file", file_table),
    "body": ("bench_body", body_table),
    "images": ("bench_images", images_table),
    "precompute": ("bench_precompute[", precompute_table),
    "memory": ("bench_precompute_memory", memory_table),
    "lesson": ("bench_lesson", lesson_table),
    "views": ("bench_views", views_table),
    "tta": ("bench_views", tta_table),
    "scan": ("bench_scan", scan_table),
    "unfreeze": ("bench_unfreeze", unfreeze_table),
    "depth": ("bench_depth", depth_table),
    "answers": ("bench_answers", answers_table),
    "store": ("bench_store", store_table),
    "choice": ("bench_choice", choice_table),
    "planted": ("bench_planted", planted_table),
    "fine_tune_head": ("bench_fine_tune_head", fine_tune_head_table),
    "fine_tune_layers": ("bench_fine_tune_layers", fine_tune_layers_table),
}
"""Marker -> how the names of its benchmarks begin, and what makes a table of them."""


def _against_peers(infos: list[Info], columns: Mapping[str, Callable[[Info], str]]) -> str:
    """``columns`` and a ratio to each peer, the smallest ratio first."""
    names = sorted({name for info in infos for name in info["ratios"]})
    rows = []
    for info in sorted(infos, key=_best_ratio):
        *shown, last = (show(info) for show in columns.values())
        rows.append((*shown, last + _mark(info), *(_ratio(info["ratios"].get(name)) for name in names)))
    return _table((*columns, *(f"x {name}" for name in names)), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _best_ratio(info: Info) -> float:
    return min(found["median"] for found in info["ratios"].values())


def _mark(info: Info) -> str:
    """Tells of rounds before or after which the machine's own rates were low."""
    count = info.get("disturbed_rounds", 0)
    return f" ({count} of {len(info['seconds']['ours'])} rounds disturbed)" if count else ""


def _ratio(found: dict[str, float] | None) -> str:
    return "" if found is None else _spread(found, "{:.2f}")


def _mean(values: Iterable[float]) -> str:
    given = list(values)
    return f"{sum(given) / len(given):.3f}"


def _spread(found: dict[str, float], form: str) -> str:
    median, lowest, highest = (form.format(found[name]) for name in ("median", "lowest", "highest"))
    return f"{median} ({lowest}-{highest})"


def _between(text: str, marker: str, table: str) -> str:
    pattern = re.compile(rf"(<!-- bench:{marker} -->\n).*?(<!-- /bench:{marker} -->)", re.DOTALL)
    return pattern.sub(lambda found: found[1] + table + found[2], text)


def _stamp(run: Info) -> Info:
    import numpy as np
    import torch

    from fastclf import ops

    machine = run["machine_info"]
    cpu = machine["cpu"]
    name = cpu.get("brand_raw", machine["machine"])
    if "family" in cpu:  # clouds call many generations by one name
        name += f" (family {cpu['family']} model {cpu['model']})"
    return {
        "processor": name,
        "threads": torch.get_num_threads(),
        "date": run["datetime"][:10],
        "commit": run["commit_info"].get("id", "")[:12],
        "engine": ops.describe(),
        "versions": {"torch": torch.__version__, "numpy": np.__version__, "python": machine["python_version"]},
    }
