"""Processes that train together: who this one is among them, and what they tell each other through torch.distributed.

torchrun starts the processes and tells each its rank in the environment. Elsewhere there is one process, rank 0 of 1,
and torch.distributed is not imported. All ranks run the same script, so that every function that waits for others is
called by all of them, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from fastclf.errors import BackendError
from fastclf.report import silence_script

P = ParamSpec("P")
T = TypeVar("T")

_GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MEMBER = "FASTCLF_RANK_PROCESS"  # the process that has joined: what it starts inherits the environment, but no rank
_PATIENCE = timedelta(days=7)  # one rank may work alone for long; that one has died is seen at once, by its connection


def size() -> int:
    """Return how many processes train together; 1 where torchrun has not started this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(name not in os.environ for name in _GIVEN):
        return 1
    return int(os.environ["WORLD_SIZE"]) if os.environ.get(_MEMBER, str(os.getpid())) == str(os.getpid()) else 1


def rank() -> int:
    """Return this process's place among them, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def is_first() -> bool:
    """Return whether this process is alone, or the one that writes files."""
    return rank() == 0


def on_this_machine() -> int:
    """Return how many of the processes share this machine's processors."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if size() > 1 else 1


def gpu() -> torch.device:
    """Return this process's GPU: that of its place on the machine."""
    if size() == 1:
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def share(n: int) -> slice:
    """Return which of ``n`` rows this process works on: consecutive ones, and between them the processes have all."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


@cache
def _joined() -> Any:
    """Return torch.distributed, with the processes connected."""
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus:
            gpu()
        # NCCL wants a GPU for each process; gloo moves tensors between any.
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus >= on_this_machine() else "gloo", timeout=_PATIENCE)
    os.environ[_MEMBER] = str(os.getpid())
    if not is_first():
        silence_script()
    return dist


def _together(function: Callable[P, T]) -> Callable[P, T]:
    """Make an error say that another process has ended, where it says that a connection was closed."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            raise BackendError(
                f"rank {rank()}: another process has ended, and its error is the one to read. Here: {error}"
            ) from None  # the way through torch tells nothing

    return call


@_together
def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        _joined().all_reduce(torch.zeros(1, dtype=torch.int64))


@_together
def gather(value: T) -> list[T]:
    """Return what each process has given, by rank."""
    found: list[Any] = [None] * size()
    _joined().all_gather_object(found, value)
    return found


def agreed(*numbers: int) -> list[int]:
    """Return the largest of what the processes have given, for each number: what all act on."""
    return [int(number) for number in _largest(torch.tensor(numbers, dtype=torch.int64))]


@_together
def _largest(numbers: Tensor) -> Tensor:
    dist = _joined()
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers


def from_first(compute: Callable[[], T]) -> T:
    """Return what the first process computes, in all of them."""
    if size() == 1:
        return compute()
    return _sent(compute() if is_first() else None)  # type: ignore[return-value]


@_together
def _sent(value: T) -> T:
    found = [value]
    _joined().broadcast_object_list(found, src=0)
    return found[0]


@_together
def take_from_first(module: nn.Module) -> None:
    """Let the tensors of a module be those of the first process."""
    if size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            there = tensor.detach().contiguous()
            _joined().broadcast(there.reshape(-1).view(torch.uint8), src=0)  # bytes, as it may hold any kind of number
            tensor.detach().copy_(there)


@_together
def add_up(tensors: Sequence[Tensor]) -> None:
    """Let each tensor be the sum over all processes; they are sent in one message."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    _joined().all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def counts(n: int) -> list[int]:
    """Return how many rows each process has, by rank."""
    mine = torch.zeros(size(), dtype=torch.int64)
    mine[rank()] = n
    return _largest(mine).tolist()


@_together
def _rows(part: Tensor, sizes: Sequence[int]) -> Tensor:
    padded = part.new_zeros(max(sizes), *part.shape[1:])
    padded[: len(part)] = part
    found = [torch.empty_like(padded) for _ in sizes]
    _joined().all_gather(found, padded)
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


@contextmanager
def first_goes_first() -> Iterator[None]:
    """Let the first process run a block alone, then the others, who find on disk what it has made."""
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def check_same(call: str, setting: Mapping[str, Any]) -> None:
    """Raise ValueError where the processes are about to do different things; names what differs."""
    described = {key: str(value) for key, value in setting.items()}
    first, *others = gather(described)
    for number, other in enumerate(others, 1):
        differing = [key for key in {**first, **other} if first.get(key) != other.get(key)]
        if differing:
            key = differing[0]
            raise ValueError(
                f"{call}: all ranks must have the same setting, got differing {', '.join(differing)}. {key}: "
                f"{first.get(key, 'none'):.60} on rank 0, {other.get(key, 'none'):.60} on rank {number}. "
                "Run one script on one copy of the data."
            )
