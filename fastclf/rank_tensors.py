"""Tensors of processes that train together: shared, added up and put one after the other; see `ranks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastclf.ranks import gather, joined, largest, rank, size, together


@together
def take_from_first(module: nn.Module) -> None:
    """Let the tensors of a module be those of the first process."""
    if size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            there = tensor.detach().contiguous()
            joined().broadcast(there.reshape(-1).view(torch.uint8), src=0)  # bytes, as it may hold any kind of number
            tensor.detach().copy_(there)


@together
def add_up(tensors: Sequence[Tensor]) -> None:
    """Let each tensor be the sum over all processes; they are sent in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    joined().all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def counts(n: int) -> list[int]:
    """Return how many rows each process has, by rank."""
    mine = torch.zeros(size(), dtype=torch.int64)
    mine[rank()] = n
    return largest(mine).tolist()


@together
def _rows(part: Tensor, sizes: Sequence[int]) -> Tensor:
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    found = [torch.empty_like(padded) for _ in sizes]
    joined().all_gather(found, padded)
    return torch.cat([one[:n] for one, n in zip(found, sizes, strict=True)])


def rows(part: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the rows of all processes ``[sum(sizes), ...]``, by rank; gradients go back to whose rows they are.

    Args:
        part: this process's rows.
        sizes: how many rows each process has, see `counts`.
    """
    found: Tensor = _GatheredRows.apply(part, sizes)
    return found


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.at = slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
        return _rows(part, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.at], None


def all_rows(part: Tensor | None) -> Tensor | None:
    """Return the rows of all processes, by rank, where some may have none and not know their shape; None for no row."""
    forms = gather(None if part is None else (len(part), part.shape[1:], part.dtype))
    known = next((form for form in forms if form is not None), None)
    if known is None:
        return None
    mine = torch.empty(0, *known[1], dtype=known[2]) if part is None else part
    return _rows(mine, [0 if form is None else form[0] for form in forms])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        add_up([total])
        return total

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        add_up([total])
        return total


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; its gradient is the sum of theirs."""
    found: Tensor = _Sum.apply(tensor)
    return found
