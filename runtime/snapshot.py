"""Snapshots: any number of streams of one model, as bytes.

    b"odestream-snapshot-1\\n" + sha256 of what follows (32 bytes) + safetensors

The tensors are the state's members, `[streams, *shape]`; the metadata is JSON with the model's identity and each
stream's name, last tick and counters. Nothing in it depends on a backend, a bucket or a compilation.

A later version keeps this frame and raises both the number in the first line and the metadata's `schema`: so a file of
another version is told from one whose first line, which the hash does not cover, is damaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Layout, stack, unstack
from odestream.runtime.contract.manifest import Manifest, TimeSpec
from odestream.runtime.contract.rule import Accepted
from odestream.runtime.contract.tensorfile import decode_tensors, encode_tensors
from odestream.runtime.errors import SnapshotDamaged, SnapshotError
from odestream.runtime.records import Counters, StreamState

MAGIC = b"odestream-snapshot-1\n"
SCHEMA_VERSION = 1
REBUILD = "odestream replay {log} --bundle BUNDLE --snapshot FILE"
"""What gives a new model the streams of another one, where their inputs were kept."""

_FAMILY = b"odestream-snapshot-"
_DIGEST = hashlib.sha256().digest_size
_SHORT = 12
_LONGEST_LINE = len(MAGIC) + 8

Count = Annotated[int, msgspec.Meta(ge=0)]
Tick = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class PreviousRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known of a stream's calls over gaps (ticks), from which its next bucket is chosen: `Accepted`."""

    gap: Annotated[int, msgspec.Meta(ge=1)]
    steps: Annotated[int, msgspec.Meta(ge=1)]
    err: Annotated[float, msgspec.Meta(ge=0)]


class StreamRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stream's entry in the metadata; see Counters for the counts. held: see StreamState, absent where empty."""

    name: str
    last_tick: Tick | None
    steps: Count
    flagged: Count
    split: Count
    buckets: dict[str, Count]
    rerun: Count = 0
    rejected: dict[str, Count] = {}
    previous: PreviousRecord | None = None
    held: tuple[float | None, ...] | msgspec.UnsetType = msgspec.UNSET


class SnapshotInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot's metadata: which model it belongs to, how its ticks are read, what its streams had done."""

    schema: int
    identity: str
    name: str
    time: TimeSpec
    streams: tuple[StreamRecord, ...]


class _AnySchema(msgspec.Struct, frozen=True):
    """What the metadata of every version holds."""

    schema: int


def encode_snapshot(manifest: Manifest, streams: Mapping[str, StreamState]) -> bytes:
    """The bytes of a snapshot of the named streams; SnapshotError where there are none."""
    if not streams:
        raise SnapshotError("no streams to save; name at least one")
    state = manifest.spec.state
    arena = stack(state, [stream.arena for stream in streams.values()])
    records = tuple(_record(name, stream) for name, stream in streams.items())
    info = SnapshotInfo(SCHEMA_VERSION, manifest.identity, manifest.name, manifest.time, records)
    body = encode_tensors(Layout(state, len(streams)).views(arena), msgspec.json.encode(info))
    return MAGIC + hashlib.sha256(body).digest() + body


def decode_snapshot(data: bytes, manifest: Manifest, where: str = "snapshot") -> dict[str, StreamState]:
    """Name → stream, in the order of saving.

    Raises SnapshotDamaged for damage anywhere, SnapshotError for another version, another model, and members that
    differ from the manifest's or are not finite.
    """
    info, tensors = _open(data, where)
    if info.identity != manifest.identity:
        raise SnapshotError(
            f"{where}: made by model {info.identity[:_SHORT]} ({info.name}), this bundle is "
            f"{manifest.identity[:_SHORT]} ({manifest.name}), another model; restore it with the bundle that made it, "
            f"or give this one its memory from an input log: {REBUILD.format(log='LOG')}"
        )
    if info.time != manifest.time:
        raise SnapshotError(
            f"{where}: its ticks are {info.time}, the bundle's are {manifest.time}; "
            "restore it with the bundle that made it"
        )
    names = [record.name for record in info.streams]
    if not names or len(set(names)) != len(names):
        raise SnapshotError(f"{where}: stream names {names} are empty or repeat; use another snapshot")
    x = manifest.spec.input("x")
    if any(record.held and len(record.held) != (0 if x is None else x.size) for record in info.streams):
        raise SnapshotError(f"{where}: the values held of its channels are not one for each; use another snapshot")
    layout = Layout(manifest.spec.state, len(names))
    found = {name: (str(value.dtype), value.shape) for name, value in tensors.items()}
    expected = {name: ("float32", shape) for name, shape in layout.shapes.items()}
    if found != expected:
        raise SnapshotError(f"{where}: state members are {found}, expected {expected}; use another snapshot")
    arena = layout.empty()
    for name, view in layout.views(arena).items():
        view[...] = tensors[name]
        if not np.isfinite(view).all():
            raise SnapshotError(f"{where}: state {name} is not finite; use an earlier snapshot")
    rows = unstack(manifest.spec.state, arena, len(names))
    labels = tuple(manifest.graphs)
    return {
        record.name: StreamState(row, record.last_tick, _counters(record, labels), _previous(record), record.held or ())
        for record, row in zip(info.streams, rows, strict=True)
    }


