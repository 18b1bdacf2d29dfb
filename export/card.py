"""MODEL_CARD.md: what a person wants to know of a bundle before using it, written from its manifest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from odestream.export.half import PRECISION
from odestream.export.markdown import plain, table, text
from odestream.export.solver_card import GATE, error_section, solver_section
from odestream.runtime.contract.manifest import Manifest, ParityRow
from odestream.runtime.replay import cut_short

TRAINING_FACTS = ("deployed_solver_steps", "best_validation_score", "parameters", "seconds", "steps")
ELSEWHERE = ("task", "seed", "data_sha256", GATE, PRECISION)  # they stand in other sections
LIMITS = """\
A new stream knows nothing: let it live through past rows before its answers count. Times are true times, not times
since the start. Accuracy is that of the test part above; nothing is claimed for other data, and a flagged row says only
that the solver's own error estimate exceeds the safety factor."""


def model_card(manifest: Manifest, files: Mapping[str, bytes], training: Mapping[str, Any]) -> str:
    """The card's text. files: name → content of the bundle's other files; training: what the run says of itself."""
    sections = (
        ("", _summary(manifest)),
        ("Training", _training(manifest, training)),
        ("Accuracy", _accuracy(manifest.metrics)),
        ("Inputs and outputs", _tensors(manifest)),
        ("State", _state(manifest)),
        ("Half precision", _half_precision(manifest.metrics.get(PRECISION))),
        ("Solver", solver_section(manifest.solver)),
        ("Solver error", error_section(manifest.solver, manifest.metrics) if manifest.solver else ""),
        ("Parity with torch", _parity(manifest.parity)),
        ("Files", table(("file", "bytes"), [(name, f"{len(data):,}") for name, data in sorted(files.items())])),
        ("Use", _use(manifest)),
        ("Provenance", table(("", ""), [(f"{key}", f"`{value}`") for key, value in manifest.provenance.items()])),
    )
    return "\n".join(f"## {title}\n\n{body}\n" if title else f"{body}\n" for title, body in sections if body)


def _summary(manifest: Manifest) -> str:
    task = manifest.task
    what = {
        "forecast": f"Forecasts {', '.join(task.targets)} from {', '.join(task.inputs)} at irregular times.",
        "classify": f"Classifies streams of {', '.join(task.inputs)} into {', '.join(task.labels)}.",
        "tokens": "Predicts the next byte of a text.",
        "step": "A step function exported from a torch module.",
    }[task.kind]
    parameters = sum(math.prod(entry.shape) for entry in manifest.weights)
    kind = "float32" if manifest.dtype == "fp32" else f"{manifest.dtype} (matrices) and float32 (vectors)"
    return (
        f"# {manifest.name}\n\n{what} One call takes one observation and the state, and returns the answer and the "
        f"new state.\n\n{parameters:,} weights in {kind}; {manifest.spec.state_bytes:,} bytes of state a stream."
    )


def _training(manifest: Manifest, training: Mapping[str, Any]) -> str:
    """Settings and data, and what metrics.json says of the training itself."""
    if not training:
        return "Exported from a module; nothing is recorded of its training."
    clock = manifest.time
    rows = [
        (f"{group}: {plain(key)}", text(value)) for group, values in training.items() for key, value in values.items()
    ]
    rows = [(key, value) for key, value in rows if value and key != "data: median gap"]
    rows.append(
        ("data: median gap", f"{clock.ticks_per_model_unit / 10 / clock.ticks_per_column_unit:.4g} {clock.unit}")
    )
    rows += [(plain(key), text(value)) for key, value in manifest.metrics.items() if key in TRAINING_FACTS]
    return table(("", ""), rows)


def _accuracy(metrics: Mapping[str, Any]) -> str:
    """Whatever the trainer measured, rivals beside the model."""
    measured = {key: value for key, value in metrics.items() if key not in (*TRAINING_FACTS, *ELSEWHERE)}
    return "\n\n".join(_measures(measured, "")) or "Not measured."


def _measures(metrics: Mapping[str, Any], title: str) -> Iterable[str]:
    """Tables of a tree of measures: groups with the same measures are the rows of one table."""
    single = [(plain(key), text(value)) for key, value in metrics.items() if not isinstance(value, Mapping)]
    if single:
        yield _titled(title, table(("measure", "value"), single))
    groups = {key: value for key, value in metrics.items() if isinstance(value, Mapping)}
    rows = {key: dict(_leaves(value)) for key, value in groups.items()}
    heads = {tuple(row) for row in rows.values()}
    if len(heads) == 1 and all(any(not isinstance(v, Mapping) for v in group.values()) for group in groups.values()):
        lines = [(key, *map(text, row.values())) for key, row in rows.items()]
        ahead = "gaps ahead" if all(key.isdigit() for key in rows) else ""
        yield _titled(title, table((ahead, *map(plain, heads.pop())), lines))
        return
    for key, group in groups.items():
        yield from _measures(group, f"{title}, {key}" if title else plain(key))


