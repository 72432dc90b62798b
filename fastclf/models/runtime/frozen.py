"""A body that runs without gradients: through another runtime where that is faster and agrees, else in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fastclf.choice import choose, processor, remembered
from fastclf.models.body import Body
from fastclf.models.runtime.engines import ENGINES, Run, installed
from fastclf.models.runtime.record import record
from fastclf.models.runtime.state import Layers, checksum, layers_of

TOLERANCE = 1e-4  # of a feature, or of the mean feature where that is larger
_MEASURED = 8  # pictures
_TORCH = "torch"
_said: set[str] = set()


class FrozenBody:
    """Pooled features of pictures, for as long as nothing of the body that computes them changes.

    At the first batch of a picture size the body is recorded as an ONNX file and the runtimes get it; their features
    are compared with torch's, and the fastest way is kept. A change of any weight, statistic, layer, setting, size or
    number of threads is noticed before the next batch, and the body is recorded again.
    """

    def __init__(self) -> None:
        self._form: tuple[Layers, tuple[int, ...], int] | None = None
        self._values = 0
        self._run: Run | None = None

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles start anew: a runtime cannot be copied."""
        return FrozenBody().__dict__

    def release(self) -> None:
        """Lets the runtime and its copy of the weights go."""
        self._form, self._run = None, None

    def features(self, body: Body, pool: nn.Module, x: Tensor) -> Tensor:
        """Features ``[B, 2C]`` of pictures ``x [B, 3, h, w]``."""

        def eager(pictures: Tensor) -> Tensor:
            out: Tensor = pool(body(pictures))
            return out

        modules = [*body.modules(), *pool.modules()]
        if any(module.training for module in body.modules()) or not _takes(modules, x):
            self.release()
            return eager(x)
        form = layers_of(modules), tuple(x.shape[1:]), torch.get_num_threads()
        if form != self._form:
            self._build(form, checksum(modules), body, eager, x)
        elif self._run is not None and (values := checksum(modules)) != self._values:
            self._build(form, values, body, eager, x)
        return eager(x) if self._run is None else self._run(x)

    def _build(self, form: tuple[Layers, tuple[int, ...], int], values: int, body: Body, eager: Run, x: Tensor) -> None:
        self.release()
        with torch.no_grad():
            self._run = _fastest(body, eager, x.detach())
        self._form, self._values = form, values


def _takes(modules: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether features of ``x`` need nothing of torch but their values: no gradients, hooks or tracing."""
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype is not torch.float32 or x.ndim != 4 or not len(x):
        return False
    if _get_current_dispatch_mode() is not None or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    gradients = torch.is_grad_enabled()
    if gradients and x.requires_grad:
        return False
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            if parameter.dtype is not torch.float32 or (gradients and parameter.requires_grad):
                return False
    return True


def _fastest(body: Body, eager: Run, x: Tensor) -> Run | None:
    """The fastest way to compute what ``eager`` computes for pictures like ``x``; None where it is ``eager``."""
    runtimes = installed()
    if not runtimes:
        _say("onnxruntime is not installed; it is faster (pip install onnxruntime)")
        return None
    situation = {
        "arch": body.arch,
        "pictures": list(x.shape[1:]),
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "versions": {"torch": torch.__version__, **runtimes},
    }
    known = remembered(situation)
    if known == _TORCH:
        return None
    agreeing = _agreeing(eager, x, [known] if known in runtimes else list(runtimes))
    if known in agreeing or not agreeing:
        return agreeing.get(known or "")
    few = x.repeat(-(-_MEASURED // len(x)), 1, 1, 1)[:_MEASURED]  # as many whatever came first
    ways = {name: _bind(run, few) for name, run in {_TORCH: eager, **agreeing}.items()}
    return agreeing.get(choose(situation, ways, default=next(iter(agreeing))))


def _bind(run: Run, x: Tensor) -> Callable[[], Tensor]:
    return lambda: run(x)


def _agreeing(eager: Run, x: Tensor, runtimes: Sequence[str]) -> dict[str, Run]:
    """Builds ``runtimes`` and keeps those that give ``eager``'s features of a picture and of noise.

    The recorded batch has three pictures; one and two are compared, so that a batch size that became part of the
    recording shows.
    """
    noise = torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(0))
    probe = torch.cat([x[:1], noise])
    agreeing: dict[str, Run] = {}
    try:
        model, expected = record(eager, probe)
    except Exception as error:  # networks of any kind come here, and torch is always there to run them
        _say(f"it cannot be recorded for {' or '.join(runtimes)}: {error}")
        return agreeing
    for name in runtimes:
        try:
            run = ENGINES[name](model, torch.get_num_threads())
            found = torch.cat([run(probe[:2]), run(probe[2:])])
        except Exception as error:  # a runtime raises what it likes
            _say(f"{name} does not take it: {error}")
            continue
        worst = difference(found, expected)
        if worst <= TOLERANCE:
            agreeing[name] = run
        else:
            _say(f"{name} computes other features", f" (relative difference {worst:.1e})")
    return agreeing


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of a feature or of the mean feature where that is larger."""
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.abs().clamp_min(float(expected.abs().mean()))
    return float(((found - expected).abs() / scale).max())


def _say(reason: str, detail: str = "") -> None:
    """Prints a reason once in a process, whatever the detail: a body in training has another one in every epoch."""
    text = f"the body runs in torch: {' '.join(reason.split())[:300]}"
    if text not in _said:
        _said.add(text)
        print(text + detail)
