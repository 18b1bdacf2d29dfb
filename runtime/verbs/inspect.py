"""`odestream inspect`: what is in a bundle or a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from odestream.runtime.bundle import read_bundle
from odestream.runtime.contract.manifest import Calibration, Manifest, ParityRow, SolverSpec
from odestream.runtime.contract.spec import StateSpec, TensorSpec
from odestream.runtime.errors import CompatError
from odestream.runtime.model import load
from odestream.runtime.snapshot import read_contents, read_snapshot
from odestream.runtime.timestamps import format_time
from odestream.runtime.verbs.console import print_json, show_table, size_text
from odestream.runtime.verbs.memories import describe_members, show_members
from odestream.runtime.verbs.tally import histogram

_SHORT = 12  # characters of a hash that tell two apart
_SHOWN_STREAMS = 8


def inspect(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE|SNAPSHOT", help="A bundle's directory or a snapshot's file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")] = False,
) -> None:
    """Show what is in a bundle or a snapshot, after checking every hash; a snapshot needs no bundle.

    Of a bundle: task, clock, solver and its calibration, provenance, which backend runs it here and why, tensors, the
    worst of its parity (--json: all of it), files. Of a snapshot: its streams, their clocks and counters, and what
    their memories hold.
    """
    if path.is_dir():
        _inspect_bundle(path, as_json)
    else:
        _inspect_snapshot(path, as_json)


def _inspect_bundle(path: Path, as_json: bool) -> None:
    manifest = read_bundle(path).manifest
    if as_json:
        print_json(msgspec.to_builtins(manifest))
        return
    show_table(f"Bundle {path}", ("field", "value"), [*_about(manifest), ("runs here", _backend(path))])
    _show_calibration(manifest.solver)
    _show_tensors(manifest)
    _show_parity(manifest.parity)
    show_table(
        "Files",
        ("file", "size", "sha256"),
        [(name, size_text(entry.size), entry.sha256[:_SHORT]) for name, entry in sorted(manifest.files.items())],
        numbers=("size",),
    )


def _backend(path: Path) -> str:
    """Which backend `auto` takes for the bundle on this machine, and why."""
    try:
        with load(path) as model:
            return model.why
    except CompatError as error:
        return f"no: {error}"


def _about(manifest: Manifest) -> list[tuple[str, str]]:
    task, time, solver = manifest.task, manifest.time, manifest.solver
    tick = "an abstract tick" if time.tick_seconds is None else f"ticks of {time.tick_seconds:g} s"
    model_unit = time.ticks_per_model_unit / time.ticks_per_column_unit
    column = "dates" if time.kind == "iso" else f"numbers of {time.unit}"
    rows = [
        ("name", manifest.name),
        ("identity", manifest.identity[:_SHORT]),
        ("task", f"{task.kind}: {', '.join(task.inputs) or 'x'} → {', '.join(task.targets) or 'y'}"),
        ("labels", ", ".join(task.labels)),
        ("columns", f"time {task.time or 'none'}, stream {task.stream or 'none'}"),
        ("clock", f"{column}, {tick}, the model's unit is {model_unit:.6g} {time.unit}"),
        ("frequencies", ", ".join(f"{frequency:.5g}" for frequency in time.frequencies)),
        ("precision", manifest.dtype),
        ("state", size_text(manifest.spec.state_bytes) + " a stream"),
        ("solver", "none" if solver is None else f"{solver.method}, {', '.join(map(str, solver.buckets))} steps"),
    ]
    rows += [] if solver is None else _about_solver(solver)
    rows += sorted(manifest.provenance.items())
    return [(name, value) for name, value in rows if value]


def _about_solver(solver: SolverSpec) -> list[tuple[str, str]]:
    estimate = "with" if solver.error_estimate else "without"
    rows = [
        ("default bucket", str(solver.default_bucket)),
        ("tolerance", f"rtol {solver.rtol:g}, atol {solver.atol:g}, {estimate} error estimate"),
        ("stiffness", f"{solver.stiffness:.4g} per model unit, a gap is split into at most {solver.max_calls} calls"),
    ]
    if solver.error_estimate:
        factor = f"{solver.safety_factor:.4g} of the tolerance; above it a result is run again, split, then flagged"
        rows += [("safety factor", factor), ("calibration", _promise(solver.calibration))]
    if solver.error_ratios:
        by_bucket = zip(solver.buckets, solver.error_ratios, strict=True)
        rows.append(("error ratios", ", ".join(f"{ratio:.3g} at {bucket} steps" for bucket, ratio in by_bucket)))
    return rows


def _promise(calibration: Calibration | None) -> str:
    """What the safety factor promises, in words."""
    if calibration is None:
        return "none: nothing is promised of results that are not flagged"
    target = f"{100 * calibration.target:g} % of unflagged results within tolerance of {calibration.reference}"
    basis = f"{100 * calibration.confidence:g} % confidence, {calibration.chosen_on:,} calls, {calibration.source}"
    return f"{target} ({basis}); {'reached' if calibration.reached else 'NOT reached'}"


def _show_calibration(solver: SolverSpec | None) -> None:
    """What came of the safety factor on calls that it was not chosen on."""
    if solver is None or solver.calibration is None or not solver.calibration.rows:
        return
    columns = (
        "calls",
        "count",
        "flagged",
        "within tolerance",
        "worst",
        "worst flagged",
        "evaluations",
        "runs by steps",
    )
    rows = []
    for row in solver.calibration.rows:
        kept = row.calls - row.flagged
        within = f"{row.within:,} of {kept:,} ({100 * row.within / kept:.4g} %)" if kept else "none unflagged"
        errors = (f"{row.worst:.3g}", f"{row.worst_flagged:.3g}" if row.flagged else "")
        rows.append(
            (
                row.kind,
                f"{row.calls:,}",
                f"{row.flagged:,}",
                within,
                *errors,
                f"{row.evaluations:.3g}",
                histogram(row.buckets, row.rejected),
            )
        )
    show_table("Calibration (errors in units of the tolerance)", columns, rows, numbers=columns[1:7])


def _show_tensors(manifest: Manifest) -> None:
    spec = manifest.spec
    kinds: Sequence[tuple[str, Sequence[TensorSpec | StateSpec]]] = (
        ("input", spec.inputs),
        ("output", spec.outputs),
        ("state", spec.state),
    )
    rows = [(kind, t.name, _shape(t.shape), getattr(t, "dtype", "float32")) for kind, group in kinds for t in group]
    show_table("Tensors (B streams)", ("kind", "name", "shape", "dtype"), rows)


def _show_parity(parity: Sequence[ParityRow]) -> None:
    """The row of each check that came nearest to its tolerance."""
    if not parity:
        print("No parity is recorded.\n")
        return
    worst: dict[str, ParityRow] = {}
    for row in parity:
        held = worst.get(row.check)
        if held is None or row.error * held.tolerance > held.error * row.tolerance:
            worst[row.check] = row
    show_table(
        "Parity with the module it was exported from (worst of all tensors and buckets)",
        ("check", "worst tensor", "steps", "error", "tolerance"),
        [(r.check, r.tensor, str(r.steps), f"{r.error:.1e}", f"{r.tolerance:.0e}") for r in worst.values()],
        numbers=("steps", "error", "tolerance"),
    )


def _inspect_snapshot(path: Path, as_json: bool) -> None:
    info, members = read_contents(read_snapshot(path), str(path))
    streams: list[dict[str, Any]] = [
        {
            "name": record.name,
            "time": None if record.last_tick is None else format_time(record.last_tick, info.time),
            "tick": record.last_tick,
            "steps": record.steps,
            "flagged": record.flagged,
            "split": record.split,
            "rerun": record.rerun,
            "buckets": record.buckets,
            "rejected": record.rejected,
            "previous": msgspec.to_builtins(record.previous),
            "members": describe_members({name: value[i] for name, value in members.items()}),
        }
        for i, record in enumerate(info.streams)
    ]
    if as_json:
        print_json({"model": info.name, "identity": info.identity, "streams": streams})
        return
    print(f"Snapshot {path} of model {info.name} ({info.identity[:_SHORT]})\n")
    columns = ("stream", "time", "steps", "run again", "split", "flagged", "calls by solver steps")
    rows = [
        (
            s["name"] or "(unnamed)",
            s["time"] or "none",
            *(str(s[key]) for key in ("steps", "rerun", "split", "flagged")),
            histogram(s["buckets"], s["rejected"]),
        )
        for s in streams
    ]
    show_table("Streams", columns, rows, numbers=columns[2:6])
    for stream in streams[:_SHOWN_STREAMS]:
        show_members(f"State of {stream['name'] or 'the stream'}", stream["members"])
    if len(streams) > _SHOWN_STREAMS:
        print(f"The states of {len(streams) - _SHOWN_STREAMS} more streams are in the output of --json.")


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(["B", *map(str, shape)]) + "]"
