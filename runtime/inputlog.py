"""The input log: every call of a fleet as it came, in segments that each begin with a snapshot of all streams.

    b"odestream-log-1\\n", then frames: length (u32), CRC-32 of the payload (u32), payload

The first frame is JSON: the model, its clock, the fleet's policies. The second is a snapshot, empty where there was no
stream. Every further frame begins with a byte for its kind. 0 is a call: rows of (stream, x, t, mask) with a digest of
the answer, so that a replay can tell whether it gave the same; a stream's name stands before its first row of the
segment. 1 is the names of streams that were put away, as JSON. 2 is what late rows may come before, ahead of all calls:
the length of a snapshot (u32), the snapshot, and the rows that each of its streams took after it: how many (u32),
whether they have masks (u8 each), their ticks (i64), x and masks. The next frame of that kind goes on from there, so
that nobody need look into an earlier segment. Numbers are little-endian.

A frame that is cut off or changed ends its segment: what comes before it counts, nothing after it does.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.contract.spec import TensorSpec
from odestream.runtime.errors import LogError, StateError
from odestream.runtime.fleet import Answer
from odestream.runtime.history import Seen
from odestream.runtime.member import Observation
from odestream.runtime.policies import Policies
from odestream.runtime.records import Output

MAGIC = b"odestream-log-1\n"
SUFFIX = ".odelog"
FAILED = bytes(8)
"""The digest of a row that was refused: its stream stayed as it was."""

_FAMILY = b"odestream-log-"
_FRAME = struct.Struct("<II")
_ROW = struct.Struct("<IBq8s")  # stream, flags, tick, digest
_NAME = struct.Struct("<IBH")  # stream, flags, length
_HAS_TIME, _HAS_MASK, _NAMES = 1, 2, 4
_COUNT = struct.Struct("<I")
_CALL, _EVICTION, _PAST = b"\0", b"\1", b"\2"
_MOST_VALUES = 1 << 24
_AGAIN = "record a new log"


class LogHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a segment begins with: all that a fleet of the same behaviour is made of.

    sequence: of the segment. bundle: where the model was loaded from, for people. x: an observation. pasts: whether the
    segment holds what late rows may come before; one from before there was such a mark leaves that in the segment
    before it. The rest are the fleet's own.
    """

    sequence: int
    identity: str
    name: str
    bundle: str
    backend: str
    time: TimeSpec
    x: TensorSpec
    policies: Policies
    buckets: tuple[int, ...] | None
    largest: int
    pasts: bool = False


@dataclass(frozen=True, eq=False)
class LoggedRow:
    """A row as it was handed in, and the digest of its answer (`answer_digest`)."""

    observation: Observation
    digest: bytes


@dataclass(frozen=True, eq=False)
class Past:
    """Checkpoints of some streams, and for each of them the rows that came after it, in order of time."""

    snapshot: bytes
    rows: tuple[tuple[Seen, ...], ...]


