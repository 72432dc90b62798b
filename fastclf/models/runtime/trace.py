"""A network's forward pass as an ONNX graph: run once, every operation that depends on the input is added.

torch's own exporter, which `fastclf.models.export` uses, takes 1.1 to 10.8 s where this takes .07 to .7 (11 networks,
on a busy machine). Its optimized graph is as fast, but has BatchNorm folded into the weights, so it cannot be kept for
others; not optimized, it runs at .33 of this one's rate (EfficientNet-Lite0) and .72 (ResNet-50). A trace holds for its
image size, whose numbers are part of it (paddings, shapes), and for any number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from fastclf.models.runtime import protobuf
from fastclf.models.runtime.operations import OPERATIONS, UnknownOperationError


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, torch's operations run as ever, and those that depend on the input become nodes of a graph.

    What does not depend on the input is computed once and becomes a constant.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = WeakTensorKeyDictionary()  # tensors that depend on the input -> their name in the graph
        self._constants: dict[int, tuple[str, Tensor]] = {}  # by id; holding the tensor keeps its id from being reused
        self._nodes: list[protobuf.Parts] = []
        self._count = 0
        self.images = 0

    def input(self, x: Tensor) -> None:
        """Declare the input of the network."""
        self.images = len(x)
        self._names[x] = "x"

    def name(self, value: Tensor) -> str:
        """Return what ``value`` is called in the graph; a constant is taken in at its first use."""
        if value in self._names:
            return str(self._names[value])
        if id(value) not in self._constants:
            self._constants[id(value)] = (f"c{len(self._constants)}", value)
        return self._constants[id(value)][0]

    def depends(self, value: object) -> bool:
        """Return whether ``value`` is, or holds, a tensor that depends on the input."""
        if isinstance(value, list | tuple):
            return any(self.depends(part) for part in value)
        return isinstance(value, Tensor) and value in self._names

    def node(
        self, op: str, inputs: Sequence[Tensor | str], n_outputs: int = 1, /, **attributes: protobuf.Attribute
    ) -> list[str]:
        """Add an operation of ONNX's and return its outputs' names."""
        outputs = [f"v{self._count + k}" for k in range(n_outputs)]
        self._count += n_outputs
        names = [value if isinstance(value, str) else self.name(value) for value in inputs]
        self._nodes.append(protobuf.node(op, names, outputs, attributes))
        return outputs

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and add it to the graph where one of its arguments depends on the input."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not any(self.depends(value) for value in (*args, *kwargs.values())):
            return out
        known = func.name().removeprefix("aten::").partition(".")[0].removesuffix("_")
        if known not in OPERATIONS:
            raise UnknownOperationError(f"{func.name()} cannot be written as ONNX")
        names = OPERATIONS[known](self, out, *args, **kwargs)
        values = out if isinstance(out, list | tuple) else [out]
        for value, name in zip(values, names, strict=False):  # what nothing can use (a pool's indices) is unnamed
            self._names[value] = name
        return out

    def model(self, x: Tensor, output: Tensor) -> bytes:
        """Return the ONNX file of what was traced from ``x`` to ``output``."""
        infos = [protobuf.ValueInfo(self.name(value), _dtype(value), ["n", *value.shape[1:]]) for value in (x, output)]
        tensors = (protobuf.tensor(name, _array(value)) for name, value in self._constants.values())
        return protobuf.model(self._nodes, tensors, infos[:1], infos[1:])


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.detach().numpy()
    return array


def trace(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[bytes, Tensor]:
    """Run a network without gradients, and return its ONNX file.

    Args:
        run: the network, in evaluation mode, on the CPU.
        x: its input, a batch ``[B, ...]``.

    Returns:
        An ONNX file that takes any number of inputs like those of ``x``, and the output ``[B, ...]`` for ``x``.

    Raises:
        UnknownOperationError: the network has an operation that is not known here; names it.
    """
    tracer = Tracer()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its one operation is a whole layer
    try:
        # In inference mode, and for what comes from it, torch does not break operations down to the ones known here.
        with torch.inference_mode(False), torch.no_grad():
            x = x.clone()
            tracer.input(x)
            with tracer:
                out = run(x)
            return tracer.model(x, out), out
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
