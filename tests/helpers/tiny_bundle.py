"""A small bundle written by hand, whose answers can be computed by hand: the runtime's tests need no exporter.

The model is a leaky integrator over X channels, with rates λ and an explicit Euler flow of N steps:

    h⁻ = h·(1 − λ·dt/N)^N
    y  = [h⁻ + phase·P, v]                       mean and log-variance; tokens: h⁺·Eᵀ
    h⁺ = h⁻ + gain·(x − h⁻) where observed       tokens: x is the row E[token]
    n⁺ = n + [observed, dt]                      starts at (0, 0.5)
    err = err_scale·max|h|·(dt/N)²               falls with N as an estimate of order one does
    gates = [observed, Σ mask·|x − h⁻|]
    every further member m⁺ = m/2 + observed
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper
from safetensors.numpy import save

from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import (
    VECTORS_NAME,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
    SolverSpec,
    TaskSpec,
    TimeSpec,
    WeightEntry,
    encode_manifest,
    model_identity,
)
from odestream.runtime.contract.spec import StateSpec, StepSpec, TensorSpec
from odestream.runtime.contract.vectors import Vectors, encode_vectors

TOKENS = 256
Array = NDArray[np.float64]

NANO_MEMBERS: Mapping[str, tuple[int, ...]] = {
    "u": (64,),
    "wk": (16, 32),
    "wv": (16, 32),
    "wa": (16,),
    "m": (1, 32, 32),
    "ek": (32, 32),
    "ev": (32, 32),
    "es": (32,),
    "ea": (32,),
    "st": (2,),
}
"""Further members that make the state as large, and as divided, as that of the nano preset."""


@dataclass(frozen=True)
class Tiny:
    """What the bundle is like; `buckets=()` makes one without a solver, `frequencies=()` one without phase.

    default_bucket: the smallest unless given.
    """

    channels: int = 3
    buckets: tuple[int, ...] = (1, 4)
    frequencies: tuple[float, ...] = (0.5, 2.0)
    mask: bool = True
    dt: bool = True
    err: bool = True
    error_estimate: bool = True
    gates: bool = True
    tokens: bool = False
    stiffness: float = 0.0
    max_calls: int = 16
    err_scale: float = 1e-3
    safety_factor: float = 1.0
    default_bucket: int | None = None
    gain: float = 0.5
    seed: int = 0
    time: TimeSpec = field(default_factory=lambda: TimeSpec(frequencies=(), ticks_per_model_unit=1e9))
    members: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    name: str = "tiny"

    @property
    def spec(self) -> StepSpec:
        """Inputs, outputs and state, as the options ask for them."""
        X, mask = self.channels, 1 if self.tokens else self.channels
        inputs = [TensorSpec("x", (), "int64") if self.tokens else TensorSpec("x", (X,))]
        inputs += [TensorSpec("mask", (mask,))] if self.mask else []
        inputs += [TensorSpec("dt", (1,))] if self.dt else []
        inputs += [TensorSpec("phase", (2 * len(self.frequencies),))] if self.phased else []
        outputs = [TensorSpec("y", (TOKENS if self.tokens else 2 * X,))]
        outputs += [TensorSpec("err", (1,))] if self.err else []
        outputs += [TensorSpec("gates", (2,))] if self.gates else []
        state = [StateSpec("h", (X,), (0.25,)), StateSpec("n", (2,), (0.0, 0.5))]
        state += [StateSpec(name, shape) for name, shape in self.members.items()]
        return StepSpec(tuple(inputs), tuple(outputs), tuple(state))

    @property
    def phased(self) -> bool:
        """Whether the model reads `phase`."""
        return bool(self.frequencies) and not self.tokens

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The initializers, float32."""
        rng = np.random.default_rng(self.seed)
        weights = {"rate": rng.uniform(0.2, 0.8, self.channels)} if self.dt else {}
        if self.tokens:
            weights["embed"] = rng.normal(size=(TOKENS, self.channels))
        else:
            weights["logvar"] = rng.normal(size=self.channels)
        if self.phased:
            weights["phases"] = rng.normal(size=(2 * len(self.frequencies), self.channels))
        return {name: value.astype(np.float32) for name, value in weights.items()}

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the graphs."""
        return tuple(str(n) for n in self.buckets) or ("-",)

    @property
    def default(self) -> int:
        """The default bucket: the smallest unless another is asked for."""
        return self.default_bucket or (self.buckets or (1,))[0]


def write_tiny(path: Path, tiny: Tiny | None = None) -> Path:
    """Write the bundle of `tiny` to the directory `path`, which must not exist; returns `path`."""
    tiny = tiny or Tiny()
    weights, entries = _weights_file(tiny.weights)
    graphs = {label: f"step.n{label}.onnx" if tiny.buckets else "step.onnx" for label in tiny.labels}
    files = {name: graph_bytes(tiny, label, entries) for label, name in graphs.items()}
    files |= {WEIGHTS_NAME: weights, VECTORS_NAME: encode_vectors(tiny_vectors(tiny))}
    files["MODEL_CARD.md"] = f"# {tiny.name}\n\nA leaky integrator for tests.\n".encode()
    write_files(path, files, _manifest(tiny, graphs, weights, entries))
    return path


def write_files(path: Path, files: Mapping[str, bytes], manifest: Manifest) -> None:
    """Write the files and a manifest that lists them."""
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    listed = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    parts = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    (path / "manifest.json").write_bytes(encode_manifest(Manifest(**parts | {"files": listed})))


class TinyReference:
    """The model in float64: one stream, called with ticks."""

    def __init__(self, tiny: Tiny, steps: int | None = None) -> None:
        self.tiny, self.steps = tiny, steps or (tiny.buckets or (1,))[0]
        self.clock = Clock(_time(tiny))
        self.weights = {name: value.astype(np.float64) for name, value in tiny.weights.items()}
        self.last: int | None = None
        self.state: dict[str, Array] = {m.name: m.initial_row().astype(np.float64) for m in tiny.spec.state}

    def step(self, x: ArrayLike, t: int, mask: ArrayLike | None = None) -> dict[str, Array]:
        """Outputs of one observation at tick `t`."""
        last = t if self.last is None else self.last
        seen = np.ones(1 if self.tiny.tokens else self.tiny.channels) if mask is None else np.asarray(mask, float)
        outputs, self.state = self.call(x, self.clock.units(t - last), self.clock.phase(last), seen)
        self.last = t
        return outputs

    def call(self, x: ArrayLike, dt: float, phase: ArrayLike, mask: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """The step function: outputs and the new state."""
        w, h = self.weights, self.state["h"]
        value = w["embed"][int(np.asarray(x))] if self.tiny.tokens else np.where(mask > 0, np.asarray(x, float), 0.0)
        flowed = h * (1 - w["rate"] * dt / self.steps) ** self.steps if self.tiny.dt else h
        seen = float(mask.max())
        jumped = np.where(mask > 0, flowed + self.tiny.gain * (value - flowed), flowed)
        mean = flowed + (np.asarray(phase, float) @ w["phases"] if self.tiny.phased else 0.0)
        outputs = {"y": jumped @ w["embed"].T if self.tiny.tokens else np.concatenate([mean, w["logvar"]])}
        if self.tiny.err:
            pace = dt / self.steps if self.tiny.dt else 0.0
            outputs["err"] = np.array([self.tiny.err_scale * np.abs(h).max() * pace**2])
        if self.tiny.gates:
            outputs["gates"] = np.array([seen, np.sum(mask * np.abs(value - flowed))])
        state = {name: self.state[name] / 2 + seen for name in self.tiny.members}
        return outputs, {"h": jumped, "n": self.state["n"] + [seen, dt if self.tiny.dt else 0.0], **state}


def tiny_vectors(tiny: Tiny, steps: int = 24, batch: int = 2) -> Vectors:
    """A chain of the reference over irregular gaps, with holes, a query and a reset."""
    rng = np.random.default_rng(tiny.seed + 1)
    rows = [_vector_row(tiny, row, batch, rng) for row in range(steps)]
    labels = tuple(tiny.labels[row // 4 % len(tiny.labels)] for row in range(steps))
    reset = np.zeros(steps, np.bool_)
    reset[[0, steps // 2]] = True
    checkpoints = np.array([1, steps // 2, steps - 1], np.int64)
    outputs: list[list[dict[str, Array]]] = [[] for _ in range(steps)]
    states: list[list[dict[str, Array]]] = [[] for _ in checkpoints]
    for b in range(batch):
        stream = TinyReference(tiny)
        for row in range(steps):
            stream = TinyReference(tiny) if reset[row] else stream
            stream.steps = int(labels[row]) if tiny.buckets else 1
            dt = float(rows[row]["dt"][b, 0]) if tiny.dt else 0.0
            mask = rows[row]["mask"][b] if tiny.mask else np.ones(tiny.channels)
            phase = rows[row]["phase"][b] if tiny.phased else ()
            out, stream.state = stream.call(rows[row]["x"][b], dt, phase, np.asarray(mask, float))
            outputs[row].append(out)
            for place in np.flatnonzero(checkpoints == row):
                states[place].append(stream.state)
    return Vectors(
        inputs={name: np.stack([row[name] for row in rows]) for name in rows[0]},
        outputs=_stack(outputs),
        labels=labels,
        reset=reset,
        checkpoints=checkpoints,
        state=_stack(states),
    )


def graph_bytes(tiny: Tiny, label: str, entries: tuple[WeightEntry, ...]) -> bytes:
    """The ONNX file of one bucket, its initializers pointing into the weights file."""
    spec = tiny.spec
    graph = helper.make_graph(
        _nodes(tiny, int(label) if tiny.buckets else 1),
        "tiny",
        [_port(t.name, t.shape, t.dtype) for t in spec.inputs]
        + [_port(f"state_in_{m.name}", m.shape) for m in spec.state],
        [_port(t.name, t.shape) for t in spec.outputs] + [_port(f"state_out_{m.name}", m.shape) for m in spec.state],
        [_external(entry) for entry in entries],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    data: bytes = model.SerializeToString()
    return data


def _nodes(tiny: Tiny, steps: int) -> list[onnx.NodeProto]:
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, out: str = "", **attributes: object) -> str:
        out = out or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(*values: float) -> str:
        return op("Constant", value=helper.make_tensor("c", TensorProto.FLOAT, [len(values)], values))

    def ints(*values: int) -> str:
        return op("Constant", value=helper.make_tensor("i", TensorProto.INT64, [len(values)], values))

    h = "state_in_h"
    value = op("Gather", "embed", "x") if tiny.tokens else "x"
    mask = "mask" if tiny.mask else op("Expand", constant(1.0), op("Shape", h))
    observed = op("Greater", mask, constant(0.0))
    value = value if tiny.tokens else op("Where", observed, value, constant(0.0))
    flowed = h
    if tiny.dt:
        factor = op("Sub", constant(1.0), op("Mul", op("Div", "dt", constant(float(steps))), "rate"))
        for _ in range(steps):
            flowed = op("Mul", flowed, factor)
    surprise = op("Sub", value, flowed)
    moved = op("Add", flowed, op("Mul", constant(tiny.gain), surprise))
    jumped = op("Where", observed, moved, flowed, out="state_out_h")
    seen = op("ReduceMax", mask, ints(1))
    elapsed = "dt" if tiny.dt else op("Mul", seen, constant(0.0))
    op("Add", "state_in_n", op("Concat", seen, elapsed, axis=1), out="state_out_n")
    for name, shape in tiny.members.items():
        there = op("Reshape", seen, ints(-1, *(1 for _ in shape)))
        op("Add", op("Mul", f"state_in_{name}", constant(0.5)), there, out=f"state_out_{name}")
    if tiny.tokens:
        op("MatMul", jumped, op("Transpose", "embed", perm=[1, 0]), out="y")
    else:
        mean = op("Add", flowed, op("MatMul", "phase", "phases")) if tiny.phased else flowed
        op("Concat", mean, op("Expand", "logvar", op("Shape", mean)), axis=1, out="y")
    if tiny.err:
        pace = op("Div", elapsed, constant(float(steps))) if tiny.dt else elapsed
        size = op("Mul", op("ReduceMax", op("Abs", h), ints(1)), constant(tiny.err_scale))
        op("Mul", size, op("Mul", pace, pace), out="err")
    if tiny.gates:
        op("Concat", seen, op("ReduceSum", op("Mul", mask, op("Abs", surprise)), ints(1)), axis=1, out="gates")
    return nodes


def _manifest(tiny: Tiny, graphs: dict[str, str], weights: bytes, entries: tuple[WeightEntry, ...]) -> Manifest:
    columns = tuple(f"c{i}" for i in range(tiny.channels))
    solver = SolverSpec(
        # N explicit Euler steps, under the name of the pair that has the same bound and an estimate of order one.
        method="heun21" if tiny.err and tiny.error_estimate else "euler",
        buckets=tiny.buckets,
        default_bucket=tiny.default,
        rtol=1e-3,
        atol=1e-4,
        error_estimate=tiny.err and tiny.error_estimate,
        stiffness=tiny.stiffness,
        max_calls=tiny.max_calls,
        safety_factor=tiny.safety_factor,
    )
    task = TaskSpec(kind="tokens") if tiny.tokens else TaskSpec("forecast", columns, columns, (), "time", None)
    field_config = {"channels": tiny.channels, "seed": tiny.seed}
    return Manifest(
        schema=1,
        name=tiny.name,
        identity=model_identity(weights, tiny.spec, field_config),
        dtype="fp32",
        spec=tiny.spec,
        task=task,
        time=_time(tiny),
        solver=solver if tiny.buckets else None,
        default_graph=str(tiny.default) if tiny.buckets else tiny.labels[0],
        graphs=graphs,
        gate_names=("observed", "surprise") if tiny.gates else (),
        weights=entries,
        parity=(),
        config=field_config,
        metrics={},
        provenance={"made_by": "tests.helpers.tiny_bundle"},
        files={},
    )


def _time(tiny: Tiny) -> TimeSpec:
    time = tiny.time
    return TimeSpec(
        time.kind,
        time.unit,
        time.ticks_per_column_unit,
        time.tick_seconds,
        time.ticks_per_model_unit,
        time.origin,
        tiny.frequencies,
    )


def _weights_file(weights: Mapping[str, NDArray[np.float32]]) -> tuple[bytes, tuple[WeightEntry, ...]]:
    data = save(dict(weights))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    entries = tuple(
        WeightEntry(name, "float32", value.shape, start + header[name]["data_offsets"][0], value.nbytes)
        for name, value in weights.items()
    )
    return data, entries


def _external(entry: WeightEntry) -> TensorProto:
    tensor = TensorProto(name=entry.name, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend(entry.shape)
    for key, value in (("location", WEIGHTS_NAME), ("offset", entry.offset), ("length", entry.length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _port(name: str, shape: tuple[int, ...], dtype: str = "float32") -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if dtype == "int64" else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, ["B", *shape])


def _vector_row(tiny: Tiny, row: int, batch: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    values: dict[str, NDArray[np.generic]] = {}
    for tensor in tiny.spec.inputs:
        shape = (batch, *tensor.shape)
        if tensor.name == "mask":
            values["mask"] = (rng.random(shape) > (1.0 if row % 7 == 6 else 0.2)).astype(np.float32)
        elif tensor.name == "dt":
            values["dt"] = rng.exponential(0.3, shape).astype(np.float32)
        elif tensor.dtype == "int64":
            values[tensor.name] = rng.integers(0, TOKENS, shape)
        else:
            values[tensor.name] = rng.normal(size=shape).astype(np.float32)
    return values


def _stack(rows: list[list[dict[str, Array]]]) -> dict[str, NDArray[np.generic]]:
    """[outer][batch][name] → name → `[outer, batch, …]` float32."""
    return {
        name: np.stack([np.stack([value[name] for value in row]) for row in rows]).astype(np.float32)
        for name in rows[0][0]
    }
