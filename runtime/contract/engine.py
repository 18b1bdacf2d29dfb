"""The sidecar of a compiled engine: what it was built from and for, as JSON beside it.

Nothing is embedded in an engine, which other tools would then refuse. `step.n4.sm89.trtrtx1.7.engine` has the sidecar
`step.n4.sm89.trtrtx1.7.engine.json`.
"""

from __future__ import annotations

import hashlib

import msgspec

from odestream.runtime.contract.manifest import Record
from odestream.runtime.errors import CompatError

SIDECAR_VERSION = 1
MAX_SIDECAR_BYTES = 1 << 20
SUFFIX = ".engine"
TAGS = {"tensorrt": "trt", "trt-rtx": "trtrtx"}
"""Target → how the name of an engine says it."""

STATE_MAGNITUDE = "state_magnitude"
"""An engine's output beyond the graph's: Σ|x| of each row's new state, which is finite where all of it is."""

PLUGIN, FUNCTION = "plugin", "function"


class GpuRecord(Record, frozen=True):
    """The GPU that an engine was built on: its name, its multiprocessors, its compute capability as `8.9`."""

    name: str
    multiprocessors: int
    capability: str


class PluginRecord(Record, frozen=True):
    """The plugin library that an engine calls: file name, sha256, version of its interface."""

    file: str
    sha256: str
    abi: int


class EngineRecord(Record, frozen=True):
    """Everything that decides whether an engine may run here.

    target: `tensorrt` or `trt-rtx`; version: of that package. label: of the bucket. graph_sha256, weights_sha256: of
    the bundle's files. calls: what runs each of the bundle's functions, `plugin` or `function`, proved by `proof`.
    architectures: as `sm89`. gpu: None where the engine was built without one, for any GPU of its architectures.
    cuda, driver: versions it was built with, empty without a GPU. flags: of the build. profiles: least, best and
    largest batch of each optimisation profile. host: system and processor, since an engine holds host code.
    """

    sidecar: int
    target: str
    version: str
    label: str
    sha256: str
    size: int
    graph_sha256: str
    weights_sha256: str
    plugin: PluginRecord | None
    calls: dict[str, str]
    proof: str
    architectures: tuple[str, ...]
    gpu: GpuRecord | None
    cuda: str
    driver: str
    flags: tuple[str, ...]
    profiles: tuple[tuple[int, int, int], ...]
    host: str
    layers: int
    build_seconds: float
    odestream: str
    key: str


def engine_key(record: EngineRecord) -> str:
    """sha256 over what an engine is made of and for; two builds with one key may stand for each other."""
    parts = {
        name: getattr(record, name)
        for name in ("target", "version", "label", "graph_sha256", "weights_sha256", "plugin", "architectures", "gpu")
    }
    parts |= {name: getattr(record, name) for name in ("cuda", "flags", "profiles", "host")}
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).hexdigest()


def engine_name(graph_file: str, record: EngineRecord) -> str:
    """File name of an engine: graph, architectures, package and its version."""
    version = ".".join(record.version.split(".")[:2])
    architectures = "+".join(record.architectures)
    return f"{graph_file.removesuffix('.onnx')}.{architectures}.{TAGS[record.target]}{version}{SUFFIX}"


def encode_record(record: EngineRecord) -> bytes:
    """The sidecar as JSON text, indented for people."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n"


def decode_record(data: bytes, where: str) -> EngineRecord:
    """Parse a sidecar; CompatError names `where`, what is wrong, and the remedy."""
    try:
        if len(data) > MAX_SIDECAR_BYTES:
            raise ValueError(f"{len(data)} bytes, more than {MAX_SIDECAR_BYTES}")
        record = msgspec.json.decode(data, type=EngineRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise CompatError(f"{where}: not a sidecar of this odestream ({cause}); compile the bundle again") from cause
    if record.sidecar != SIDECAR_VERSION or record.target not in TAGS:
        raise CompatError(
            f"{where}: sidecar version {record.sidecar} for {record.target!r}, this odestream reads {SIDECAR_VERSION} "
            f"for {', '.join(TAGS)}; compile the bundle again"
        )
    return record
