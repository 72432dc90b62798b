"""A body that runs without gradients.

On a processor that is through another runtime where that is faster and agrees, else in torch; on a GPU see `on_gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastclf.autotune import autotune, cached, processor
from fastclf.calls import starts_threads
from fastclf.models.body import Body
from fastclf.models.runtime.checksum import Layers, checksum, layers_of
from fastclf.models.runtime.engines import ENGINES, Run, installed
from fastclf.models.runtime.on_gpu import SteadyBatches
from fastclf.models.runtime.trace import trace
from fastclf.report import log_once

TOLERANCE = 1e-4  # of a feature, or of the mean feature where that is larger
_MEASURED = 8  # images
_TORCH = "torch"


class FrozenBody:
    """Pooled features of images, for as long as nothing of the body that computes them changes.

    At the first batch of an image size the body is traced into an ONNX file and the runtimes get it; their features
    are compared with torch's, and the fastest way is kept. A change of any weight, statistic, layer, setting, size or
    number of threads is noticed before the next batch, and the body is traced again: what runs it depends on what it
    is now, not on what it was before.
    """

    def __init__(self) -> None:
        self._form: tuple[Layers, tuple[int, ...], int] | None = None
        self._values: int | None = None  # None where torch runs it, whatever the values
        self._run: Run | None = None
        self._on_gpu = SteadyBatches()

    def __getstate__(self) -> dict[str, object]:
        """Return a new object's state, for copies and pickles: a runtime cannot be copied."""
        return FrozenBody().__dict__

    def release(self) -> None:
        """Drop the runtime and its copy of the weights."""
        self._form, self._run = None, None

    def features(self, body: Body, x: Tensor) -> Tensor:
        """Return features ``[B, F]`` of images ``x [B, 3, h, w]``."""
        starts_threads("features")
        if not len(x):  # a process that has no image of a batch
            return _in_torch(body, x)
        modules = list(body.modules())
        evaluating = not any(module.training for module in modules)
        if not evaluating or not _takes(modules, x):
            self.release()
            if evaluating and _is_on_gpu(x) and _needs_values_alone(modules, x):
                return self._on_gpu(partial(_in_torch, body), x, modules)
            return _in_torch(body, x)
        form = layers_of(modules), tuple(x.shape[1:]), torch.get_num_threads()
        if form != self._form or (self._values is not None and self._values != checksum(modules)):
            self.release()
            with torch.no_grad():
                self._run, by_values = _fastest(body, x.detach())
            self._form, self._values = form, checksum(modules) if by_values else None
        return _in_torch(body, x) if self._run is None else self._run(x)


def _in_torch(body: Body, x: Tensor) -> Tensor:
    out: Tensor = body(x)
    return out


def _takes(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Return whether another runtime could compute features of ``x``: on a processor, in float32, as values alone."""
    if x.device.type != "cpu" or x.dtype is not torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    tensors = (p for module in modules for p in module._parameters.values() if p is not None)
    return all(p.dtype is torch.float32 for p in tensors) and _needs_values_alone(modules, x)


def _is_on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _needs_values_alone(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Return whether features of ``x`` need nothing of torch but their values: no gradients, hooks or tracing."""
    if type(x) is not Tensor or x.ndim != 4 or not len(x):
        return False
    if _get_current_dispatch_mode() is not None or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    gradients = torch.is_grad_enabled()
    if gradients and x.requires_grad:
        return False
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        if gradients and any(p is not None and p.requires_grad for p in module._parameters.values()):
            return False
    return True


def _fastest(body: Body, x: Tensor) -> tuple[Run | None, bool]:
    """Find the fastest way to compute the body's features of images like ``x``; None where it is torch.

    And whether the answer could be another one for other values of the weights and statistics.
    """
    runtimes = installed()
    if not runtimes:
        _log(body, "onnxruntime is not installed (pip install onnxruntime)")
        return None, False
    situation = {
        "arch": body.arch,
        "pictures": list(x.shape[1:]),  # a key on disk: another would have every machine measure again
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": {"torch": torch.__version__, **runtimes},
    }
    known = cached(situation)
    if known == _TORCH:
        return None, False
    eager: Run = partial(_in_torch, body)
    compared = _compared(body, x, [known] if known in runtimes else list(runtimes))
    agreeing = {name: run for name, run in compared.items() if run is not None}
    if known in agreeing or not agreeing:
        return agreeing.get(known or ""), bool(compared)
    few = x.repeat(-(-_MEASURED // len(x)), 1, 1, 1)[:_MEASURED]  # as many whatever came first
    ways = {name: _bind(run, few) for name, run in {_TORCH: eager, **agreeing}.items()}
    run = agreeing.get(autotune(situation, ways, default=next(iter(agreeing))))
    return run, run is not None


def _bind(run: Run, x: Tensor) -> Callable[[], Tensor]:
    return lambda: run(x)


def _compared(body: Body, x: Tensor, runtimes: Sequence[str]) -> dict[str, Run | None]:
    """Build those of ``runtimes`` that take the body: None for one that gives other features than torch.

    They are compared on synthetic images, the same ones every time: whatever image comes first, the same runtime is
    chosen. The traced batch has three; one and two are compared, so that a batch size that became part of it shows.
    """
    probe = _synthetic_images(3, x.shape[1:])
    compared: dict[str, Run | None] = {}
    try:
        model, expected = trace(partial(_in_torch, body), probe)
    except Exception as error:  # networks of any kind come here, and torch is always there to run them
        _log(body, f"{' or '.join(runtimes)} cannot run it: {error}")
        return compared
    for name in runtimes:
        try:
            run = ENGINES[name](model, torch.get_num_threads())
            found = torch.cat([run(probe[:2]), run(probe[2:])])
        except Exception as error:  # a runtime raises what it likes
            _log(body, f"{name} does not take it: {error}")
            continue
        worst = difference(found, expected)
        compared[name] = run if worst <= TOLERANCE else None
        if compared[name] is None:
            _log(body, f"{name} computes other features", f" (by {worst:.1e})")
    return compared


def _synthetic_images(n: int, shape: Sequence[int]) -> Tensor:
    """Noise ``[n, *shape]``, mean 0 and deviation 1, with as much of it in every octave, as in photographs.

    Their amplitudes fall with the frequency (Field, 1987, "Relations between the statistics of natural images and the
    response properties of cortical cells"). In white noise nearly all lies in the finest octave, where the features of
    convolutions lose digits that no photograph makes them lose.
    """
    generator = torch.Generator().manual_seed(0)
    longest = max(shape[1:])
    octaves = []
    for octave in range(longest.bit_length()):
        coarse = torch.randn(n, shape[0], 2**octave, 2**octave, dtype=torch.float32, generator=generator)
        fine = functional.interpolate(coarse, list(shape[1:]), mode="bilinear")
        octaves.append(fine / fine.std())
    total = torch.stack(octaves).sum(0)
    return (total - total.mean()) / total.std()


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, of a feature or of the mean feature where that is larger."""
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.abs().clamp_min(float(expected.abs().mean()))
    return float(((found - expected).abs() / scale).max())


def _log(body: Body, reason: str, detail: str = "") -> None:
    """Log once in a process why a frozen body is slower than it could be.

    Not of one that trains: it runs in torch most of the time anyway.
    """
    text = f"{body.arch} runs in torch, with the same results, but slower: {' '.join(reason.split())[:300]}"
    if not any(parameter.requires_grad for parameter in body.parameters()):
        log_once(text + detail, key=text)
