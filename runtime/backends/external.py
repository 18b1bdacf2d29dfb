"""Which tensors of an ONNX file lie outside it, found without the onnx package.

The file is protobuf: a sequence of (field number, wire type, value). Only the path model → graph → initializer is
followed; the field numbers are those of onnx.proto (ModelProto.graph 7, GraphProto.initializer 5, TensorProto:
dims 1, data_type 2, name 8, external_data 13, data_location 14; StringStringEntryProto: key 1, value 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 13, 14
_EXTERNAL = 1


@dataclass(frozen=True)
class ExternalTensor:
    """An initializer stored outside: `data_type` is onnx's number, `data` its external_data entries."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    data: dict[str, str]


def external_tensors(model: bytes) -> list[ExternalTensor]:
    """The external initializers of a model's main graph; ValueError where the bytes are no protobuf."""
    found = []
    for number, graph in _fields(memoryview(model)):
        if number == _MODEL_GRAPH:
            tensors = (value for field, value in _fields(_message(graph)) if field == _GRAPH_INITIALIZER)
            found += [tensor for tensor in map(_external, tensors) if tensor is not None]
    return found


def _external(message: int | memoryview) -> ExternalTensor | None:
    name, data_type, location, shape, data = "", 0, 0, [], {}
    for number, value in _fields(_message(message)):
        if number == _DIMS:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _DATA_LOCATION and isinstance(value, int):
            location = value
        elif number == _NAME:
            name = _text(value)
        elif number == _EXTERNAL_DATA:
            entry = {field: _text(part) for field, part in _fields(_message(value))}
            data[entry.get(1, "")] = entry.get(2, "")
    return ExternalTensor(name, data_type, tuple(shape), data) if location == _EXTERNAL else None


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(data):
            raise ValueError("truncated")
        yield number, data[position : position + length]
        position += length


def _varints(data: memoryview) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("truncated")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")  # noqa: TRY004 - the bytes are wrong, not the caller
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_message(value)).decode()
