"""What accuracy costs: every method in every bucket, the adaptive runtime, and other people's solvers.

Gaps are those of streams through exported bundles; the error is that of h after a gap, against torchdiffeq's dopri5 at
rtol 1e-9 in float64, in units of the stated tolerance (rtol 1e-3, atol 1e-4). Four scenarios: see
work_precision_scenarios.py. Rivals run at the stated tolerance, and again at the loosest at which 99 % of the gaps are
within it. An exponential method is tried against the Runge-Kutta pairs on stiff leaks.

    pip install 'odestream[bench]'
    python benchmarks/work_precision.py              trains for 1.5 minutes unless there is a run, ten in all
    python benchmarks/work_precision.py --run RUN    on a run of its own on benchmarks/data/co2_weekly.csv
    python benchmarks/work_precision.py --quick      under a minute, without diffrax and torchode if they are missing;
                                                     writes into runs/work_precision only

Writes results/work_precision.json, figures/work_precision.png and a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from odestream.models.checkpoint import METRICS_FILE, load_checkpoint
from odestream.models.config import BUCKETS
from odestream.models.held_out import load_held_out
from odestream.runtime import Model
from odestream.runtime.contract.rule import MAX_HALVINGS
from odestream.runtime.contract.tableau import TABLEAUS
from results import FIGURES, publish, write_json
from walk_forward import DATA, PERIOD_DAYS
from work_precision_figure import draw
from work_precision_peers import TIGHTENINGS, Peer, diffrax_agreement, missing, peers, versions
from work_precision_points import Floats, Point, cheapest, interleaved, make_point, steps_text
from work_precision_report import report
from work_precision_runtime import Deployed, Played, Timed, opened, play
from work_precision_scenarios import Scenario, scenarios, with_leaks
from work_precision_solvers import Gaps, Judge, exponential, reference, runge_kutta

RUNS = Path(__file__).parents[1] / "runs" / "work_precision"
_BY_BUCKETS_AND_HALVINGS = (*((n, 0) for n in BUCKETS), *((BUCKETS[-1], 1 + k) for k in range(MAX_HALVINGS)))


@dataclass(frozen=True)
class Plan:
    """How much is measured: gaps of a scenario, those that are timed (fewer by slow peers), rounds of timing, steps
    that an export verifies, methods that are exported (the first gives the gaps that everything else is judged on),
    factors besides the manifest's own, tightenings of the peers' tolerance, scenarios,
    and the leaks of the exponential method's trial (per model unit; None as trained)."""

    gaps: int = 300
    timed: int = 200
    timed_slow: int = 20
    repeats: int = 3
    verify_steps: int = 100
    pairs: tuple[str, ...] = ("bosh32", "heun21", "dopri54")
    factors: tuple[float, ...] = (1.0, 0.5, 0.25, 0.1, 0.05)
    tightenings: tuple[int, ...] = TIGHTENINGS
    scenarios: int = 4
    leaks: tuple[float | None, ...] = (None, 4.0, 50.0, 200.0)


QUICK = Plan(
    24,
    20,
    3,
    1,
    verify_steps=20,
    pairs=("bosh32",),
    factors=(0.25,),
    tightenings=(0, 3),
    scenarios=1,
    leaks=(None, 50.0),
)


def main() -> None:
    """Run the benchmark as the command line asks."""
    options = _options()
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    run = options.run or _trained(options.quick)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(run, plan, Path(folder))
    text = report(result)
    print(text)
    if options.quick:
        write_json(RUNS / "work_precision.json", result)
        draw(result, RUNS / "work_precision.png")
    else:
        publish("work_precision", result, text)
        draw(result, FIGURES / "work_precision.png")


@torch.no_grad()
def measure(run: Path, plan: Plan, folder: Path) -> dict[str, Any]:
    """All figures, from a finished run on the CO₂ record; bundles are made in `folder`."""
    cell, info = load_checkpoint(run)
    deployed = Deployed(folder, info.task, info.time, load_held_out(run, cell), plan.verify_steps)
    chosen = scenarios(cell, plan.gaps)[: plan.scenarios]
    measured: dict[str, Any] = {}
    for scenario in chosen:
        print(f"{scenario.name} …", flush=True)
        measured[scenario.name] = measure_scenario(scenario, deployed, plan)
    return {
        "tolerance": {"rtol": cell.config.rtol, "atol": cell.config.atol},
        "missing": missing(),
        "peers": versions(),
        "scenarios": measured,
        "exponential": try_exponential(chosen[0], deployed, plan),
        "task_metric": task_metric(json.loads((run / METRICS_FILE).read_text(encoding="utf-8"))),
    }


