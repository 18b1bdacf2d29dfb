"""What a half-precision export is checked by, beyond what every export is: its rounding, and where that leads.

ONNX Runtime multiplies half-precision matrices on no CPU, or only after widening them, so the arithmetic of such an
engine is worked out by twins of the graphs: float32 graphs with rounded matrices that round what goes into products
and comes out of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from odestream.export.graph import build_graphs
from odestream.export.plan import BATCH, Plan, make_plan, source
from odestream.export.precision import FULL, Precision, narrow_products
from odestream.export.traced import trace_cell
from odestream.export.verify import Ticker, verify_rounding
from odestream.export.weights import encode_weights
from odestream.models.cell import Cell
from odestream.runtime.arena import Layout
from odestream.runtime.backends import Binding, Engine, open_engine
from odestream.runtime.bundle import Bundle
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.contract.spec import StepSpec

PRECISION = "half_precision"
DRIFT_STEPS = 10_000
BACKEND = "onnxruntime"
_WINDOW = 1000
_TIMED_CALLS = 200

Progress = Callable[[str, int, int], None]


def float_bundle(module: Cell, draft: Manifest, rounds: torch.dtype | None) -> Bundle:
    """The module's graphs with float32 matrices, in memory; `rounds`: see `trace_cell`."""
    traced = trace_cell(module, rounds=rounds)
    _, entries = encode_weights(traced.weights)
    graphs = build_graphs(traced, [int(label) for label in draft.graphs], entries, draft.provenance["odestream"])
    manifest = msgspec.structs.replace(draft, dtype=FULL.name, weights=entries)
    return memory_bundle(manifest, graphs, traced.weights)


def memory_bundle(
    manifest: Manifest, graphs: Mapping[str, onnx.ModelProto], weights: Mapping[str, torch.Tensor]
) -> Bundle:
    """Graphs as a backend will get them, before anything is on the disk."""
    files = {manifest.graphs[label]: graph.SerializeToString() for label, graph in graphs.items()}
    arrays: dict[str, NDArray[np.generic]] = {name: _array(tensor) for name, tensor in weights.items()}
    return Bundle(Path(manifest.name), manifest, files, arrays)


def _array(tensor: torch.Tensor) -> NDArray[np.generic]:
    """As `Bundle` holds it: bfloat16 as uint16."""
    plain = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[np.generic] = plain.numpy()
    return array


def verify_half(module: Cell, draft: Manifest, to: Precision, tick: Ticker) -> tuple[ParityRow, ...]:
    """Twins that round against torch that rounds, in each bucket and over short chains."""
    with _opened(float_bundle(module, draft, to.dtype)) as engine, narrow_products(to):
        return verify_rounding(engine, draft, module, tick)


def measure_half(
    full: Cell, module: Cell, draft: Manifest, shipped: Bundle, to: Precision, progress: Progress
) -> dict[str, Any]:
    """How far the stream of `module` in half precision drifts from that of `full` in float32, and what it saves.

    Both live through the same 10,000 calls in the default bucket, each from its own states. A tensor's drift is the
    root mean square of the difference over its spread (the standard deviation of its own course), in the first and in
    the last 1,000 calls. Microseconds are medians of one call at batch 1 on ONNX Runtime, None where it has no such
    products.
    """
    label = draft.default_graph
    original = float_bundle(full, draft, None)
    with _opened(original) as one, _opened(float_bundle(module, draft, to.dtype)) as other:
        drift = _drift(one.bind(BATCH), other.bind(BATCH), draft.spec, _plan(full, draft), progress)
        speed: dict[str, float | None] = {FULL.name: _microseconds(one, label), to.name: None}
    if to.dtype != torch.bfloat16:
        with _opened(shipped) as narrow:
            speed[to.name] = _microseconds(narrow, label)
    sizes = {FULL.name: original, to.name: shipped}
    return {
        "dtype": to.name,
        "steps": DRIFT_STEPS,
        "bucket": label,
        "weight_bytes": {name: sum(e.length for e in b.manifest.weights) for name, b in sizes.items()},
        "onnxruntime_us": speed,
        "drift": drift,
    }


def _plan(cell: Cell, draft: Manifest) -> Plan:
    origin = source(cell, draft.spec, draft.solver, draft.time)
    return make_plan(origin, [draft.default_graph] * DRIFT_STEPS, seed=4)


def _drift(one: Binding, other: Binding, spec: StepSpec, plan: Plan, progress: Progress) -> dict[str, dict[str, float]]:
    """Tensor → {"first", "last"}; see `measure_half`."""
    layouts = Layout(spec.outputs, BATCH), Layout(spec.state, BATCH)
    sums = [np.zeros((2, layout.size)) for layout in layouts]  # Σ v, Σ v² of the float32 stream
    squares = [np.zeros((2, layout.size)) for layout in layouts]  # Σ d² in the first and the last window
    for i, label in enumerate(plan.labels):
        for binding in (one, other):
            for name, values in plan.inputs.items():
                binding.inputs[name][...] = values[i]
            binding.run(label)
            binding.swap()
        sides = ((one.flat_outputs, other.flat_outputs), (one.arena, other.arena))
        for (expected, found), total, square in zip(sides, sums, squares, strict=True):
            value = expected.astype(np.float64)
            total += value, value * value
            if not _WINDOW <= i < len(plan.labels) - _WINDOW:
                square[int(i >= _WINDOW)] += (found - value) ** 2
        progress("measuring drift", i, len(plan.labels))
    rows: dict[str, dict[str, float]] = {}
    for layout, total, square in zip(layouts, sums, squares, strict=True):
        mean, mean_square = total / len(plan.labels)
        spread = np.maximum(mean_square - mean * mean, 0.0)
        for name, place in _places(layout).items():
            scale = max(float(spread[place].mean()), 1e-12)
            first, last = (float(np.sqrt(part[place].mean() / _WINDOW / scale)) for part in square)
            rows[name] = {"first": first, "last": last}
    return rows


def _places(layout: Layout) -> dict[str, slice]:
    starts = [*layout.offsets.values(), layout.size]
    return {name: slice(starts[i], starts[i + 1]) for i, name in enumerate(layout.offsets)}


def _microseconds(engine: Engine, label: str) -> float:
    binding, taken = engine.bind(1), list[int]()
    for _ in range(_TIMED_CALLS):
        before = time.perf_counter_ns()
        binding.run(label)
        taken.append(time.perf_counter_ns() - before)
    return round(statistics.median(taken) / 1e3, 1)


@contextmanager
def _opened(bundle: Bundle) -> Iterator[Engine]:
    engine = open_engine(BACKEND, bundle, threads=1)
    try:
        yield engine
    finally:
        engine.close()
