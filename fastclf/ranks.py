"""Processes that train together: who this one is among them, and what they tell each other through torch.distributed.

torchrun starts the processes and tells each its rank in the environment. Elsewhere there is one process, rank 0 of 1,
and torch is not imported; `rank_tensors` has what takes tensors. All ranks run the same script, so that every function
that waits for others is called by all of them, in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from fastclf.errors import BackendError
from fastclf.report import silence_script

if TYPE_CHECKING:
    import torch

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
    import torch

    if size() == 1:
        return torch.device("cuda")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def share(n: int) -> slice:
    """Return which of ``n`` rows this process works on: consecutive ones, and between them the processes have all."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


@cache
def joined() -> Any:
    """Return torch.distributed, with the processes connected."""
    import torch
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


def together(function: Callable[P, T]) -> Callable[P, T]:
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


def wait() -> None:
    """Wait until all processes are here."""
    if size() > 1:
        agreed(0)


@together
def gather(value: T) -> list[T]:
    """Return what each process has given, by rank."""
    found: list[Any] = [None] * size()
    joined().all_gather_object(found, value)
    return found


def agreed(*numbers: int) -> list[int]:
    """Return the largest of what the processes have given, for each number: what all act on."""
    import torch

    return [int(number) for number in largest(torch.tensor(numbers, dtype=torch.int64))]


@together
def largest(numbers: torch.Tensor) -> torch.Tensor:
    """Return the largest of the processes' numbers, each by itself, in the tensor that is given."""
    dist = joined()
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers


def from_first(compute: Callable[[], T]) -> T:
    """Return what the first process computes, in all of them."""
    if size() == 1:
        return compute()
    return _sent(compute() if is_first() else None)  # type: ignore[return-value]


@together
def _sent(value: T) -> T:
    found = [value]
    joined().broadcast_object_list(found, src=0)
    return found[0]


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
