"""What a program has set in torch for all that runs in it, and what must not reach this library's own tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

import torch

_default_dtype = RLock()


@contextmanager
def own_tensors() -> Iterator[None]:
    """Make tensors on the CPU unless told otherwise, and such as can be trained.

    That is, without ``torch.set_default_device``, and outside of ``torch.inference_mode``, whose tensors can never have
    gradients. Both belong to one thread. Where nothing of the kind is set nothing happens: a mode costs a little in
    each of torch's calls.
    """
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        yield


@contextmanager
def float32_networks() -> Iterator[None]:
    """Let builders of networks, which take no type, make float32, whatever ``torch.set_default_dtype`` has set.

    That type is one of the whole process: other threads see the change for as long as a network is being built.
    """
    with _default_dtype:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
