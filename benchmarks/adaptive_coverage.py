"""How far the deployed steps of a stream lie from the truth, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_probe import Flow, Probe, batch_coupled, reached, references, true_errors
from odestream.models.field import FieldWeights
from odestream.runtime import Model
from odestream.runtime.contract.manifest import SolverSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.records import Counters, Output
from odestream.runtime.session import Stream
from odestream.runtime.table import Series

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Walked:
    """Steps over a gap. flows: what each did to h. true: [T] true errors. evaluations: of the field, of all calls."""

    solver: SolverSpec
    flows: tuple[Flow, ...]
    true: Floats
    evaluations: int

    @property
    def outputs(self) -> list[Output]:
        """What the runtime said of each step."""
        return [flow.output for flow in self.flows]


def walk(
    model: Model, weights: FieldWeights, streams: Iterable[Series], buckets: Sequence[int] | None = None
) -> Walked:
    """Every stream through `Stream.step`, each of its steps probed; a stream's first row crosses no gap.

    Raises RuntimeError where a probe does not repeat what the stream did.
    """
    solver = solver_of(model)
    probe, flows, spent = Probe(model, buckets), list[Flow](), 0
    for series in streams:
        stream = model.stream(buckets)
        take(stream, series, 0)
        begun = evaluations(stream.counters, solver)
        for row in range(1, len(series.ticks)):
            before = stream.save()
            output = take(stream, series, row)
            flow = probe.cross(before, int(series.ticks[row]))
            if (flow.output.err, flow.output.bucket, flow.output.calls) != (output.err, output.bucket, output.calls):
                raise RuntimeError(f"the probe crossed the gap to row {row} otherwise than the stream did")
            flows.append(flow)
        spent += evaluations(stream.counters, solver) - begun
    true = true_errors(flows, reached(flows), references(flows, weights), solver.rtol, solver.atol)
    return Walked(solver, tuple(flows), true, spent)


def take(stream: Stream, series: Series, row: int) -> Output:
    """One row into a stream."""
    return stream.step(series.x[row], t=int(series.ticks[row]), mask=series.mask[row])


def evaluations(counters: Counters, solver: SolverSpec) -> int:
    """Field evaluations of all calls that were counted, accepted and rejected."""
    table = tableau(solver.method)
    counts = [*counters.buckets.items(), *counters.rejected.items()]
    return sum(table.evaluations(int(label)) * count for label, count in counts)


def summary(walked: Walked) -> dict[str, Any]:
    """Counts and shares; `within` is the share of the unflagged steps, `within_all` of all."""
    flagged = np.array([o.flagged for o in walked.outputs])
    over = np.array([(o.err or 0.0) > walked.solver.safety_factor for o in walked.outputs])
    right, accepted = walked.true <= 1, walked.true[~flagged]
    return {
        "steps": len(flagged),
        "accepted": int((~flagged).sum()),
        "within": _share(right[~flagged]),
        "worst": float(accepted.max(initial=0.0)),
        "within_all": _share(right),
        "worst_flagged": float(walked.true[flagged].max(initial=0.0)),
        "flagged": _share(flagged),
        "over_unflagged": int((over & ~flagged).sum()),
        "reruns": _share(np.array([o.reruns > 0 for o in walked.outputs])),
        "splits": _share(np.array([o.calls > 1 for o in walked.outputs])),
        "evaluations": walked.evaluations / len(flagged),
    }


def coupled_summary(walked: Walked, weights: FieldWeights) -> dict[str, float]:
    """torchdiffeq's dopri5 at the same tolerances over the same flows, in batches that share a step size."""
    solver = walked.solver
    after = batch_coupled(walked.flows, weights, solver.rtol, solver.atol)
    expected = references(walked.flows, weights)
    errors = true_errors(walked.flows, after, expected, solver.rtol, solver.atol)
    return {"within": _share(errors <= 1), "worst": float(errors.max())}


def solver_of(model: Model) -> SolverSpec:
    """The solver of a model that has one."""
    solver = model.manifest.solver
    if solver is None:
        raise ValueError(f"{model.manifest.name} has no solver")
    return solver


def _share(which: NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else 0.0
