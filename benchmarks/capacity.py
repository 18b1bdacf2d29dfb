"""What does a memory hold that is no larger than its rivals'?

Our cell against rivals of as many parameters whose states are as many bytes, as far as those parameters allow it: the
same data, the same number of training steps, learning rates tried on a seed of their own.

    reach      8 pairs, asked for inside and beyond a sliding window. Falsified if the window answers beyond its reach,
               if ours does not everywhere, or if a rival is better at the longest gap
    pairs      from few pairs to four times as many as the matrix of a gated DeltaNet of these bytes is wide. Falsified
               if ours is no better than a gated DeltaNet at twice its width
    rewritten  every key written three times: an average is then worth more. Falsified if ours is no better than a gated
               DeltaNet at 4/3 of its width, where as many rows are told as `pairs` tells at most
    patient    `pairs` with three times the training, for ours and the gated DeltaNets; only where it is asked for

    python benchmarks/capacity.py            three seeds, an hour on one quiet core
    python benchmarks/capacity.py --quick    a few training steps; its figures mean nothing
    python benchmarks/capacity.py --tasks patient --models cell gated-deltanet    a part, or one more

Writes results/capacity.json, figures/capacity.png and a section of RESULTS.md; --quick and parts write into
runs/capacity only. An interrupted run goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from capacity_figure import draw
from capacity_models import CEILING, CONTENDERS, SQUARE, WIDE, build, matrix_width
from capacity_report import report
from capacity_task import FEWEST, Pairs, Reach, Task, floor
from capacity_training import Schedule, scores, train
from claim import run
from odestream.models.baselines import footprint
from odestream.models.model import OURS
from results import circumstances
from sweep import Sweep

TRIAL_SEED = 100  # learning rates are chosen on it; figures are of other seeds


@dataclass(frozen=True)
class Part:
    """One task for some models. of_width: the task, by the width of the gated DeltaNet's matrix.

    longer: factor on the training steps. rates_of: the part that learning rates are taken from.
    """

    budgets: tuple[int, ...]
    models: tuple[str, ...]
    of_width: Callable[[int], Task]
    longer: int = 1
    rates_of: str = ""


def _pairs(width: int) -> Pairs:
    multiples = (0.25, 0.5, 1, 1.5, 2, 3, 4)
    return Pairs(tuple(max(FEWEST, round(n * width)) for n in multiples), 4 * width)


def _rewritten(width: int) -> Pairs:
    """As many rows as `_pairs` has, at most."""
    multiples = (0.25, 0.5, 0.75, 1, 4 / 3)
    return Pairs(tuple(max(FEWEST, round(n * width)) for n in multiples), round(4 / 3 * width), writes=3)


PARTS = {
    "reach": Part(
        (4096,),
        tuple(name for name in CONTENDERS if name not in (WIDE, CEILING)),
        lambda _: Reach((0, 16, 64, 256, 1024), 64),
    ),
    "pairs": Part((2048, 4096), (OURS, SQUARE, WIDE, "linear-attention", CEILING), _pairs),
    "rewritten": Part((4096,), (OURS, SQUARE, WIDE), _rewritten, rates_of="pairs"),
    "patient": Part((2048,), (OURS, SQUARE, WIDE), _pairs, longer=3, rates_of="pairs"),
}


@dataclass(frozen=True)
class Plan:
    """sequences: of a score. rates: tried for each model. tasks, models: by name."""

    schedule: Schedule
    seeds: int
    sequences: int
    rates: tuple[float, ...]
    tasks: tuple[str, ...] = ("reach", "pairs", "rewritten")
    models: tuple[str, ...] = tuple(CONTENDERS)


FULL = Plan(Schedule(steps=600, cell_steps=40, batch=32), 3, 64, (3e-3, 6e-3, 1.2e-2))
QUICK = Plan(Schedule(steps=3, cell_steps=1, batch=4), 1, 4, (3e-3, 6e-3))


@dataclass(frozen=True)
class Setting:
    """One model of one size in one part."""

    part: str
    budget: int
    model: str


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Errors by part, bytes and model, a list over points for each seed."""
    settings = [
        Setting(name, budget, model)
        for name in plan.tasks
        for budget in PARTS[name].budgets
        for model in PARTS[name].models
        if model in plan.models and (model != CEILING or budget == max(PARTS[name].budgets))
    ]
    tuned = {_tuned_at(setting) for setting in settings}
    trainings = len(tuned) * len(plan.rates) + len(settings) * plan.seeds
    Console().print(
        f"{trainings} trainings: {len(settings)} settings × {plan.seeds} seeds, and the rates of {len(tuned)}"
    )
    result: dict[str, Any] = {name: {} for name in plan.tasks}
    with Progress() as progress:
        bar = progress.add_task("trainings", total=trainings)

        def point(setting: Setting, rate: float, seed: int) -> dict[str, Any]:
            key = f"{setting.part}/{setting.budget}/{setting.model}/{rate}/{seed}"
            found: dict[str, Any] = sweep.get(key, lambda: one(setting, rate, seed, plan))
            progress.advance(bar)
            return found

        rates = {setting: _best_rate(setting, plan, point) for setting in sorted(tuned, key=str)}
        for setting in settings:
            rate = rates[_tuned_at(setting)]
            _enter(result, setting, rate, [point(setting, rate, seed) for seed in range(plan.seeds)])
    return {"plan": _described(plan), "parts": result}


def one(setting: Setting, rate: float, seed: int, plan: Plan) -> dict[str, Any]:
    """Train one model; its size, and its error at every point."""
    torch.manual_seed(seed)
    part, task = PARTS[setting.part], task_of(setting)
    model = build(setting.model, setting.budget)
    schedule = replace(plan.schedule, steps=part.longer * plan.schedule.steps)
    errors = scores(train(model, task, schedule, rate, seed), task, plan.sequences, seed)
    return {**footprint(model)._asdict(), "errors": errors}


def task_of(setting: Setting) -> Task:
    """The task of a setting."""
    return PARTS[setting.part].of_width(matrix_width(setting.budget))


def _tuned_at(setting: Setting) -> Setting:
    """Where a model's learning rate is chosen: at the largest size of the part that says so."""
    name = PARTS[setting.part].rates_of or setting.part
    return Setting(name, max(PARTS[name].budgets), setting.model)


def _best_rate(setting: Setting, plan: Plan, point: Callable[[Setting, float, int], dict[str, Any]]) -> float:
    """By the mean error over all points."""
    found = {rate: sum(point(setting, rate, TRIAL_SEED)["errors"]) for rate in plan.rates}
    return min(found, key=lambda rate: found[rate])


def _described(plan: Plan) -> dict[str, Any]:
    return {**asdict(plan.schedule), "seeds": plan.seeds, "sequences": plan.sequences, "rates": plan.rates}


def _enter(result: dict[str, Any], setting: Setting, rate: float, found: list[dict[str, Any]]) -> None:
    task, width = task_of(setting), matrix_width(setting.budget)
    shared = {"points": list(task.points), "floor": floor(task), "width": width}
    shared |= {"commit": circumstances()["commit"], "models": {}}
    at = result[setting.part].setdefault(str(setting.budget), shared)
    size = {key: value for key, value in found[0].items() if key != "errors"}
    at["models"][setting.model] = {**size, "rate": rate, "errors": [point["errors"] for point in found]}


if __name__ == "__main__":
    run("capacity", __doc__, (FULL, QUICK), measure, report, draw, {"tasks": tuple(PARTS), "models": tuple(CONTENDERS)})
