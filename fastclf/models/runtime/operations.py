"""torch's operations in terms of ONNX's: those of convolutional networks, of transformers and of heads.

Each function gets the tracer, what torch computed, and torch's own arguments, and returns the names of what ONNX
computes in its place. torch: ``native_functions.yaml``; ONNX: https://onnx.ai/onnx/operators, opset 20.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastclf.models.runtime import protobuf

if TYPE_CHECKING:
    from fastclf.models.runtime.trace import Tracer

Names = list[str]
OPERATIONS: dict[str, Callable[..., Names]] = {}


class UnknownOperationError(Exception):
    """A network has an operation without a counterpart here."""


def _writes(*names: str) -> Callable[[Callable[..., Names]], Callable[..., Names]]:
    def add(write: Callable[..., Names]) -> Callable[..., Names]:
        OPERATIONS.update(dict.fromkeys(names, write))
        return write

    return add


def _needs(condition: bool, what: str) -> None:
    if not condition:
        raise UnknownOperationError(f"{what} cannot be written as ONNX")


def _pair(values: Sequence[int]) -> list[int]:
    return list(values) * 2 if len(values) == 1 else list(values)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32)


def _broadcast(graph: Tracer, out: Tensor, value: Tensor) -> Tensor:
    """Return a constant that is the same for every image, such as an expanded token, as one row for all of them."""
    if graph.depends(value) or value.ndim != out.ndim or not 1 < value.shape[0] == out.shape[0]:
        return value
    return value[:1] if bool((value == value[:1]).all()) else value


def _given(value: Tensor | None) -> list[Tensor]:
    return [] if value is None else [value]


# Layers with weights


@_writes("convolution")
def _convolution(
    graph: Tracer,
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
    graph: Tracer,
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
    graph: Tracer, _out: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Names:
    weight = torch.ones(shape, dtype=torch.float32) if weight is None else weight
    return graph.node("LayerNormalization", [x, weight, *_given(bias)], axis=-len(shape), epsilon=eps)


@_writes("addmm")
def _addmm(graph: Tracer, _out: Tensor, bias: Tensor, x: Tensor, weight: Tensor, **scales: float) -> Names:
    _needs(not scales, "a scaled product")
    return graph.node("Gemm", [x, weight, bias])


@_writes("mm", "bmm")
def _product(graph: Tracer, _out: Tensor, a: Tensor, b: Tensor) -> Names:
    return graph.node("MatMul", [a, b])


@_writes("_scaled_dot_product_flash_attention_for_cpu")
def _attention(
    graph: Tracer,
    out: tuple[Tensor, ...],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _dropout: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> Names:
    _needs(not is_causal, "causal attention")
    query, key, value = (_broadcast(graph, out[0], x) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scaled = graph.node("Mul", [query, _number(scale)])
    scores = graph.node("MatMul", [*scaled, *graph.node("Transpose", [key], perm=[0, 1, 3, 2])])
    if attn_mask is not None:
        scores = graph.node("Add", [*scores, attn_mask])
    return graph.node("MatMul", [*graph.node("Softmax", scores, axis=-1), value])


# Element by element


def _same(op: str, **attributes: float) -> Callable[..., Names]:
    def write(graph: Tracer, _out: Tensor, x: Tensor) -> Names:
        return graph.node(op, [x], **attributes)

    return write


OPERATIONS |= {
    "relu": _same("Relu"),
    "neg": _same("Neg"),
    "tanh": _same("Tanh"),
    "sigmoid": _same("Sigmoid"),
    "hardswish": _same("HardSwish"),
    "hardsigmoid": _same("HardSigmoid", alpha=1 / 6, beta=0.5),
}


@_writes("silu")
def _silu(graph: Tracer, _out: Tensor, x: Tensor) -> Names:
    return graph.node("Mul", [x, *graph.node("Sigmoid", [x])])


@_writes("gelu")
def _gelu(graph: Tracer, _out: Tensor, x: Tensor, *, approximate: str = "none") -> Names:
    return graph.node("Gelu", [x], approximate=approximate)


@_writes("clamp_min")
def _at_least(graph: Tracer, _out: Tensor, x: Tensor, low: float) -> Names:
    return graph.node("Clip", [x, _number(low)])


@_writes("pow")
def _power(graph: Tracer, _out: Tensor, x: Tensor, exponent: float) -> Names:
    _needs(exponent == 2, f"the power {exponent}")
    return graph.node("Mul", [x, x])


@_writes("hardtanh")
def _hardtanh(graph: Tracer, _out: Tensor, x: Tensor, low: float = -1.0, high: float = 1.0) -> Names:
    return graph.node("Clip", [x, _number(low), _number(high)])


def _arithmetic(op: str) -> Callable[..., Names]:
    def write(graph: Tracer, out: Tensor, a: Any, b: Any, *, alpha: float = 1) -> Names:
        _needs(alpha == 1, "a scaled sum")
        _needs(out.dtype is torch.float32, f"{op} of {out.dtype}")
        operands = (v if isinstance(v, Tensor) else _number(v) for v in (a, b))
        return graph.node(op, [_broadcast(graph, out, v) for v in operands])

    return write


OPERATIONS |= {
    "add": _arithmetic("Add"),
    "sub": _arithmetic("Sub"),
    "mul": _arithmetic("Mul"),
    "div": _arithmetic("Div"),
}


def _softmax(op: str) -> Callable[..., Names]:
    def write(graph: Tracer, _out: Tensor, x: Tensor, dim: int, *_: Any) -> Names:
        return graph.node(op, [x], axis=dim)

    return write


OPERATIONS |= dict.fromkeys(("_softmax", "_safe_softmax"), _softmax("Softmax"))
OPERATIONS |= {"_log_softmax": _softmax("LogSoftmax")}


@_writes("_to_copy")
def _to_float(graph: Tracer, out: Tensor, x: Tensor, **_: Any) -> Names:
    _needs(out.dtype is torch.float32, f"a conversion to {out.dtype}")
    return graph.node("Cast", [x], to=protobuf.TYPES["float32"])


# Pools


def _reduced(op: str, over_positions: str | None = None) -> Callable[..., Names]:
    def write(graph: Tracer, _out: Tensor, x: Tensor, dim: list[int], keepdim: bool = False, **_: Any) -> Names:
        axes = sorted(d % x.ndim for d in dim)
        if over_positions is None or x.ndim != 4 or axes != [2, 3]:
            return graph.node(op, [x, torch.tensor(axes)], keepdims=int(keepdim))
        pooled = graph.node(over_positions, [x])
        return pooled if keepdim else graph.node("Flatten", pooled)

    return write


OPERATIONS |= {
    "mean": _reduced("ReduceMean", "GlobalAveragePool"),
    "amax": _reduced("ReduceMax", "GlobalMaxPool"),
    "sum": _reduced("ReduceSum"),
}


@_writes("linalg_vector_norm")
def _norm(graph: Tracer, _out: Tensor, x: Tensor, order: float, dim: list[int], keepdim: bool = False) -> Names:
    _needs(order == 2, f"the norm of order {order}")
    return graph.node("ReduceL2", [x, torch.tensor(dim)], keepdims=int(keepdim))


@_writes("max_pool2d_with_indices")
def _max_pool(
    graph: Tracer,
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
    graph: Tracer,
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
def _cat(graph: Tracer, out: Tensor, parts: list[Tensor], dim: int = 0) -> Names:
    names = [graph.name(_broadcast(graph, out, part)) for part in parts]
    if dim % out.ndim:  # tokens that are constants go to each image
        rows = graph.node("Shape", [next(part for part in parts if graph.depends(part))], start=0, end=1)
        rows = graph.node("Concat", [*rows, torch.ones(out.ndim - 1, dtype=torch.int64)], axis=0)
        pairs = zip(names, parts, strict=True)
        names = [name if graph.depends(part) else graph.node("Expand", [name, *rows])[0] for name, part in pairs]
    return graph.node("Concat", names, axis=dim)


@_writes("stack")
def _stack(graph: Tracer, out: Tensor, parts: list[Tensor], dim: int = 0) -> Names:
    axis = torch.tensor([dim % out.ndim])
    names = [name for part in parts for name in graph.node("Unsqueeze", [part, axis])]
    return graph.node("Concat", names, axis=dim % out.ndim)


@_writes("select")
def _select(graph: Tracer, _out: Tensor, x: Tensor, dim: int, index: int) -> Names:
    return graph.node("Gather", [x, torch.tensor(index % x.shape[dim])], axis=dim)


@_writes("unbind")
def _unbind(graph: Tracer, out: list[Tensor], x: Tensor, dim: int = 0) -> Names:
    return [_select(graph, part, x, dim, index)[0] for index, part in enumerate(out)]


def _slice_of(graph: Tracer, x: Tensor | str, dim: int, start: int, end: int, step: int = 1) -> Names:
    return graph.node("Slice", [x, *(torch.tensor([n]) for n in (start, end, dim, step))])


@_writes("slice")
def _slice(
    graph: Tracer,
    _out: Tensor,
    x: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Names:
    return _slice_of(graph, x, dim, start or 0, x.shape[dim] if end is None else end, step)


@_writes("roll")
def _roll(graph: Tracer, _out: Tensor, x: Tensor, shifts: list[int], dims: list[int]) -> Names:
    names = [graph.name(x)]
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        first = -shift % size  # which of them comes to the front
        parts = [_slice_of(graph, names[0], dim, *ends)[0] for ends in ((first, size), (0, first))]
        names = graph.node("Concat", parts, axis=dim)
    return names


@_writes("expand")
def _expand(graph: Tracer, out: Tensor, x: Tensor, _size: list[int]) -> Names:
    if out.shape == x.shape:
        return [graph.name(x)]
    own = (1,) * (out.ndim - x.ndim) + tuple(x.shape)
    sizes = [1 if have == wanted else wanted for have, wanted in zip(own, out.shape, strict=True)]
    return graph.node("Expand", [x, torch.tensor(sizes)])


@_writes("unsqueeze")
def _unsqueeze(graph: Tracer, out: Tensor, x: Tensor, dim: int) -> Names:
    return graph.node("Unsqueeze", [x, torch.tensor([dim % out.ndim])])


@_writes("squeeze")
def _squeeze(graph: Tracer, out: Tensor, x: Tensor, dim: int) -> Names:
    return [graph.name(x)] if out.ndim == x.ndim else graph.node("Squeeze", [x, torch.tensor([dim % x.ndim])])


@_writes("new_zeros", "new_ones", "new_full", "new_empty")
def _constant(*_: Any, **__: Any) -> Names:
    return []  # what takes only its type from the input does not depend on it


@_writes("split", "split_with_sizes")
def _split(graph: Tracer, out: list[Tensor], x: Tensor, _sizes: Any, dim: int = 0) -> Names:
    sizes = torch.tensor([part.shape[dim] for part in out])
    return graph.node("Split", [x, sizes], len(out), axis=dim)


@_writes("view", "_unsafe_view")
def _view(graph: Tracer, out: Tensor, x: Tensor, _size: list[int]) -> Names:
    # The number of images is part of one size: of the first that it divides. A square of patches and a class token are
    # never a multiple of three, the number that is traced.
    sizes = list(out.shape)
    sizes[next((axis for axis, size in enumerate(sizes) if size % graph.images == 0), 0)] = -1
    return graph.node("Reshape", [x, torch.tensor(sizes)])


@_writes("permute", "transpose", "t")
def _permute(graph: Tracer, _out: Tensor, x: Tensor, *dims: Any) -> Names:
    order = list(range(x.ndim))
    if len(dims) == 1:  # permute
        order = [d % x.ndim for d in dims[0]]
    else:
        i, j = dims or (0, 1)
        order[i], order[j] = order[j], order[i]
    return graph.node("Transpose", [x], perm=order)


@_writes("constant_pad_nd")
def _pad(graph: Tracer, _out: Tensor, x: Tensor, pads: list[int], value: float = 0) -> Names:
    before, after = [0] * x.ndim, [0] * x.ndim
    for k, axis in enumerate(range(x.ndim - 1, x.ndim - 1 - len(pads) // 2, -1)):
        before[axis], after[axis] = pads[2 * k : 2 * k + 2]
    return graph.node("Pad", [x, torch.tensor(before + after), _number(value)])


@_writes("clone", "detach", "alias")
def _unchanged(graph: Tracer, _out: Tensor, x: Tensor, **_: Any) -> Names:
    return [graph.name(x)]


@_writes("as_strided")
def _strided(graph: Tracer, _out: Tensor, x: Tensor, size: list[int], _strides: list[int], *_: int) -> Names:
    """Pass on what a pool to one position gives in channels last: other strides, the same values."""
    _needs(size[2:] == [1, 1], "a view by strides")
    return [graph.name(x)]