def measure_scenario(scenario: Scenario, deployed: Deployed, plan: Plan) -> dict[str, Any]:
    """Points of everything on one scenario, and what it is."""
    judge = Judge.of(scenario.cell)
    with contextlib.ExitStack() as stack:
        models = _open_all(stack, scenario, deployed, plan)
        played = {name: play(model, scenario.rows) for name, model in models.items()}
        times = _time_bundles(models, scenario, plan)
    gaps = Gaps.of(played[plan.pairs[0]].flows, judge.w)
    expected = reference(gaps, judge.w)
    points = [_adaptive_point(name, models[name], played[name], judge, times[name]) for name in models]
    agreement = diffrax_agreement(gaps, judge.w)
    points += _fixed_points(gaps, expected, judge, times)
    for peer in peers(judge.w, judge.rtol, judge.atol, plan.tightenings):
        points += _peer_points(peer, gaps, expected, judge, plan)
    return {
        "about": scenario.about,
        "gaps": len(gaps),
        "gap_units": [float(gaps.dt.min()), float(gaps.dt.median()), float(gaps.dt.max())],
        "diffrax_field_error": agreement,
        "stiffness": scenario.cell.field.stiffness(),
        "rerun": {name: float(played[name].rerun.mean()) for name in plan.pairs},
        "points": [p.to_dict() for p in points],
    }


