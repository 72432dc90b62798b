"""What was found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def table(found: Found) -> str:
    """Return one text: the machine, a table for each kind of parts, and what failed or was skipped."""
    parts = {name: part for name, part in found["parts"].items() if "failed" not in part}
    lines = [f"{name}: {value}" for name, value in found["stamp"].items()]
    if "limits" in parts:
        lines += _rows("limit", [""], {n.replace("_", " "): [f"{v:.3g}"] for n, v in parts["limits"].items()})
    lines += _by_arch("a first learner, seconds", _named(parts, "start-"), "seconds", "{:,.2f}")
    lines += _passes(_named(parts, "precompute-"))
    lines += _by_arch("training all layers, images/s", _named(parts, "fine-tune-"), "images_per_second", "{:,.0f}")
    if "images" in parts:
        rates = parts["images"].get("images_per_second", {})
        lines += _rows("images, from files", ["per second"], {name: [f"{rate:,.0f}"] for name, rate in rates.items()})
    lines += _heads(_named(parts, "head-"))
    lines += _optimizers(parts.get("optimizer", []))
    lines += ["", *_complaints(found["parts"])]
    return "\n".join(lines) + "\n"


def _named(parts: Found, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def _rows(heading: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"| {heading} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items())]


def _by_arch(heading: str, parts: Found, key: str, cell: str) -> list[str]:
    """A row for each thing that was measured, a column for each network."""
    names = dict.fromkeys(
        name for part in parts.values() for name in part[key] if not isinstance(part[key][name], list)
    )
    rows = {name: [cell.format(p[key][name]) if name in p[key] else "-" for p in parts.values()] for name in names}
    return _rows(heading, [*parts], rows)


def _passes(parts: Found) -> list[str]:
    rows = {
        name: [*(f"{rate:,.0f}" for rate in part["images_per_second"].values()), f"{part['share_of_slower']:.0%}"]
        for name, part in parts.items()
    }
    return _rows("keeping activations, images/s", ["loader", "body", "both", "share of the slower"], rows)


def _heads(parts: Found) -> list[str]:
    names = dict.fromkeys(name for part in parts.values() for name in part["rows_per_second"])
    rates = {name: [part["rows_per_second"].get(name) for part in parts.values()] for name in names}
    rows = {name: ["-" if r is None else f"{r:,.0f}" for r in row] for name, row in rates.items()}
    return _rows("head, rows/s", [f"B={part['batch']}" for part in parts.values()], rows)


def _optimizers(parts: Sequence[Found]) -> list[str]:
    if not parts:
        return []
    rows = {
        f"{one['shapes']}, {one['groups']} groups": [
            f"{t:,.1f} ({one['share_of_copy'][name]:.2f})" for name, t in one["microseconds"].items()
        ]
        for one in parts
    }
    return _rows("one optimizer step, µs (share of copy)", [*parts[0]["microseconds"]], rows)


def _complaints(parts: Found) -> Iterator[str]:
    for name, part in parts.items():
        if "failed" in part:
            yield f"failed: {name} ({' '.join(part['failed'].split())})"
    skipped = {n: why for part in parts.values() if "skipped" in part for n, why in part["skipped"].items()}
    for name, why in skipped.items():
        yield f"skipped: {name} ({why})"
