"""A learner in a few lines, as a notebook shows it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fastclf.data.classifier_data import ImageClassifierData
from fastclf.data.sources.names import printable
from fastclf.models.freezing import LayerGroups
from fastclf.models.head import Head


def describe_learner(
    name: str,
    arch: str,
    data: ImageClassifierData,
    model: nn.Module,
    groups: LayerGroups,
    how: Mapping[str, str],
) -> str:
    """Describe what a learner trains and how, without computing anything.

    Args:
        name: of the learner's class.
        arch: of the network.
        data: what it trains on.
        model: the network.
        groups: its layer groups.
        how: further lines: label -> text.
    """
    what = "activations" if data.sz is None else f"images of {data.sz} x {data.sz}"
    aim = f"{data.c} number(s)" if data.is_reg else f"{data.c} classes"
    lines = [(name, f"{printable(arch)}, {what}, {aim}")]
    paths = {id(module): path for path, module in model.named_modules()}
    for index, group in enumerate(groups.groups):
        lines.append((f"  group {index}", f"{paths.get(id(group), 'body') or 'model':12} {_parameters(group)}"))
        if isinstance(group, Head):
            widths = " -> ".join(map(str, [group.n_in, *group.widths, group.c]))
            lines.append(("  head", f"{widths}, dropout {', '.join(f'{p:g}' for p in group.ps)}"))
    lines += [(f"  {about}", text) for about, text in how.items()]
    width = max(len(label) for label, _ in lines[1:]) + 2
    return "\n".join([": ".join(lines[0]), *(f"{label:{width}}{text}" for label, text in lines[1:])])


def _parameters(group: nn.Module) -> str:
    sizes = [(p.numel(), p.requires_grad) for p in group.parameters()]
    total, trained = sum(n for n, _ in sizes), sum(n for n, on in sizes if on)
    state = "frozen" if not trained else "trains" if trained == total else f"{trained:,} of them train"
    return f"{total:>12,} parameters, {state}"