def read_contents(data: bytes, where: str = "snapshot") -> tuple[SnapshotInfo, Mapping[str, NDArray[np.generic]]]:
    """Metadata and state members (`[streams, *shape]`) of any model's snapshot, after the same checks of its bytes."""
    return _open(data, where)


def check_bytes(data: bytes, where: str = "snapshot") -> None:
    """Raise SnapshotDamaged, or SnapshotError for another version, unless the bytes are those of a whole snapshot."""
    _open(data, where)


def read_snapshot(path: Path) -> bytes:
    """The bytes of a snapshot file; SnapshotDamaged where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as cause:
        raise SnapshotDamaged(
            f"{path}: cannot be read ({(cause.strerror or '').lower()}); name a snapshot file"
        ) from cause


def _open(data: bytes, where: str) -> tuple[SnapshotInfo, dict[str, NDArray[np.generic]]]:
    line, body = _unseal(data, where)
    schema = None
    try:
        tensors, text = decode_tensors(body)
        schema = msgspec.json.decode(text, type=_AnySchema).schema
        if line == MAGIC and schema == SCHEMA_VERSION:
            return msgspec.json.decode(text, type=SnapshotInfo), tensors
    except (ValueError, msgspec.MsgspecError, RecursionError) as cause:
        if line == MAGIC:
            raise SnapshotDamaged(f"{where}: {cause}; use another snapshot") from cause
    version = line[len(_FAMILY) : -1].decode(errors="replace")
    if schema == SCHEMA_VERSION:
        raise SnapshotDamaged(f"{where}: damaged, version {version!r} but schema {schema}; use an earlier snapshot")
    found = f"schema {schema}" if line == MAGIC else f"version {version!r}"
    raise SnapshotError(f"{where}: {found}, this odestream reads {SCHEMA_VERSION}; use a snapshot it wrote")


def _unseal(data: bytes, where: str) -> tuple[bytes, bytes]:
    """The first line and the body, of whatever version; SnapshotDamaged unless the body's sha256 is right."""
    if not data.startswith(_FAMILY):
        raise SnapshotDamaged(
            f"{where}: not a snapshot, this odestream reads version {SCHEMA_VERSION}; use a snapshot it wrote"
        )
    begin = data.find(b"\n", 0, _LONGEST_LINE) + 1
    digest, body = data[begin : begin + _DIGEST], data[begin + _DIGEST :]
    if begin == 0 or hashlib.sha256(body).digest() != digest:
        raise SnapshotDamaged(f"{where}: damaged or cut off, its sha256 differs; use an earlier snapshot")
    return data[:begin], body


def _record(name: str, stream: StreamState) -> StreamRecord:
    counters, previous = stream.counters, stream.previous
    return StreamRecord(
        name,
        stream.tick,
        counters.steps,
        counters.flagged,
        counters.split,
        counters.buckets,
        counters.rerun,
        counters.rejected,
        None if previous is None else PreviousRecord(int(previous.gap), previous.steps, previous.err),
        stream.held or msgspec.UNSET,
    )


def _previous(record: StreamRecord) -> Accepted | None:
    held = record.previous
    return None if held is None else Accepted(held.gap, held.steps, held.err)


def _counters(record: StreamRecord, labels: tuple[str, ...]) -> Counters:
    """Counts of buckets that this bundle has; another export of the same model may have others."""
    buckets, rejected = (
        {label: counts.get(label, 0) for label in labels} for counts in (record.buckets, record.rejected)
    )
    return Counters(record.steps, record.flagged, record.split, record.rerun, buckets, rejected)
