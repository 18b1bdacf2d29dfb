"""What must hold between the parts of a manifest, beyond each part's own schema.

The exporter runs the same checks before it writes a bundle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from odestream.runtime.contract.manifest import (
    MANIFEST_NAME,
    VECTORS_NAME,
    WEIGHTS_NAME,
    Calibration,
    Manifest,
    SolverSpec,
)
from odestream.runtime.contract.tableau import TABLEAUS
from odestream.runtime.errors import BundleError

NO_SOLVER = "-"
"""Label of the only graph of a bundle without a solver."""

WEIGHT_ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
"""Names of the dtypes a WeightEntry may have, and the bytes of one element."""

# Far outside any real clock; within them no 64-bit tick overflows an angle.
_SHORTEST_UNIT = 1e-9
_HIGHEST_FREQUENCY = 1e12


def check_manifest(manifest: Manifest, where: str) -> None:
    """Raise BundleError, naming `where` and the field, unless the manifest's parts agree."""
    for problem in _problems(manifest):
        raise BundleError(f"{where}: {problem}; export the bundle again")


def _problems(manifest: Manifest) -> Iterator[str]:
    yield from _file_problems(manifest)
    yield from _graph_problems(manifest)
    yield from _solver_problems(manifest)
    yield from _time_problems(manifest)
    yield from _spec_problems(manifest)
    yield from _task_problems(manifest)
    yield from _weight_problems(manifest)


def _file_problems(manifest: Manifest) -> Iterator[str]:
    needed = [*manifest.graphs.values(), WEIGHTS_NAME, VECTORS_NAME]
    missing = sorted(set(needed) - set(manifest.files))
    if missing:
        yield f"files does not list {', '.join(missing)}"
    if MANIFEST_NAME in manifest.files:
        yield f"files lists {MANIFEST_NAME} itself"
    if len(set(manifest.graphs.values())) != len(manifest.graphs):
        yield "graphs names one file for two buckets"


def _graph_problems(manifest: Manifest) -> Iterator[str]:
    solver = manifest.solver
    expected = {NO_SOLVER} if solver is None else {str(bucket) for bucket in solver.buckets}
    if set(manifest.graphs) != expected:
        yield f"graphs has the buckets {sorted(manifest.graphs)}, expected {sorted(expected)}"
    default = NO_SOLVER if solver is None else str(solver.default_bucket)
    if manifest.default_graph != default or default not in manifest.graphs:
        yield f"default_graph is {manifest.default_graph!r}, expected {default!r} among {sorted(manifest.graphs)}"


def _solver_problems(manifest: Manifest) -> Iterator[str]:
    solver = manifest.solver
    if solver is None:
        return
    if solver.method not in TABLEAUS:
        yield f"solver.method is {solver.method!r}, expected one of {', '.join(TABLEAUS)}"
    if not solver.buckets or any(b < 1 for b in solver.buckets) or sorted(set(solver.buckets)) != list(solver.buckets):
        yield f"solver.buckets is {solver.buckets}, expected increasing step counts from 1"
    if not (solver.stiffness >= 0 and math.isfinite(solver.stiffness)):
        yield f"solver.stiffness is {solver.stiffness}, expected a finite value from 0"
    if solver.max_calls < 1:
        yield f"solver.max_calls is {solver.max_calls}, expected at least 1"
    yield from _estimate_problems(solver, manifest.spec.output("err") is not None)


def _estimate_problems(solver: SolverSpec, has_err: bool) -> Iterator[str]:
    if solver.error_estimate and not has_err:
        yield "solver.error_estimate is true, but the step has no output err"
    if solver.error_estimate and solver.method in TABLEAUS and TABLEAUS[solver.method].error is None:
        yield f"solver.error_estimate is true, but {solver.method} has none"
    if solver.error_ratios and len(solver.error_ratios) != len(solver.buckets):
        yield f"solver.error_ratios has {len(solver.error_ratios)} values, expected one for each bucket"
    if not all(ratio > 0 and math.isfinite(ratio) for ratio in solver.error_ratios):
        yield f"solver.error_ratios is {solver.error_ratios}, expected finite values above 0"
    if not (solver.safety_factor > 0 and math.isfinite(solver.safety_factor)):
        yield f"solver.safety_factor is {solver.safety_factor}, expected a finite value above 0"
    if not all(value > 0 and math.isfinite(value) for value in (solver.rtol, solver.atol)):
        yield f"solver.rtol and solver.atol are {solver.rtol} and {solver.atol}, expected finite values above 0"
    if solver.calibration is not None:
        yield from _calibration_problems(solver.calibration, {str(bucket) for bucket in solver.buckets})


