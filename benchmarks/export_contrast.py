"""What comes of exporting torchdiffeq's `odeint` itself?

The flow of a cell is written as a user would: `odeint(field, h, [0, T])` with the time T as an input. It goes through
both of torch's ONNX exporters, traced at T = 0.7, and what comes out runs in ONNX Runtime at other T. Beside it stands
the same cell's bundle, which crosses the same gaps from the same states.

    python benchmarks/export_contrast.py --run RUN    a finished run of `odestream train`
    python benchmarks/export_contrast.py --quick      a random cell; checks the script, writes into runs/ only

Writes results/export_contrast.json and a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torchdiffeq import odeint

from adaptive_models import random_model
from adaptive_probe import REFERENCE, Flow, Probe, reached, references, true_errors
from odestream.export import export_bundle
from odestream.models.cell import Cell
from odestream.models.checkpoint import load_checkpoint
from odestream.models.config import PRESETS
from odestream.models.field import Field, derivative, drive, rotate
from odestream.models.flow import integrate
from odestream.runtime import Model, load
from odestream.runtime.records import StreamState
from results import circumstances_text, markdown_table, publish, write_json

Floats = NDArray[np.float64]
Exporter = Literal["torch.export", "TorchScript"]

RUNS = Path(__file__).parents[1] / "runs" / "export_contrast"
TRACED_AT = 0.7
TIMES = (0.1, 0.35, TRACED_AT, 1.4, 2.0, 5.0)  # model units
STEP_SIZE = 0.1
STATES = 32
ROWS_BETWEEN = 5  # of the stream, from one state to the next
OPSETS: dict[Exporter, int] = {"torch.export": 18, "TorchScript": 17}
SHOWN = 90  # characters of a message


@dataclass(frozen=True)
class Route:
    """A way to write the flow with odeint. rescaled: s from 0 to 1 with T a factor of the field, not t from 0 to T."""

    method: str
    step_size: float | None = None
    rescaled: bool = False

    @property
    def name(self) -> str:
        """As a user would write it."""
        options = "" if self.step_size is None else f", step_size={self.step_size:g}"
        return f"{self.method}{options}" + (", over s = t/T" if self.rescaled else "")


ROUTES = (
    Route("dopri5"),
    Route("rk4"),
    Route("rk4", STEP_SIZE),
    Route("rk4", STEP_SIZE, rescaled=True),
)


@dataclass(frozen=True)
class Failure:
    """Why an export or a run failed: each exception of the chain, the outermost first, as (type, first line)."""

    chain: tuple[tuple[str, str], ...]


class OdeintFlow(nn.Module):
    """The flow of a cell's field, integrated by torchdiffeq over a time that is an input."""

    def __init__(self, field: Field, route: Route, rtol: float, atol: float) -> None:
        super().__init__()
        self.field, self.route = field, route
        self.rtol, self.atol = rtol, atol

    def forward(self, h: Tensor, u: Tensor, phase: Tensor, T: Tensor) -> Tensor:
        """h, u [B, D], phase [B, 2K], T [1] -> h after T [B, D]."""
        w, route = self.field.weights(), self.route
        options = None if route.step_size is None else {"step_size": route.step_size}
        if route.rescaled:
            dt = T.expand(h.shape[0], 1)
            method, rtol, atol = route.method, self.rtol, self.atol
            return integrate(h, u, phase, dt, w, method=method, rtol=rtol, atol=atol, options=options)
        fixed = drive(u, w)

        def field(t: Tensor, h: Tensor) -> Tensor:
            if w.time is None or w.frequencies is None:
                return derivative(h, fixed, w)
            return derivative(h, fixed + F.linear(rotate(phase, t * w.frequencies), w.time), w)

        times = torch.cat([torch.zeros(1), T])
        solved = odeint(field, h, times, method=route.method, rtol=self.rtol, atol=self.atol, options=options)
        after: Tensor = solved[-1]
        return after


