"""The model card on the solver: how it is set, how far it errs, and whether that matters to the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from odestream.export.calibrate import HELD_OUT, covered
from odestream.export.calibration_samples import BURSTS, GAPS, STREAMS
from odestream.export.markdown import table, text
from odestream.runtime.contract.manifest import Calibration, CoverageRow, SolverSpec

FIGURE_NAME = "calibration.png"
GATE, OLD_GATE = "solver_gate", "validation_mae_by_solver_steps"
FLAT = 0.01  # relative change of the metric from 1 step to 16 that nobody notices
_KINDS = {
    STREAMS: "streams as they came",
    GAPS: "their states, gaps from 0.05 to 5 model units",
    BURSTS: "outbursts, shorter and longer gaps",
}
_SOURCES = {
    True: "The streams are validation rows of the training data, which the weights were not fitted to.",
    False: "The streams are made up, since the model came without enough held-out ones: real data may differ.",
}


def solver_section(solver: SolverSpec | None) -> str:
    """How the solver is set."""
    if solver is None:
        return "None: the module has one graph."
    estimate = "with an embedded error estimate" if solver.error_estimate else "without an error estimate (err is 0)"
    choice = (
        "the runtime chooses among them call by call, runs again where err is too large, then splits the gap"
        if len(solver.buckets) > 1
        else "nothing is run again"
    )
    flagging = (
        f"above the safety factor {solver.safety_factor:g} a result is flagged"
        if solver.error_estimate
        else "it cannot be flagged"
    )
    return (
        f"{solver.method}, {estimate}; graphs with {', '.join(map(str, solver.buckets))} steps a call, "
        f"{solver.default_bucket} by default: {choice}. err is in units of the tolerance, "
        f"{solver.atol:g} + {solver.rtol:g}·|h|{_ratios(solver)}: {flagging}. "
        f"The field's stiffness is at most {solver.stiffness:.3g} per model time unit; gaps longer than the largest "
        "graph takes stably are split by the runtime."
    )


def _ratios(solver: SolverSpec) -> str:
    """What a runtime makes of a graph's own estimate."""
    if not solver.error_ratios:
        return ""
    ratios = ", ".join(f"{ratio:.2g}" for ratio in solver.error_ratios)
    return f" (a runtime reports the graphs' own estimate times {ratios}, read off the calibration)"


def error_section(solver: SolverSpec, metrics: Mapping[str, Any]) -> str:
    """How far the solver errs, and what the task notices of it."""
    parts = [] if solver.calibration is None else list(_calibration(solver, solver.calibration))
    return "\n\n".join([*parts, *_task(metrics)])


def _calibration(solver: SolverSpec, found: Calibration) -> Iterable[str]:
    yield _promise(solver, found)
    yield (
        "The true error of a call is the root mean square over h of its distance from the reference, in units of the "
        f"tolerance, over the whole gap; the reference is {found.reference}. "
        f"{_SOURCES[found.source == HELD_OUT]} The counts are of calls that the factor was not chosen on "
        f"(it was on {found.chosen_on:,} others)."
    )
    columns = ("calls", "number", "flagged", "of the others within tolerance", "worst of them", "worst flagged")
    yield table(columns, [_coverage(row) for row in found.rows])
    buckets = [str(bucket) for bucket in solver.buckets]
    head = ("calls", *(f"bucket {bucket}" for bucket in buckets), "rejected runs", "evaluations a call")
    yield "How often each bucket's result was accepted, and field evaluations with rejected runs counted in:"
    yield table(head, [_work(row, buckets) for row in found.rows])
    yield f"![True error against the solver's estimate, and the buckets]({FIGURE_NAME})"


def _promise(solver: SolverSpec, found: Calibration) -> str:
    if not solver.error_estimate:
        return (
            f"**Nothing is promised.** {solver.method} does not estimate its error, so no result is ever flagged; the "
            "table says how far it erred here."
        )
    every = f"Every call whose err exceeds the safety factor {solver.safety_factor:g} is flagged."
    if not found.reached:
        return (
            f"**Uncalibrated.** {every} But no factor kept {found.target:.0%} of the unflagged calls of every kind "
            "within tolerance, so an unflagged result may be worse than its tolerance; the table says how often it was."
        )
    return (
        f"{every} The factor was chosen so that, with {found.confidence:.0%} confidence, at least {found.target:.0%} "
        "of the unflagged calls lie within tolerance, on calls like those of each kind below, counted as independent "
        "and with all buckets at hand; gaps of more than 5 model units were not tried. It bounds what the solver does "
        "to one call, not the model's own error, and is measured, not proved."
    )


def _coverage(row: CoverageRow) -> tuple[str, ...]:
    flagged = f"{row.flagged:,} ({row.flagged / max(1, row.calls):.1%})"
    trusted = row.calls - row.flagged
    within = f"{row.within:,} of {trusted:,} ({covered(row):.2%})" if trusted else "none left"
    worst_flagged = f"{row.worst_flagged:.2g} ×" if row.flagged else ""
    return _KINDS.get(row.kind, row.kind), f"{row.calls:,}", flagged, within, f"{row.worst:.2g} ×", worst_flagged


def _work(row: CoverageRow, buckets: Iterable[str]) -> tuple[str, ...]:
    accepted = (f"{row.buckets.get(bucket, 0):,}" for bucket in buckets)
    return _KINDS.get(row.kind, row.kind), *accepted, f"{sum(row.rejected.values()):,}", f"{row.evaluations:.1f}"


def _task(metrics: Mapping[str, Any]) -> Iterable[str]:
    """The trainer's metric by solver steps: what a user feels of the solver."""
    gate = metrics.get(GATE)
    if isinstance(gate, Mapping):
        row = {**gate.get("by_steps", {}), "dopri5": gate.get("dopri5")}
        yield f"What the task notices: {gate.get('metric', 'the metric')} by solver steps, less is better."
        yield table(("", *row), [("", *map(text, row.values()))])
        yield _gate_verdict(gate.get("passed"))
    if is_flat(metrics):
        yield (
            f"The metric changes by less than {FLAT:.0%} from 1 step to 16, so for this task a single step "
            "(`odestream export --buckets 1`) is enough. Give larger --rtol and --atol with it, or calls are flagged "
            "whose error the task does not notice."
        )


def _gate_verdict(passed: object) -> str:
    if passed is None:
        return "Whether finer solving makes it worse could not be judged."
    if passed:
        return "Finer solving makes it no worse: the model has not learnt its own solver's error."
    return "**Finer solving makes it worse**: the model fits the task only together with its solver's error."


def is_flat(metrics: Mapping[str, Any]) -> bool:
    """Whether the task's metric is known to hardly change from 1 solver step to 16."""
    gate, old = metrics.get(GATE), metrics.get(OLD_GATE)
    steps = gate.get("by_steps", {}) if isinstance(gate, Mapping) else old if isinstance(old, Mapping) else {}
    ends = [list(_numbers(steps.get(n))) for n in ("1", "16")]
    pairs = list(zip(*ends, strict=True)) if len(ends[0]) == len(ends[1]) else []
    return bool(pairs) and all(abs(one - many) < FLAT * abs(many) for one, many in pairs)


def _numbers(value: object) -> Iterable[float]:
    """The numbers of a tree of metrics, in order; NaN for one that is missing, so that nothing is concluded."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _numbers(inner)
    else:
        yield float(value) if isinstance(value, int | float) else float("nan")
