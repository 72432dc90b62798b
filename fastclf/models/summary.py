"""A table of a network's layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastclf.models.modes import evaluated


def summary_table(module: nn.Module, example: Tensor) -> str:
    """One line per layer that ``example`` passes: name, kind, output shape, and parameters (trainable or frozen)."""
    rows: list[tuple[str, str, str, str, str]] = []

    def hook(name: str) -> Any:
        def note(layer: nn.Module, _inputs: Any, output: Any) -> None:
            shape = str([-1, *output.shape[1:]]) if isinstance(output, Tensor) else ""
            own = list(layer.parameters())
            state = "" if not own else "trains" if any(p.requires_grad for p in own) else "frozen"
            rows.append((name, type(layer).__name__, shape, f"{sum(p.numel() for p in own):,}", state))

        return note

    leaves = [(name, layer) for name, layer in module.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in leaves]
    try:
        with (
            evaluated(module),
            torch.no_grad(),
            torch.random.fork_rng(),
        ):  # a user's layer may sample in evaluation mode too
            module(example)
    finally:
        for handle in handles:
            handle.remove()
    total = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    table = [("layer", "kind", "output", "parameters", ""), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*lines, f"{total:,} parameters, {trained:,} trainable"])