def _titled(title: str, table: str) -> str:
    return f"**{title}**\n\n{table}" if title else table


def _tensors(manifest: Manifest) -> str:
    rows = [("input", t.name, _shape(t.shape), t.dtype) for t in manifest.spec.inputs]
    rows += [("output", t.name, _shape(t.shape), t.dtype) for t in manifest.spec.outputs]
    tensors = table(("", "name", "shape", "dtype"), rows)
    columns = f"\n\nx holds, in this order: {', '.join(manifest.task.inputs)}." if manifest.task.inputs else ""
    gates = f"\n\ngates holds: {', '.join(manifest.gate_names)}." if manifest.gate_names else ""
    return tensors + columns + gates


def _state(manifest: Manifest) -> str:
    rows = [(m.name, _shape(m.shape), ", ".join(f"{v:g}" for v in m.initial)) for m in manifest.spec.state]
    pairing = "Graphs name a member NAME `state_in_NAME` and `state_out_NAME`: pair them by name, never by position."
    return f"{pairing}\n\n{table(('member', 'shape', 'initial'), rows)}"


def _half_precision(measured: Mapping[str, Any] | None) -> str:
    """What it saves, and how far it leads from the float32 model."""
    if measured is None:
        return ""
    dtypes = measured["weight_bytes"]
    costs = [
        ("bytes of weights", *(f"{dtypes[name]:,}" for name in dtypes)),
        ("one call on onnxruntime's CPU, µs", *(text(measured["onnxruntime_us"][name]) or "-" for name in dtypes)),
    ]
    drift = [(name, text(row["first"]), text(row["last"])) for name, row in measured["drift"].items()]
    return (
        f"Matrices and their products with activations are {measured['dtype']}; vectors, the state, the solver's sums "
        "and its error are float32. Beside the same model in float32:\n\n"
        f"{table(('', *dtypes), costs)}\n\n"
        f"Drift over {measured['steps']:,} chained calls in bucket {measured['bucket']}, each model from its own "
        "states: root mean square of the difference over the tensor's own spread. Slots of the episodic memory (e…) "
        "may differ altogether: a rounding decides now and then which gives way.\n\n"
        f"{table(('tensor', 'first 1,000 calls', 'last 1,000 calls'), drift)}"
    )


def _parity(rows: Sequence[ParityRow]) -> str:
    """The worst tensor of each check; all rows stand in the manifest."""
    groups: dict[tuple[str, int, int], list[ParityRow]] = {}
    for row in rows:
        groups.setdefault((row.check, row.bucket, row.steps), []).append(row)
    lines = []
    for (check, bucket, steps), group in groups.items():
        values = max((r for r in group if r.tensor != "err"), key=lambda r: r.error)
        err = [r.error for r in group if r.tensor == "err"]
        estimate = f"{err[0]:.1e}" if err else ""
        lines.append((check, str(bucket or "all"), f"{steps:,}", f"{values.error:.1e}", values.tensor, estimate))
    limits = sorted({(r.tensor == "err", r.tolerance) for r in rows})
    allowed = " and ".join(f"{limit:.0e} for {'err' if is_err else 'values'}" for is_err, limit in limits)
    head = ("check", "bucket", "steps", "largest difference", "of", "of err")
    shorter = cut_short(rows)
    amplified = f"\n\n{shorter[0].upper()}{shorter[1:]}." if shorter else ""
    return (
        "Largest difference from the eager torch step over irregular gaps, holes, queries and resets, relative to the "
        f"tensor's largest value (err: in units of the tolerance). Allowed: {allowed}.\n\n{table(head, lines)}"
        f"{amplified}"
    )


def _use(manifest: Manifest) -> str:
    channels = manifest.task.inputs or [f"x{i}" for i in range(manifest.spec.inputs[0].size)]
    x = "byte" if manifest.task.kind == "tokens" else f"[{', '.join(channels)}]"
    time = "" if manifest.spec.input("dt") is None else ", t=model.tick(time)"
    return (
        f"```\nodestream verify {manifest.name}\n"
        f"odestream run {manifest.name} --input data.csv --output predictions.csv --snapshot state.snap\n```\n\n"
        "```python\nfrom odestream.runtime import load\n\n"
        f'with load("{manifest.name}") as model:\n    stream = model.stream()\n    out = stream.step({x}{time})\n```'
        f"\n\n{LIMITS}"
    )


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping):
            yield from _leaves(inner, f"{name} / ")
        else:
            yield name, inner


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['B', *map(str, shape)])}]"
