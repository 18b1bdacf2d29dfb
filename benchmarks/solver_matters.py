"""Does the solver matter at all to what a model is asked for?

Cells are trained on smooth, stiff and bursty records, and their validation error is taken with 1 to 16 solver steps a
call and under dopri5: as trained by default, and without the consistency loss that asks for flows which few steps
solve. Beside them, of as many parameters, what needs no solver: a cell whose field is a leak alone, which is an exact
exponential, and CfC. Falsified where the curve is flat: the worst and the best of its points less than 1 % apart, in
the median of the seeds.

    python benchmarks/solver_matters.py            three seeds, half an hour on one quiet core
    python benchmarks/solver_matters.py --quick    a few steps of small models; its figures mean nothing

Writes results/solver_matters.json, figures/solver_matters.png and a section of RESULTS.md; with --quick into
runs/solver_matters only. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
from rich.progress import track

from adaptive_data import COLUMNS, write_table
from claim import judged, run
from odestream.models.checkpoint import Settings
from odestream.models.config import BUCKETS
from odestream.models.distributed import World
from odestream.models.solver_gate import dopri5
from odestream.models.train import Job, prepare
from odestream.models.training.forecast import ForecastRecipe
from odestream.models.training.loop import Budget, Trainer
from odestream.runtime.contract.manifest import TaskSpec
from results import circumstances_text, markdown_table
from solver_matters_data import KINDS, record
from sweep import Sweep

FLAT = 0.01
EXACT = "dopri5"
POINTS = (*map(str, BUCKETS), EXACT)
CELL, INCONSISTENT, EXPONENTIAL, CFC, LAST = (
    "cell",
    "cell, no consistency loss",
    "exact exponential",
    "CfC",
    "last value",
)
SETTINGS: dict[str, dict[str, Any]] = {
    CELL: {},
    INCONSISTENT: {"consistency": 0.0},
    EXPONENTIAL: {"without": ("drive",), "consistency": 0.0},
    CFC: {"model": "cfc"},
}
SOLVED = (CELL, INCONSISTENT)


@dataclass(frozen=True)
class Plan:
    """Rows of a record, training steps of a model, its preset's name, and seeds."""

    rows: int
    steps: int
    seeds: int


FULL = Plan(1500, 500, 3)
QUICK = Plan(200, 4, 1)


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Scores by record, model and point of the curve, one for each seed."""
    work = [(kind, name, seed) for kind in KINDS for name in SETTINGS for seed in range(plan.seeds)]
    scores: dict[str, Any] = {kind: {name: {} for name in (*SETTINGS, LAST)} for kind in KINDS}
    for kind, name, seed in track(work, "models"):
        found = sweep.get(f"{kind}/{name}/{seed}", partial(one, kind, name, seed, plan))
        for point, score in found["scores"].items():
            scores[kind][name].setdefault(point, []).append(score)
        if name == CELL:
            scores[kind][LAST].setdefault(EXACT, []).append(found["untrained"])
    return {"seeds": list(range(plan.seeds)), "rows": plan.rows, "training_steps": plan.steps, "scores": scores}


def one(kind: str, name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """Train one model; its validation error at every point, and before training, when it repeats the last value."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "record.csv"
        write_table(table, record(kind, plan.rows, seed))
        settings = Settings(seed=seed, epochs=1, horizons=(1, 4, 13), **SETTINGS[name])
        job = Job(table, TaskSpec("forecast", COLUMNS[1:], COLUMNS[1:], (), COLUMNS[0]), settings, Path(folder) / "run")
        made = prepare(job, World())
    recipe = made.recipe
    if not isinstance(recipe, ForecastRecipe):
        raise TypeError(type(recipe).__name__)
    untrained = recipe.validate(made.cell)
    trainer = Trainer(made.cell, recipe, Budget(None, plan.steps), seed, World())
    trainer.run(lambda _: None, lambda: False, lambda: None)
    score = partial(recipe.validation.score, trainer.best, recipe.targets, settings.horizons)
    points = {str(n): score(n) for n in BUCKETS} if name in SOLVED else {}
    points[EXACT] = score(None, dopri5)
    return {"untrained": untrained, "scores": points}


def spread(curve: Mapping[str, Sequence[float]]) -> float:
    """How far apart the best and the worst point of a curve are, relative to the best: the median of the seeds."""
    by_seed = zip(*(curve[point] for point in POINTS), strict=True)
    return statistics.median([float(max(scores) / min(scores) - 1) for scores in by_seed])


def verdicts(result: dict[str, Any]) -> list[str]:
    """Where the claim stands and where it falls, falls first; and whether a solver's answer beats those without."""
    said = []
    for kind, models in result["scores"].items():
        for name in SOLVED:
            apart = spread(models[name])
            text = f"{kind}, {name}: 1 to 16 steps and dopri5 are {100 * apart:.2g} % apart"
            said.append((apart > FLAT, text))
        ours, rival = (statistics.median(models[name][EXACT]) for name in (CELL, CFC))
        said.append(
            (ours < rival, f"{kind}: cell better than CfC, which has no solver ({ours:.4g} against {rival:.4g})")
        )
    return judged(said)


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    rows = []
    for kind, models in result["scores"].items():
        for name, curve in models.items():
            rows.append([f"{kind}, {name}", *(_cell(curve[point]) if point in curve else "" for point in POINTS)])
    columns = ["", "1 step", *(f"{n} steps" for n in BUCKETS[1:]), EXACT]
    return "\n\n".join(
        (
            *verdicts(result),
            "Validation mean absolute error in units of the scale, horizons of 1, 4 and 13 gaps, whole and thinned; "
            f"median of {len(result['seeds'])} seeds (lowest – highest). {result['rows']} rows a record, "
            f"{result['training_steps']} training steps, the nano preset and as many parameters for CfC. What has no "
            "solver stands under dopri5.",
            markdown_table(columns, rows),
            circumstances_text(),
            "![Error over solver steps](figures/solver_matters.png)",
        )
    )


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each record: curves of what is solved, lines of what is not."""
    figure = matplotlib.figure.Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (kind, models) in zip(figure.subplots(1, len(KINDS)), result["scores"].items(), strict=True):
        for place, (name, curve) in enumerate(models.items()):
            color = f"C{place}"
            if name in SOLVED:
                columns = [curve[point] for point in POINTS]
                axes.plot(POINTS, [statistics.median(c) for c in columns], marker="o", color=color, label=name)
                axes.fill_between(POINTS, [min(c) for c in columns], [max(c) for c in columns], alpha=0.2, color=color)
            else:
                axes.axhline(statistics.median(curve[EXACT]), color=color, linestyle="--", label=name)
        axes.set(title=kind, xlabel="solver steps", ylim=(0, None))
    figure.axes[0].set_ylabel("validation error / scale")
    figure.axes[0].legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4f} ({min(values):.4f} – {max(values):.4f})"


if __name__ == "__main__":
    run("solver_matters", __doc__, (FULL, QUICK), measure, report, draw)
