"""The manifest of a bundle: its schema, strict decoding, and the model's identity.

Who reads an artefact owns its format, so the exporter imports this file and not the reverse.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import msgspec

from odestream.runtime.contract.spec import StepSpec
from odestream.runtime.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "weights.safetensors"
VECTORS_NAME = "vectors.safetensors"
CARD_NAME = "MODEL_CARD.md"
MAX_MANIFEST_BYTES = 4 << 20

TaskKind = Literal["forecast", "classify", "tokens", "step"]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's parts: frozen, and closed to fields that it does not know."""


class TimeSpec(Record, frozen=True):
    """How host times become `dt` and `phase`.

    kind: `iso` where the time column holds dates, `number` where it holds numbers of `unit`.
    unit: the time column's unit (`s`, `day`, … or `step`).
    ticks_per_column_unit: ticks in one of the column's units. tick_seconds: length of a tick in seconds, None
    where the unit is an abstract step. ticks_per_model_unit: ticks in the model's time unit (ten median gaps).
    origin: tick at which every phase is zero; for dates, ticks count from 1970-01-01T00:00 UTC.
    frequencies: angular frequencies in rad per model unit, as many as `phase` has sin/cos pairs (all sines first).
    """

    kind: Literal["number", "iso"] = "number"
    unit: str = "s"
    ticks_per_column_unit: int = 1_000_000_000
    tick_seconds: float | None = 1e-9
    ticks_per_model_unit: float = 1e9
    origin: int = 0
    frequencies: tuple[float, ...] = ()


class TaskSpec(Record, frozen=True):
    """What the model predicts and which columns of a table it reads.

    inputs: columns that fill `x`, in order. targets: forecast: the predicted inputs; classify: the label column.
    labels: classify: the classes, in the order of `y`. time, stream: their columns, None where the table has none.
    """

    kind: TaskKind = "step"
    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    time: str | None = None
    stream: str | None = None


class CoverageRow(Record, frozen=True):
    """What came of the rule on calibration calls of one kind, none of which the factor was chosen on.

    kind: `streams` (streams as they came), `gaps` (their states, gaps drawn at random) or `bursts` (streams with
    outbursts). calls: how many. flagged: of these. within: of those not flagged, how many lay within tolerance of the
    reference. worst: largest true error of an unflagged call, in units of the tolerance (see `Calibration`), 0 without
    any. worst_flagged: of a flagged one, likewise. buckets: graph label → accepted runs, rejected: label → runs that
    were run again or split. evaluations: mean field evaluations of a call, rejected runs included.
    """

    kind: str
    calls: int
    flagged: int
    within: int
    worst: float
    worst_flagged: float
    buckets: dict[str, int]
    rejected: dict[str, int]
    evaluations: float


class Calibration(Record, frozen=True):
    """How the safety factor was found, and what it promises.

    The true error of a call that takes h₀ to h is RMS_i((h − h_ref)_i / (atol + rtol·max(|h₀|, |h_ref|)_i)), with h_ref
    from `reference`, over the whole gap, however many runs cross it. target: share of unflagged calls that must be
    within tolerance. confidence: with which the factor holds it on calls like those that it was chosen on. chosen_on:
    number of these, 0 where nothing was chosen. source: `held-out` where streams came with the run, `synthetic` where
    they were made up. reached: whether the target holds on every kind. rows: what came of it, by kind.
    """

    target: float
    confidence: float
    reached: bool
    reference: str
    source: str
    chosen_on: int
    rows: tuple[CoverageRow, ...]


class SolverSpec(Record, frozen=True):
    """The unrolled solver of the graphs.

    stiffness: λ_max + 1.1·‖A_h‖·‖B‖ per model unit. max_calls: most calls into which one gap is split for stability.
    error_ratios: by bucket, what the graph's err is multiplied by to become the error that a runtime judges and
    reports (finer graphs overstate theirs: the flow forgets the errors of its first steps); empty where all are 1.
    safety_factor: largest such error that is accepted; above it a result is run again or flagged. calibration: how
    both were found, None where they were not (the factor is then 1, the tolerance itself).
    """

    method: str
    buckets: tuple[int, ...]
    default_bucket: int
    rtol: float
    atol: float
    error_estimate: bool
    stiffness: float
    max_calls: int = 1024
    error_ratios: tuple[float, ...] = ()
    safety_factor: float = 1.0
    calibration: Calibration | None = None


class WeightEntry(Record, frozen=True):
    """One tensor of `weights.safetensors`, readable without ONNX: byte offset from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


class FileEntry(Record, frozen=True):
    """Size and sha256 of one of the bundle's files."""

    sha256: str
    size: int


class ParityRow(Record, frozen=True):
    """Largest difference between the torch step and the exported one for one tensor.

    check: `one call`, or `chained` over `steps` steps. error: largest |difference| over the tensor's scale
    (largest |value|, at least 1e-3). tolerance: what it must not exceed.
    """

    check: str
    bucket: int
    tensor: str
    steps: int
    error: float
    tolerance: float


class Manifest(Record, frozen=True):
    """Everything a runtime must know of a bundle; see the fields' own types."""

    schema: int
    name: str
    identity: str
    dtype: str
    spec: StepSpec
    task: TaskSpec
    time: TimeSpec
    solver: SolverSpec | None
    default_graph: str
    graphs: dict[str, str]
    gate_names: tuple[str, ...]
    weights: tuple[WeightEntry, ...]
    parity: tuple[ParityRow, ...]
    config: dict[str, Any]
    metrics: dict[str, Any]
    provenance: dict[str, str]
    files: dict[str, FileEntry]


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON text, indented for people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Parse and check a manifest; BundleError names `where` and what is wrong."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {len(data)} bytes, more than {MAX_MANIFEST_BYTES}; export the bundle again")
    _refuse_duplicate_keys(data, where)
    try:
        version = msgspec.json.decode(data, type=_Version).schema
    except (msgspec.MsgspecError, RecursionError) as cause:
        raise BundleError(f"{where}: not a manifest ({cause}); export the bundle again") from cause
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{where}: schema version {version}, this odestream reads {SCHEMA_VERSION}; "
            "export the bundle with this version"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        manifest.spec.validate()
    except (msgspec.MsgspecError, ValueError, RecursionError) as cause:
        raise BundleError(f"{where}: {cause}; export the bundle again") from cause
    return manifest


def model_identity(weights: bytes, spec: StepSpec, field: dict[str, Any]) -> str:
    """sha256 over weights, state spec and field configuration: what a snapshot belongs to.

    It does not depend on graphs, buckets or compilation, so that snapshots outlive them.
    """
    digest = hashlib.sha256()
    for part in (weights, msgspec.json.encode(spec.state), json.dumps(field, sort_keys=True).encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


class _Version(msgspec.Struct):
    schema: int


def _refuse_duplicate_keys(data: bytes, where: str) -> None:
    """msgspec keeps the last of two equal keys; a manifest with two meanings must not load."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            raise ValueError("a key stands twice")
        return dict(items)

    def constant(text: str) -> float:
        raise ValueError(f"{text} is not a JSON number")

    try:
        json.loads(data, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as cause:
        raise BundleError(f"{where}: not a manifest ({cause}); export the bundle again") from cause
