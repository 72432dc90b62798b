"""ONNX files, written field by field: the few messages that a network needs, in protocol buffer encoding.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. A message is kept as its parts and
joined once at the end, so that weights are copied once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OPSET, IR_VERSION = 20, 9
TYPES = {"float32": 1, "uint8": 2, "int64": 7}

Parts = list[bytes | memoryview]
Attribute = int | float | str | Sequence[int]


@dataclass(frozen=True)
class ValueInfo:
    """An input or output: its name, type, and shape; a dimension with a name may have any size."""

    name: str
    dtype: str
    shape: Sequence[int | str]

    def parts(self) -> Parts:
        """Encode a ``ValueInfoProto``."""
        dims: Parts = []
        for size in self.shape:
            dims += _message(1, _text(2, size) if isinstance(size, str) else _integer(1, size))
        tensor = _integer(1, TYPES[self.dtype]) + _message(2, dims)
        return _text(1, self.name) + _message(2, _message(1, tensor))


def node(op: str, inputs: Iterable[str], outputs: Iterable[str], attributes: Mapping[str, Attribute]) -> Parts:
    """Encode a ``NodeProto``: one operation."""
    parts: Parts = []
    for name in inputs:
        parts += _text(1, name)
    for name in outputs:
        parts += _text(2, name)
    parts += _text(4, op)
    for name, value in attributes.items():
        parts += _message(5, _text(1, name) + _attribute(value))
    return parts


def _attribute(value: Attribute) -> Parts:
    if isinstance(value, float):
        return [_key(2, 5), struct.pack("<f", value), *_integer(20, 1)]
    if isinstance(value, int):
        return _integer(3, value) + _integer(20, 2)
    if isinstance(value, str):
        return _text(4, value) + _integer(20, 3)
    parts: Parts = []
    for number in value:
        parts += _integer(8, number)
    return parts + _integer(20, 7)


def tensor(name: str, values: NDArray[np.generic]) -> Parts:
    """Encode a ``TensorProto``: values that are part of the network."""
    parts: Parts = []
    for size in values.shape:
        parts += _integer(1, size)
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    return parts + _integer(2, TYPES[values.dtype.name]) + _text(8, name) + _message(9, [raw])


def model(
    nodes: Iterable[Parts],
    tensors: Iterable[Parts],
    inputs: Iterable[ValueInfo],
    outputs: Iterable[ValueInfo],
) -> bytes:
    """Encode a ``ModelProto``, a whole file."""
    graph: Parts = []
    for parts in nodes:
        graph += _message(1, parts)
    graph += _text(2, "fastclf")
    for parts in tensors:
        graph += _message(5, parts)
    for info in inputs:
        graph += _message(11, info.parts())
    for info in outputs:
        graph += _message(12, info.parts())
    whole = _integer(1, IR_VERSION) + _text(2, "fastclf") + _message(7, graph) + _message(8, _integer(2, OPSET))
    return b"".join(whole)


def _varint(value: int) -> bytes:
    """Seven bits per byte, lowest first; negative numbers as 64-bit two's complement."""
    value &= (1 << 64) - 1
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> Parts:
    return [_key(field, 0), _varint(value)]


def _text(field: int, value: str) -> Parts:
    return _message(field, [value.encode()])


def _message(field: int, parts: Parts) -> Parts:
    return [_key(field, 2), _varint(sum(map(len, parts))), *parts]