def _calibration_problems(calibration: Calibration, labels: set[str]) -> Iterator[str]:
    for row in calibration.rows:
        unknown = sorted((row.buckets.keys() | row.rejected.keys()) - labels)
        if unknown:
            yield f"solver.calibration: {row.kind} names {', '.join(unknown)}, no bucket of the bundle"
        if not 0 <= row.within <= row.calls - row.flagged <= row.calls:
            yield f"solver.calibration: {row.kind} has {row.within} of {row.calls} calls within tolerance"
    if not (0 < calibration.target < 1 and 0 < calibration.confidence < 1):
        yield "solver.calibration: target and confidence must lie between 0 and 1"


def _time_problems(manifest: Manifest) -> Iterator[str]:
    time = manifest.time
    if not _SHORTEST_UNIT <= time.ticks_per_model_unit < math.inf:
        yield f"time.ticks_per_model_unit is {time.ticks_per_model_unit}, expected a finite value from {_SHORTEST_UNIT}"
    if not -(1 << 63) <= time.origin < 1 << 63:
        yield f"time.origin is {time.origin}, expected a 64-bit integer"
    if time.ticks_per_column_unit < 1:
        yield f"time.ticks_per_column_unit is {time.ticks_per_column_unit}, expected at least 1"
    if time.tick_seconds is not None and not (time.tick_seconds > 0 and math.isfinite(time.tick_seconds)):
        yield f"time.tick_seconds is {time.tick_seconds}, expected a finite length above 0"
    if not all(0 <= frequency <= _HIGHEST_FREQUENCY for frequency in time.frequencies):
        yield f"time.frequencies is {time.frequencies}, expected values from 0 to {_HIGHEST_FREQUENCY:g}"
    phase = manifest.spec.input("phase")
    if phase is not None and phase.shape != (2 * len(time.frequencies),):
        yield f"phase has shape {list(phase.shape)}, expected sine and cosine of {len(time.frequencies)} frequencies"


def _spec_problems(manifest: Manifest) -> Iterator[str]:
    spec = manifest.spec
    x, mask, dt, err, gates = (
        spec.input("x"),
        spec.input("mask"),
        spec.input("dt"),
        spec.output("err"),
        spec.output("gates"),
    )
    wrong = [t.name for t in (*spec.inputs, *spec.outputs) if t.name != "x" and t.dtype != "float32"]
    if wrong:
        yield f"{', '.join(wrong)} must be float32"
    if x is not None and mask is not None and mask.shape != (x.shape or (1,)):
        yield f"mask has shape {list(mask.shape)}, expected {list(x.shape or (1,))} as x"
    for tensor in (dt, err):
        if tensor is not None and tensor.shape != (1,):
            yield f"{tensor.name} has shape {list(tensor.shape)}, expected [1]"
    if len(manifest.gate_names) != (gates.size if gates is not None else 0):
        yield f"gate_names has {len(manifest.gate_names)} names, expected one for each value of gates"


def _task_problems(manifest: Manifest) -> Iterator[str]:
    task, x, y = manifest.task, manifest.spec.input("x"), manifest.spec.output("y")
    if x is None or y is None:
        return
    if task.inputs and x.size != len(task.inputs):
        yield f"task.inputs has {len(task.inputs)} columns, but x has {x.size} channels"
    if task.kind == "forecast" and y.size != 2 * x.size:
        yield f"y has {y.size} values, a forecast of {x.size} channels needs {2 * x.size} (mean and log-variance)"
    if task.kind == "forecast" and not set(task.targets) <= set(task.inputs):
        yield f"task.targets {list(task.targets)} are not all among task.inputs"
    if task.kind == "classify" and len(task.targets) != 1:
        yield f"task.targets is {list(task.targets)}, a classifier has one label column"
    if task.kind == "classify" and y.size != len(task.labels):
        yield f"y has {y.size} logits, but task.labels has {len(task.labels)}"


def _weight_problems(manifest: Manifest) -> Iterator[str]:
    weights = manifest.files.get(WEIGHTS_NAME)
    names = [entry.name for entry in manifest.weights]
    if len(set(names)) != len(names):
        yield "weights names a tensor twice"
    for entry in manifest.weights:
        if entry.dtype not in WEIGHT_ITEMSIZE:
            yield f"weight {entry.name} has dtype {entry.dtype!r}, expected one of {', '.join(WEIGHT_ITEMSIZE)}"
            continue
        length = math.prod(entry.shape) * WEIGHT_ITEMSIZE[entry.dtype]
        if any(n < 0 for n in entry.shape) or entry.length != length:
            yield f"weight {entry.name} has {entry.length} bytes, its shape {list(entry.shape)} needs {length}"
        if entry.offset < 0 or (weights is not None and entry.offset + entry.length > weights.size):
            yield f"weight {entry.name} (offset {entry.offset}, {entry.length} bytes) lies outside {WEIGHTS_NAME}"
