"""How a GPU's images are decoded fastest on this machine: measured once on some of them, then cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from fastclf.autotune import autotune, cached
from fastclf.data.decode.decode_error import DecodeError
from fastclf.threads import available_processors

M = TypeVar("M")


@dataclass(frozen=True)
class Tuning:
    """What can be set.

    Attributes:
        num_threads: processor threads, which decode what the decoding engine does not.
        hw_decoder_load: share of JPEGs for the GPU's decoding engine, where it has one; the others go to its cores.
        ahead: batches in the making while one is used.
        on_processor: whether the processor decodes everything.
        by_graph: whether DALI makes the crops, too; else the native renderer does.
    """

    num_threads: int
    hw_decoder_load: float = 0.75  # the fastest on an A100 (DALI issue 5362)
    ahead: int = 2
    on_processor: bool = False
    by_graph: bool = False


def candidates(num_threads: int) -> list[Tuning]:
    """What is tried: a first guess, and each of its values changed by itself; a processor decodes on all threads."""
    first = Tuning(num_threads)
    others = [replace(first, hw_decoder_load=load) for load in (0.0, 0.9)]
    most = max(num_threads, available_processors())
    if most > num_threads:
        others.append(replace(first, num_threads=most))
    others += [replace(first, ahead=4), replace(first, by_graph=True)]
    return [first, *others, replace(first, num_threads=most, on_processor=True)]


def fastest(
    situation: Mapping[str, Any],
    num_threads: int,
    build: Callable[[Tuning], M],
    work: Callable[[M], object],
    *,
    pays: bool = True,
) -> M:
    """Build what decodes fastest.

    Args:
        situation: all that the choice depends on, but for the number of threads.
        num_threads: as asked for.
        build: makes a decoder.
        work: runs some batches through one.
        pays: whether there are images enough for a measurement; else the first guess is taken where nothing is known.
    """
    known = {str(tuning): tuning for tuning in candidates(num_threads)}
    first = next(iter(known))
    situation = {**situation, "threads": num_threads, "processors": available_processors()}
    chosen = cached(situation)
    if chosen in known or not pays:
        return build(known.get(chosen or "", known[first]))
    made = {name: build(tuning) for name, tuning in known.items()}
    try:
        for one in made.values():
            work(one)
    except DecodeError:  # an image is bad, and will be named when its batch comes
        return build(known[first])
    return made[autotune(situation, {name: partial(work, one) for name, one in made.items()}, default=first)]
