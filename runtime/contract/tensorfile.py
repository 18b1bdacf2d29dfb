"""Named arrays and one text in safetensors bytes: the payload of snapshots and of stored vectors."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

_DTYPES = {"F32": np.float32, "I64": np.int64, "U8": np.uint8}
_KEY = "odestream"


def encode_tensors(tensors: Mapping[str, NDArray[np.generic]], text: bytes) -> bytes:
    """safetensors bytes of float32, int64 or uint8 arrays, with `text` (UTF-8) in the file's metadata."""
    data: bytes = save({name: np.ascontiguousarray(value) for name, value in tensors.items()}, {_KEY: text.decode()})
    return data


def decode_tensors(data: bytes) -> tuple[dict[str, NDArray[np.generic]], bytes]:
    """The arrays (read-only) and the text; ValueError says what is wrong with the bytes."""
    try:
        entries = deserialize(data)  # type: ignore[no-untyped-call]
        length = int.from_bytes(data[:8], "little")
        header = msgspec.json.decode(data[8 : 8 + length], type=_Header)
    except (SafetensorError, msgspec.MsgspecError, RecursionError) as cause:
        raise ValueError(f"not safetensors ({cause})") from cause
    if set(header.metadata) != {_KEY}:
        raise ValueError(f"metadata has the keys {sorted(header.metadata)}, expected {_KEY}")
    return {name: _array(name, entry) for name, entry in entries}, header.metadata[_KEY].encode()


class _Header(msgspec.Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__", default_factory=dict)


def _array(name: str, entry: Mapping[str, object]) -> NDArray[np.generic]:
    dtype, shape, data = entry["dtype"], entry["shape"], entry["data"]
    if dtype not in _DTYPES:
        raise ValueError(f"{name} has dtype {dtype}, expected one of {', '.join(_DTYPES)}")
    return np.frombuffer(data, np.dtype(_DTYPES[dtype]).newbyteorder("<")).reshape(shape)  # type: ignore[call-overload, no-any-return]