Call = tuple[LoggedRow, ...]
Eviction = list[str]


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment that was read.

    pasts: what late rows may come before. events: calls, and the names of streams that were put away. damage: why
    nothing more was read, None where the segment ends with a whole frame.
    """

    path: Path
    head: LogHead
    snapshot: bytes
    pasts: tuple[Past, ...]
    events: tuple[Call | Eviction, ...]
    damage: str | None


def answer_digest(answer: Answer) -> bytes:
    """8 bytes that two answers share only if they are the same, bit for bit: y, err and what the solver decided."""
    if not isinstance(answer, Output):
        return FAILED
    decided = repr((answer.err, answer.bucket, answer.flagged, answer.calls, answer.reruns)).encode()
    return hashlib.blake2b(answer.y.tobytes() + decided, digest_size=8).digest()


def encode_head(head: LogHead, snapshot: bytes) -> bytes:
    """The bytes that a segment begins with."""
    return MAGIC + frame(msgspec.json.encode(head)) + frame(snapshot)


def encode_eviction(names: Sequence[str]) -> bytes:
    """The frame of streams that were put away."""
    return frame(_EVICTION + msgspec.json.encode(names))


def frame(payload: bytes) -> bytes:
    """The payload with its length and checksum."""
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


class CallEncoder:
    """Makes frames of calls; one for each segment, because it knows which names the segment holds already."""

    def __init__(self, x: TensorSpec) -> None:
        self._dtype, self._shape = np.dtype(x.dtype).newbyteorder("<"), x.shape
        self._streams: dict[str, int] = {}

    def encode(self, rows: Sequence[Observation], answers: Sequence[Answer]) -> bytes:
        """The frame of a call: its rows that reached the engine. Empty where none did."""
        pairs = zip(rows, answers, strict=True)
        with np.errstate(over="ignore"):  # a value beyond float32 stands only where the mask is 0
            parts = [self._row(row, answer) for row, answer in pairs if isinstance(answer, Output | StateError)]
        return frame(_CALL + b"".join(parts)) if parts else b""

    def encode_past(self, past: Past) -> bytes:
        """The frame of what late rows may come before."""
        rows = b"".join(map(self._block, past.rows))
        return frame(_PAST + _COUNT.pack(len(past.snapshot)) + past.snapshot + rows)

    def _block(self, rows: Sequence[Seen]) -> bytes:
        nothing = np.zeros(self._shape or (1,), np.bool_)
        masked = np.array([row.mask is not None for row in rows], np.bool_)
        ticks = np.array([row.tick for row in rows], "<i8")
        with np.errstate(over="ignore"):
            x = np.array([row.x for row in rows], self._dtype)
        masks = np.array([nothing if row.mask is None else row.mask for row in rows], np.bool_)
        parts = (masked, ticks, x, np.packbits(masks.reshape(len(rows), nothing.size), axis=1))
        return _COUNT.pack(len(rows)) + b"".join(part.tobytes() for part in parts)

    def _row(self, row: Observation, answer: Answer) -> bytes:
        known = self._streams.get(row.stream)
        head = b""
        if known is None:
            known = self._streams[row.stream] = len(self._streams)
            name = row.stream.encode(errors="surrogatepass")
            head = _NAME.pack(known, _NAMES, len(name)) + name
        flags = _HAS_TIME * (row.t is not None) | _HAS_MASK * (row.mask is not None)
        x = np.asarray(row.x).astype(self._dtype).tobytes()
        mask = b"" if row.mask is None else np.packbits(np.asarray(row.mask).astype(np.bool_)).tobytes()
        return head + _ROW.pack(known, flags, 0 if row.t is None else int(row.t), answer_digest(answer)) + x + mask


def decode_segment(data: bytes, path: Path) -> Segment:
    """Read a segment; LogError where even its first two frames are not whole, or it is of another version."""
    if not data.startswith(MAGIC):
        version = data[len(_FAMILY) :].split(b"\n", 1)[0][:8] if data.startswith(_FAMILY) else b""
        found = f"version {version.decode(errors='replace')!r}" if version else "not an input log"
        raise LogError(f"{path}: {found}, this odestream reads version 1; {_AGAIN}")
    frames = _frames(data)
    try:
        head = msgspec.json.decode(next(frames), type=LogHead)
        snapshot, decoder = next(frames), _EventDecoder(head.x)
    except StopIteration:
        raise LogError(f"{path}: cut off or damaged before its first call; {_AGAIN}") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise LogError(f"{path}: {cause}; {_AGAIN}") from cause
    parts: list[Call | Eviction | Past] = []
    damage = None
    try:
        parts.extend(decoder.decode(payload) for payload in frames)
    except ValueError as cause:
        damage = str(cause)
    pasts = tuple(each for each in parts if isinstance(each, Past))
    events = tuple(each for each in parts if not isinstance(each, Past))
    return Segment(path, head, snapshot, pasts, events, damage)


class _EventDecoder:
    def __init__(self, x: TensorSpec) -> None:
        if any(n < 1 for n in x.shape) or x.size > _MOST_VALUES:
            raise ValueError(f"x has shape {x.shape}")
        self._dtype, self._shape, self._count = np.dtype(x.dtype).newbyteorder("<"), x.shape, x.size
        self._names: list[str] = []

    def decode(self, payload: bytes) -> Call | Eviction | Past:
        """What a frame tells; ValueError where it holds neither rows nor names."""
        kind, reader = payload[:1], _Reader(payload[1:])
        if kind == _EVICTION:
            return msgspec.json.decode(payload[1:], type=Eviction)
        if kind == _PAST:
            return self._past(reader)
        if kind != _CALL:
            raise ValueError(f"a frame of kind {kind!r}")
        rows = []
        while reader.left:
            rows.append(self._row(reader))
        return tuple(rows)

    def _past(self, reader: _Reader) -> Past:
        snapshot, blocks = reader.take(*_COUNT.unpack(reader.take(_COUNT.size))), []
        while reader.left:
            blocks.append(self._block(reader, *_COUNT.unpack(reader.take(_COUNT.size))))
        return Past(snapshot, tuple(blocks))

    def _block(self, reader: _Reader, count: int) -> tuple[Seen, ...]:
        packed = -(-self._count // 8)
        masked = reader.take(count)
        ticks = np.frombuffer(reader.take(8 * count), "<i8").tolist()
        x = np.frombuffer(reader.take(count * self._count * self._dtype.itemsize), self._dtype)
        masks = np.frombuffer(reader.take(count * packed), np.uint8).reshape(count, packed)
        seen = np.unpackbits(masks, axis=1, count=self._count).astype(np.bool_).reshape(count, *(self._shape or (1,)))
        rows = zip(ticks, x.reshape(count, *self._shape), masked, seen, strict=True)
        return tuple(Seen(tick, values, mask if given else None) for tick, values, given, mask in rows)

    def _row(self, reader: _Reader) -> LoggedRow:
        if reader.peek(4) == bytes([_NAMES]):
            stream, _, length = _NAME.unpack(reader.take(_NAME.size))
            if stream != len(self._names):
                raise ValueError(f"stream {stream} is named after {len(self._names)} others")
            self._names.append(reader.take(length).decode(errors="surrogatepass"))
        stream, flags, tick, digest = _ROW.unpack(reader.take(_ROW.size))
        if stream >= len(self._names) or flags & ~(_HAS_TIME | _HAS_MASK):
            raise ValueError(f"a row of stream {stream}, flags {flags}")
        x = np.frombuffer(reader.take(self._count * self._dtype.itemsize), self._dtype).reshape(self._shape)
        mask = self._mask(reader) if flags & _HAS_MASK else None
        return LoggedRow(Observation(self._names[stream], x, tick if flags & _HAS_TIME else None, mask), digest)

    def _mask(self, reader: _Reader) -> NDArray[np.bool_]:
        packed = np.frombuffer(reader.take(-(-self._count // 8)), np.uint8)
        return np.unpackbits(packed, count=self._count).astype(np.bool_).reshape(self._shape or (1,))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def peek(self, ahead: int) -> bytes:
        return self._data[self.at + ahead : self.at + ahead + 1]

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"{count} bytes expected, {self.left} left")
        self.at += count
        return self._data[self.at - count : self.at]


def _frames(data: bytes) -> Iterator[bytes]:
    """The payloads up to the end; ValueError at the first that is not whole."""
    at = len(MAGIC)
    while at < len(data):
        if len(data) - at < _FRAME.size:
            raise ValueError(f"cut off at byte {at}")
        length, checksum = _FRAME.unpack_from(data, at)
        payload = data[at + _FRAME.size : at + _FRAME.size + length]
        if len(payload) < length:
            raise ValueError(f"cut off at byte {at}")
        if zlib.crc32(payload) != checksum:
            raise ValueError(f"damaged at byte {at}")
        yield payload
        at += _FRAME.size + length
