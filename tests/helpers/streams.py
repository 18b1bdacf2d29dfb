"""Rows for streams, and what it means that two streams are the same."""

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from odestream.runtime import Output, Stream
from odestream.runtime.contract.tensorfile import decode_tensors, encode_tensors
from odestream.runtime.records import StreamState
from odestream.runtime.snapshot import MAGIC

SECOND = 10**9


def irregular(count: int, channels: int = 3, seed: int = 0) -> tuple[Any, Any, Any]:
    """x, t (1 ns to 2 s apart, far from zero) and masks with holes and empty rows."""
    rng = np.random.default_rng(seed)
    t = 17 * 10**17 + np.cumsum(rng.integers(1, 2 * SECOND, count))
    mask = (rng.random((count, channels)) > 0.3).astype(np.float32)
    mask[::11] = 0
    return rng.normal(size=(count, channels)).astype(np.float32), t, mask


def same(a: Output, b: Output) -> bool:
    """Bitwise equality of all that a call gives."""
    gates = (a.gates is None and b.gates is None) or a.gates.tobytes() == b.gates.tobytes()  # type: ignore[union-attr]
    rest = (a.err, a.bucket, a.flagged, a.calls, a.reruns) == (b.err, b.bucket, b.flagged, b.calls, b.reruns)
    return a.y.tobytes() == b.y.tobytes() and gates and rest


def same_state(a: StreamState, b: StreamState) -> bool:
    """Bitwise equality of all that a stream is."""
    return a.arena.tobytes() == b.arena.tobytes() and (a.tick, a.counters, a.previous) == (
        b.tick,
        b.counters,
        b.previous,
    )


def continues_like(stream: Stream, twin: Stream, count: int = 100) -> bool:
    """Whether the next steps of both are the same, bit for bit."""
    x, t, mask = irregular(count, stream.model.manifest.spec.inputs[0].size, seed=9)
    start = max(stream.last_tick or 0, twin.last_tick or 0)
    ticks = (t - t[0] + start + 1).tolist()
    pairs = [(stream.step(*row), twin.step(*row)) for row in zip(x, ticks, mask, strict=True)]
    return all(same(a, b) for a, b in pairs) and stream.counters == twin.counters


def forged(blob: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """A snapshot with changed content and a right digest."""
    tensors, text = decode_tensors(blob[len(MAGIC) + 32 :])
    info = msgspec.json.decode(text)
    tensors = {name: value.copy() for name, value in tensors.items()}
    change(tensors, info)
    body = encode_tensors(tensors, msgspec.json.encode(info))
    return MAGIC + hashlib.sha256(body).digest() + body


def of_version(blob: bytes, number: int) -> bytes:
    """The snapshot as another version of odestream writes it: the frame is the same, both numbers are its own."""
    later = forged(blob, lambda _, info: info.update(schema=number, more=[]))
    return later.replace(MAGIC, MAGIC.replace(b"1", str(number).encode()), 1)