def task_metric(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's own metrics say of finer solving: its gate if it has one, else validation errors by solver steps."""
    for name in ("solver_gate", "validation_mae_by_solver_steps"):
        if name in metrics:
            return {"from": name, "deployed": metrics.get("deployed_solver_steps"), "values": metrics[name]}
    return {}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run on the CO₂ record; default: one is trained and kept")
    parser.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    return parser.parse_args()


def _trained(quick: bool) -> Path:
    """A run on the record, trained when first asked for."""
    run, minutes = RUNS / ("quick" if quick else "run"), 0.1 if quick else 1.5
    if not (run / METRICS_FILE).exists():
        columns = ["--time", "time", "--inputs", "co2_ppm", "--period", str(PERIOD_DAYS)]
        command = ["odestream", "train", str(DATA), *columns, "--minutes", str(minutes), "--out", str(run), "--force"]
        subprocess.run(command, check=True)
    return run


def _open_all(stack: contextlib.ExitStack, scenario: Scenario, deployed: Deployed, plan: Plan) -> dict[str, Model]:
    """The bundle of each pair by its name, and the first with other safety factors."""
    models = {}
    for method in plan.pairs:
        bundle = deployed.bundle(scenario.cell, scenario.field, method)
        models[method] = stack.enter_context(opened(bundle))
    bundle = deployed.bundle(scenario.cell, scenario.field, plan.pairs[0])
    for factor in plan.factors:
        models[f"{plan.pairs[0]} {factor:g}"] = stack.enter_context(opened(bundle, factor))
    return models


def _time_bundles(models: Mapping[str, Model], scenario: Scenario, plan: Plan) -> dict[str, Floats]:
    """Wall time of each gap's whole call, µs: of adaptive streams by name, of single buckets as NAME N=BUCKET."""
    rows = scenario.rows[: plan.timed]
    contenders = {name: Timed(model, rows) for name, model in models.items()}
    for name in plan.pairs:
        contenders |= {f"{name} N={bucket}": Timed(models[name], rows, (bucket,)) for bucket in BUCKETS}
    crossed = np.array([not row.first for row in rows])
    return {name: t[crossed] for name, t in interleaved(contenders, len(rows), plan.repeats).items()}


def _adaptive_point(name: str, model: Model, played: Played, judge: Judge, times: Floats) -> Point:
    """The point of a bundle; `name` is its method, with another factor than its own behind it if it has one."""
    gaps, solver = Gaps.of(played.flows, judge.w), model.manifest.solver
    after = torch.from_numpy(np.stack([f.after for f in played.flows]))
    return make_point(
        f"{name.split(maxsplit=1)[0]} adaptive",
        "" if solver is None else f"factor {solver.safety_factor:.3g}",
        judge.errors(gaps, after, reference(gaps, judge.w)),
        played.evaluations,
        flagged=played.flagged,
        times=times,
        stated=" " not in name,
    )


def _fixed_points(gaps: Gaps, expected: torch.Tensor, judge: Judge, times: Mapping[str, Floats]) -> list[Point]:
    points = []
    for solver in (*(runge_kutta(method) for method in TABLEAUS), exponential()):
        for steps in BUCKETS:
            after, evaluations = solver.cross(gaps, judge, steps)
            errors, measured = judge.errors(gaps, after, expected), times.get(f"{solver.name} N={steps}")
            points.append(make_point(f"{solver.name} fixed", steps_text(steps), errors, evaluations, times=measured))
    return points


def _peer_points(peer: Peer, gaps: Gaps, expected: torch.Tensor, judge: Judge, plan: Plan) -> list[Point]:
    """Points at every setting, timed at the stated tolerance and at the loosest calibrated setting."""
    solved = {s: peer.solve(gaps, s) for s in peer.settings}
    errors = {s: judge.errors(gaps, after, expected) for s, (after, _) in solved.items()}
    stated = peer.settings[0] if peer.tolerances else None
    plain = {s: make_point(peer.name, peer.says(s), errors[s], solved[s][1]) for s in peer.settings}
    best = cheapest(list(plain.values()))
    worth = [s for s in peer.settings if s == stated or plain[s] == best]
    timed = min(plan.timed, len(gaps)) if peer.fast else plan.timed_slow
    calls = {str(s): peer.call(gaps, s) for s in worth}
    together = min(peer.together, len(gaps))
    times = interleaved(calls, max(1, timed // together), plan.repeats)
    return [
        make_point(
            peer.name,
            peer.says(s),
            errors[s],
            solved[s][1],
            times=times[str(s)] / together if str(s) in times else None,
            stated=s == stated,
        )
        for s in peer.settings
    ]


def try_exponential(scenario: Scenario, deployed: Deployed, plan: Plan) -> dict[str, Any]:
    """ETD-RK2/1 and the Runge-Kutta pairs on a scenario's gaps, with the leaks raised step by step."""
    with opened(deployed.bundle(scenario.cell, scenario.field, plan.pairs[0])) as model:
        flows = play(model, scenario.rows).flows
    found: dict[str, Any] = {}
    for leak in plan.leaks:
        judge = Judge.of(scenario.cell if leak is None else with_leaks(scenario.cell, leak))
        gaps = Gaps.of(flows, judge.w)
        found["as trained" if leak is None else f"λ up to {leak:g}"] = compare_exponential(gaps, judge)
    return found


def compare_exponential(gaps: Gaps, judge: Judge) -> list[dict[str, Any]]:
    """Each method's points by bucket, and what it would cost if the cheapest good one were known for each gap.

    Beyond the largest bucket a gap is halved, as a stream does it.
    """
    expected, found = reference(gaps, judge.w), []
    for solver in (*(runge_kutta(name) for name in ("heun21", "bosh32", "dopri54")), exponential()):
        points, costs = [], []
        for steps, halvings in _BY_BUCKETS_AND_HALVINGS:
            after, evaluations = solver.cross(gaps, judge, steps, halvings)
            errors = judge.errors(gaps, after, expected)
            points.append(make_point(solver.name, steps_text(2**halvings * steps), errors, evaluations))
            costs.append(np.where(errors.scaled <= 1, evaluations, np.inf))
        least, best = np.min(costs, axis=0), cheapest(points)
        solved = np.isfinite(least)
        found.append(
            {
                "method": solver.name,
                "points": [p.to_dict() for p in points],
                "cheapest": None if best is None else best.to_dict(),
                "solved": float(solved.mean()),
                "oracle_evaluations": float(least[solved].mean()) if solved.any() else None,
            }
        )
    return found


if __name__ == "__main__":
    main()
