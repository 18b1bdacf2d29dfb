"""One weights file for every graph of a bundle, and for readers that know nothing of ONNX.

ONNX external data is a location, an offset and a length, so it can point into a safetensors file.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import onnx_ir as ir
import safetensors.torch
from torch import Tensor

from odestream.runtime.contract.manifest import WEIGHTS_NAME, WeightEntry

_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
_HEADER_LENGTH_BYTES = 8


def encode_weights(weights: Mapping[str, Tensor]) -> tuple[bytes, tuple[WeightEntry, ...]]:
    """The bytes of `weights.safetensors`, and where each tensor lies in them (offsets from the file's start)."""
    data = safetensors.torch.save({name: tensor.detach().clone().contiguous() for name, tensor in weights.items()})
    length = int.from_bytes(data[:_HEADER_LENGTH_BYTES], "little")
    start = _HEADER_LENGTH_BYTES + length
    header = msgspec.json.decode(data[_HEADER_LENGTH_BYTES:start], type=dict[str, _Place])
    entries = (
        WeightEntry(name, _DTYPES[p.dtype], p.shape, start + p.data_offsets[0], p.data_offsets[1] - p.data_offsets[0])
        for name, p in header.items()
    )
    return data, tuple(sorted(entries, key=lambda entry: entry.offset))


def point_to_weights(model: ir.Model, entries: tuple[WeightEntry, ...]) -> None:
    """Make every initializer of `model` external data inside the weights file that will lie beside it."""
    places = {entry.name: entry for entry in entries}
    for name, value in model.graph.initializers.items():
        place = places[name]
        value.const_value = ir.ExternalTensor(
            WEIGHTS_NAME,
            place.offset,
            place.length,
            value.dtype or ir.DataType.FLOAT,
            shape=ir.Shape(list(place.shape)),
            name=name,
        )


class _Place(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]
