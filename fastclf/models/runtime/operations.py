"""torch's operations in terms of ONNX's: those of convolutional networks and of heads.

Each function gets the recorder, what torch computed, and torch's own arguments, and returns the names of what ONNX
computes in its place. torch: ``native_functions.yaml``; ONNX: https://onnx.ai/onnx/operators, opset 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastclf.models.runtime import protobuf

if TYPE_CHECKING:
    from fastclf.models.runtime.record import Recorder

Names = list[str]
OPERATIONS: dict[str, Callable[..., Names]] = {}


class UnknownOperationError(Exception):
    """A network does something that has no counterpart here."""


def _writes(*names: str) -> Callable[[Callable[..., Names]], Callable[..., Names]]:
    def add(write: Callable[..., Names]) -> Callable[..., Names]:
        OPERATIONS.update(dict.fromkeys(names, write))
        return write

    return add


def _needs(condition: bool, what: str) -> None:
    if not condition:
        raise UnknownOperationError(f"{what} is not known to it")


def _pair(values: Sequence[int]) -> list[int]:
    return list(values) * 2 if len(values) == 1 else list(values)


def _given(value: Tensor | None) -> list[Tensor]:
    return [] if value is None else [value]


# Layers with weights


@_writes("convolution")
def _convolution(
    graph: Recorder,
    _out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
) -> Names:
    _needs(not transposed and x.ndim == 4, "a transposed convolution, or one of other than two dimensions,")
    sizes = {"strides": _pair(stride), "pads": _pair(padding) * 2, "dilations": _pair(dilation)}
    return graph.node("Conv", [x, weight, *_given(bias)], **sizes, group=groups)


@_writes("native_batch_norm")
def _batch_norm(
    graph: Recorder,
    _out: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    _momentum: float,
    eps: float,
) -> Names:
    _needs(not training and mean is not None and var is not None, "BatchNorm by the batch's own statistics")
    assert mean is not None
    assert var is not None
    weight, bias = torch.ones_like(mean) if weight is None else weight, torch.zeros_like(mean) if bias is None else bias
    return graph.node("BatchNormalization", [x, weight, bias, mean, var], epsilon=eps)


@_writes("native_layer_norm")
def _layer_norm(
    graph: Recorder, _out: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Names:
    weight = torch.ones(shape) if weight is None else weight
    return graph.node("LayerNormalization", [x, weight, *_given(bias)], axis=-len(shape), epsilon=eps)


@_writes("addmm")
def _addmm(graph: Recorder, _out: Tensor, bias: Tensor, x: Tensor, weight: Tensor, **scales: float) -> Names:
    _needs(not scales, "a scaled product")
    return graph.node("Gemm", [x, weight, bias])


@_writes("mm", "bmm")
def _product(graph: Recorder, _out: Tensor, a: Tensor, b: Tensor) -> Names:
    return graph.node("MatMul", [a, b])


# Element by element


def _same(op: str, **attributes: float) -> Callable[..., Names]:
    def write(graph: Recorder, _out: Tensor, x: Tensor) -> Names:
        return graph.node(op, [x], **attributes)

    return write


OPERATIONS |= {
    "relu": _same("Relu"),
    "sigmoid": _same("Sigmoid"),
    "hardswish": _same("HardSwish"),
    "hardsigmoid": _same("HardSigmoid", alpha=1 / 6, beta=0.5),
}


@_writes("silu")
def _silu(graph: Recorder, _out: Tensor, x: Tensor) -> Names:
    return graph.node("Mul", [x, *graph.node("Sigmoid", [x])])


@_writes("gelu")
def _gelu(graph: Recorder, _out: Tensor, x: Tensor, *, approximate: str = "none") -> Names:
    return graph.node("Gelu", [x], approximate=approximate)


@_writes("hardtanh")
def _hardtanh(graph: Recorder, _out: Tensor, x: Tensor, low: float = -1.0, high: float = 1.0) -> Names:
    return graph.node("Clip", [x, torch.tensor(float(low)), torch.tensor(float(high))])


def _arithmetic(op: str) -> Callable[..., Names]:
    def write(graph: Recorder, out: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Names:
        _needs(alpha == 1, "a scaled sum")
        _needs(out.dtype is torch.float32, f"{op} of {out.dtype}")
        return graph.node(op, [v if isinstance(v, Tensor) else torch.tensor(float(v)) for v in (a, b)])

    return write


OPERATIONS |= {
    "add": _arithmetic("Add"),
    "sub": _arithmetic("Sub"),
    "mul": _arithmetic("Mul"),
    "div": _arithmetic("Div"),
}


def _softmax(op: str) -> Callable[..., Names]:
    def write(graph: Recorder, _out: Tensor, x: Tensor, dim: int, _half_to_float: bool) -> Names:
        return graph.node(op, [x], axis=dim)

    return write


OPERATIONS |= {"_softmax": _softmax("Softmax"), "_log_softmax": _softmax("LogSoftmax")}


@_writes("_to_copy")
def _to_float(graph: Recorder, out: Tensor, x: Tensor, **_: Any) -> Names:
    _needs(out.dtype is torch.float32, f"a conversion to {out.dtype}")
    return graph.node("Cast", [x], to=protobuf.TYPES["float32"])


# Pools


def _over_positions(op: str) -> Callable[..., Names]:
    def write(graph: Recorder, _out: Tensor, x: Tensor, dim: list[int], keepdim: bool = False) -> Names:
        _needs(x.ndim == 4 and sorted(d % 4 for d in dim) == [2, 3], "a reduction over other than all positions")
        pooled = graph.node(op, [x])
        return pooled if keepdim else graph.node("Flatten", pooled)

    return write


OPERATIONS |= {"mean": _over_positions("GlobalAveragePool"), "amax": _over_positions("GlobalMaxPool")}


@_writes("max_pool2d_with_indices")
def _max_pool(
    graph: Recorder,
    _out: Any,
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Names:
    sizes = {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel), "pads": _pair(padding) * 2}
    return graph.node("MaxPool", [x], **sizes, dilations=_pair(dilation), ceil_mode=int(ceil_mode))


@_writes("avg_pool2d")
def _average_pool(
    graph: Recorder,
    _out: Tensor,
    x: Tensor,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Names:
    _needs(divisor is None, "an average with a divisor of its own")
    sizes = {"kernel_shape": _pair(kernel), "strides": _pair(stride or kernel), "pads": _pair(padding) * 2}
    return graph.node("AveragePool", [x], **sizes, ceil_mode=int(ceil_mode), count_include_pad=int(count_include_pad))


# Shapes


@_writes("cat")
def _cat(graph: Recorder, _out: Tensor, parts: list[Tensor], dim: int = 0) -> Names:
    return graph.node("Concat", parts, axis=dim)


@_writes("split", "split_with_sizes")
def _split(graph: Recorder, out: list[Tensor], x: Tensor, _sizes: Any, dim: int = 0) -> Names:
    sizes = torch.tensor([part.shape[dim] for part in out])
    return graph.node("Split", [x, sizes], len(out), axis=dim)


@_writes("view", "_unsafe_view")
def _view(graph: Recorder, out: Tensor, x: Tensor, _size: list[int]) -> Names:
    # Where the number of pictures is part of a size, it is part of the first.
    return graph.node("Reshape", [x, torch.tensor([-1, *out.shape[1:]])])


@_writes("permute", "transpose", "t")
def _permute(graph: Recorder, _out: Tensor, x: Tensor, *dims: Any) -> Names:
    order = list(range(x.ndim))
    if len(dims) == 1:  # permute
        order = [d % x.ndim for d in dims[0]]
    else:
        i, j = dims or (0, 1)
        order[i], order[j] = order[j], order[i]
    return graph.node("Transpose", [x], perm=order)


@_writes("constant_pad_nd")
def _pad(graph: Recorder, _out: Tensor, x: Tensor, pads: list[int], value: float = 0) -> Names:
    before, after = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(range(x.ndim - 1, x.ndim - 1 - len(pads) // 2, -1)):
        before[axis], after[axis] = pads[2 * k : 2 * k + 2]
    return graph.node("Pad", [x, torch.tensor(before + after), torch.tensor(float(value))])


@_writes("clone", "detach", "alias")
def _unchanged(graph: Recorder, _out: Tensor, x: Tensor, **_: Any) -> Names:
    return [graph.name(x)]


@_writes("as_strided")
def _strided(graph: Recorder, _out: Tensor, x: Tensor, size: list[int], _strides: list[int], *_: int) -> Names:
    """What a pool to one position does to its result in channels last: other strides, the same values."""
    _needs(size[2:] == [1, 1], "a view by strides")
    return [graph.name(x)]
