"""What a program has set in torch and numpy for all that runs in it, and what must not change results here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock

import numpy as np
import torch

_default_dtype = RLock()


@contextmanager
def own_settings() -> Iterator[None]:
    """Compute as in a program that has set nothing: each of these is one thread's, and comes back afterwards.

    No ``torch.set_default_device``, for tensors that belong on the CPU. No ``torch.inference_mode``, whose tensors can
    never have gradients. No ``torch.autocast``, which rounds. No ``np.seterr(all="raise")``, for which a probability of
    1e-50 is an error. What is not set is not touched: a mode costs a little in each of torch's calls.
    """
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(np.errstate(all="warn", under="ignore"))  # numpy's own
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
