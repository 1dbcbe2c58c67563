"""How much of an ONNX file is structure, found without parsing it.

A parser turns a message of two bytes into an object of a hundred, so a file of nothing but empty
messages would take a hundred times its size. Honest files are raw weights, with little around them.
"""

from collections.abc import Iterator

GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Field numbers in ModelProto, GraphProto and TensorProto."""

MAX_STRUCTURE_BYTES = 8 << 20
MAX_FIELDS = 100_000
SIZES = {1: 8, 5: 4}
"""Bytes of the wire types that have always the same."""


def structure_bytes(data: bytes) -> int:
    """Bytes of a ModelProto that are not raw data of a weight.

    Raises:
        ValueError: if it is no protobuf message, or has more fields than any engine.
    """
    view, raw, count = memoryview(data), 0, 0
    for number, graph in _fields(view):
        if number == GRAPH:
            for inner, tensor in _fields(graph):
                if inner == INITIALIZER:
                    raw += sum(len(part) for field, part in _fields(tensor) if field == RAW_DATA)
                count += 1
                if count > MAX_FIELDS:
                    raise ValueError("more nodes and weights than any engine has")
    return len(data) - raw


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of every field; the content of a number is empty."""
    position = 0
    for _ in range(MAX_FIELDS):
        if position >= len(message):
            return
        tag, position = _varint(message, position)
        kind, length = tag & 7, 0
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            length, position = _varint(message, position)
        elif kind in SIZES:
            length = SIZES[kind]
        else:
            raise ValueError("no protobuf message")
        if position + length > len(message):
            raise ValueError("a field that is longer than its message")
        yield tag >> 3, message[position : position + length]
        position += length
    raise ValueError("more fields than any engine has")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for index in range(10):
        if position + index >= len(message):
            break
        byte = message[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("a number that does not end")