def main() -> None:
    """Run the benchmark as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="folder of a finished training run")
    which.add_argument("--quick", action="store_true", help="a random cell; its figures mean nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        if options.quick:
            cell = random_model(bundle, PRESETS["nano"]).cell
        else:
            cell = load_checkpoint(options.run)[0].eval()
            export_bundle(options.run, bundle)
        with load(bundle) as model:
            result = measure(cell, model, 4 if options.quick else STATES)
    print(_report(result))
    if options.quick:
        write_json(RUNS / "export_contrast.json", result)
    else:
        publish("export_contrast", result, _report(result))


def measure(cell: Cell, model: Model, count: int) -> dict[str, Any]:
    """Every route and exporter at every T, and the bundle's own crossings, from `count` states of one stream."""
    states = starts(model, count)
    ours = {T: [cross(model, state, T) for state in states] for T in TIMES}
    expected = {T: references(flows, cell.field.weights()) for T, flows in ours.items()}
    flows = ours[TRACED_AT]
    solver = model.manifest.solver
    if solver is None:
        raise ValueError("the model has no solver")
    tolerances = solver.rtol, solver.atol
    routes = []
    for route in ROUTES:
        for exporter in OPSETS:
            made = export(OdeintFlow(cell.field, route, *tolerances), flows, exporter)
            row: dict[str, Any] = {"route": route.name, "exporter": exporter, "exports": not isinstance(made, Failure)}
            if isinstance(made, Failure):
                row["failure"] = [{"type": kind, "message": message} for kind, message in made.chain]
            else:
                row["warnings"] = made[1]
                after = {T: run(made[0], flows, T) for T in TIMES}
                row["error"], row["in_tolerances"] = _errors(ours, after, expected, tolerances)
            routes.append(row)
    error, in_tolerances = _errors(ours, {T: reached(f) for T, f in ours.items()}, expected, tolerances)
    return {
        "traced_at": TRACED_AT,
        "times": TIMES,
        "states": len(states),
        "reference": REFERENCE,
        "rtol": solver.rtol,
        "atol": solver.atol,
        "safety_factor": solver.safety_factor,
        "routes": routes,
        "ours": {
            "error": error,
            "in_tolerances": in_tolerances,
            "err": [max(float(f.output.err or 0.0) for f in ours[T]) for T in TIMES],
            "buckets": [sorted({int(f.output.bucket or 0) for f in ours[T]}) for T in TIMES],
            "calls": [max(f.output.calls for f in ours[T]) for T in TIMES],
            "flagged": [sum(f.output.flagged for f in ours[T]) for T in TIMES],
            "worst_unflagged": [_worst_unflagged(ours[T], expected[T], tolerances) for T in TIMES],
        },
        "torchdiffeq": metadata.version("torchdiffeq"),
    }


def starts(model: Model, count: int) -> list[StreamState]:
    """States along a stream of normal noise around the model's centre, at gaps spread over two decades."""
    random = np.random.default_rng(0)
    config = model.manifest.config
    stream, tick, found = model.stream(), model.manifest.time.origin, []
    for row in range(count * ROWS_BETWEEN):
        x = np.asarray(config["centre"]) + np.asarray(config["scale"]) * random.standard_normal(config["channels"])
        stream.step(x.astype(np.float32), t=tick)
        if row % ROWS_BETWEEN == ROWS_BETWEEN - 1:
            found.append(stream.save())
        tick += round(model.manifest.time.ticks_per_model_unit * 10 ** random.uniform(-2, 0))
    return found


def cross(model: Model, state: StreamState, T: float) -> Flow:
    """The bundle's way over T model units from a state."""
    return Probe(model).cross(state, (state.tick or 0) + round(T * model.manifest.time.ticks_per_model_unit))


def export(module: OdeintFlow, flows: Sequence[Flow], exporter: Exporter) -> tuple[bytes, list[str]] | Failure:
    """The ONNX file of a flow traced at T = 0.7 and the kinds of warnings that were given, or why there is none."""
    feeds = _feeds(flows, TRACED_AT)
    arguments = tuple(torch.from_numpy(value) for value in feeds.values())
    with tempfile.TemporaryDirectory() as folder, _silence(), warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        file = Path(folder) / "flow.onnx"
        try:
            torch.onnx.export(
                module.eval(),
                arguments,
                file,
                dynamo=exporter == "torch.export",
                input_names=list(feeds),
                opset_version=OPSETS[exporter],
                verbose=False,
            )
        except Exception as error:  # noqa: BLE001 (what is raised is the result)
            return Failure(_chain(error))
        return file.read_bytes(), sorted({warning.category.__name__ for warning in given})


def run(file: bytes, flows: Sequence[Flow], T: float) -> Floats:
    """h after T `[B, D]` by an exported flow in ONNX Runtime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    taken = {port.name for port in session.get_inputs()}
    (after,) = session.run(None, {name: value for name, value in _feeds(flows, T).items() if name in taken})
    return np.asarray(after, np.float64)


def _feeds(flows: Sequence[Flow], T: float) -> dict[str, NDArray[np.float32]]:
    states = {name: np.stack([getattr(f, name) for f in flows]) for name in ("h", "u", "phase")}
    return {name: value.astype(np.float32) for name, value in {**states, "T": np.array([T])}.items()}


def _errors(
    ours: Mapping[float, Sequence[Flow]],
    after: Mapping[float, Floats],
    expected: Mapping[float, Floats],
    tolerances: tuple[float, float],
) -> tuple[list[float], list[float]]:
    """Largest |difference| of h at each T, and the largest error of a state in units of the tolerance."""
    plain = [float(np.abs(after[T] - expected[T]).max()) for T in TIMES]
    return plain, [float(true_errors(ours[T], after[T], expected[T], *tolerances).max()) for T in TIMES]


def _worst_unflagged(flows: Sequence[Flow], expected: Floats, tolerances: tuple[float, float]) -> float:
    errors = true_errors(flows, reached(flows), expected, *tolerances)
    return max((float(e) for e, f in zip(errors, flows, strict=True) if not f.output.flagged), default=0.0)


def _chain(error: BaseException | None) -> tuple[tuple[str, str], ...]:
    found = []
    while error is not None:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        found.append((type(error).__name__, text.splitlines()[0] if text else ""))
        error = error.__cause__ or error.__context__
    return tuple(found)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing on the process's own standard output and error: the exporters print whole graphs, from C++ too."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.CRITICAL)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
        for place, old in enumerate(kept, start=1):
            os.dup2(old, place)
            os.close(old)
        os.close(nowhere)


def _report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    columns = ["route", "exports?", *(f"T = {T:g}" for T in result["times"])]
    rows = [_route_row(row) for row in result["routes"]]
    ours = result["ours"]
    rows.append(["**odestream bundle**", "yes", *map(_cell, ours["error"])])
    details = [
        ["largest true error, in tolerances", *map(_cell, ours["in_tolerances"])],
        ["the same where not flagged", *map(_cell, ours["worst_unflagged"])],
        ["largest `err`", *map(_cell, ours["err"])],
        ["buckets", *("/".join(map(str, b)) for b in ours["buckets"])],
        ["most calls for a gap", *map(str, ours["calls"])],
        [f"flagged, of {result['states']}", *map(str, ours["flagged"])],
    ]
    parts = [
        f"Largest error of a component of h after T model units, over {result['states']} states of a stream, against "
        f"{result['reference']}. Traced at T = {result['traced_at']:g}, run in ONNX Runtime; nothing warns at run time "
        "on a route with odeint.",
        markdown_table(columns, rows),
        f"The bundle, rtol {result['rtol']:g}, atol {result['atol']:g}, safety factor {result['safety_factor']:.3g}:",
        markdown_table(["", *columns[2:]], details),
        "Why the others fail:",
        _failures(result["routes"]),
        _verdict(result),
        f"torchdiffeq {result['torchdiffeq']}. {circumstances_text()}",
    ]
    return "\n\n".join(parts)


def _route_row(row: dict[str, Any]) -> list[str]:
    name = f"odeint {row['route']}; {row['exporter']}"
    if not row["exports"]:
        return [name, "no", *["–"] * len(TIMES)]
    said = ", with TracerWarnings" if "TracerWarning" in row["warnings"] else ""
    return [name, f"yes{said}", *map(_cell, row["error"])]


def _failures(routes: Sequence[dict[str, Any]]) -> str:
    """Each reason once, with the routes that it stops."""
    reasons: dict[str, list[str]] = {}
    for row in routes:
        if not row["exports"]:
            chain = row["failure"]
            said = [f"`{part['type']}: {_clip(part['message'])}`" for part in (chain[0], *chain[1:][-1:])]
            reasons.setdefault(", caused by ".join(said), []).append(f"odeint {row['route']} ({row['exporter']})")
    return "\n".join(f"- {'; '.join(stopped)}: {reason}" for reason, stopped in reasons.items()) or "- none fails"


def _verdict(result: dict[str, Any]) -> str:
    """Which routes are right at every T, win or loss."""
    right = [
        f"{row['route']} ({row['exporter']})"
        for row in result["routes"]
        if row["exports"] and max(row["in_tolerances"]) <= 1
    ]
    worst = max(result["ours"]["worst_unflagged"])
    ours = f"The bundle's largest error that is not flagged is {worst:.2g} of the tolerance."
    return f"Within the tolerance at every T: {'; '.join(right) or 'no route with odeint'}. {ours}"


def _cell(value: float) -> str:
    return f"{value:.1e}" if value < 0.01 or value >= 1000 else f"{value:.2g}"


def _clip(text: str) -> str:
    return text if len(text) <= SHOWN else text[:SHOWN] + " …"


if __name__ == "__main__":
    main()
