"""Do parameters go further with few shots?

Oscillators: models are trained on 64 damped oscillators, then adapted to faster ones on 1, 5 and 10 streams of these
alone, by the same recipe at a third of the rate, and asked for the future of others. Digits: ten of each class, read
row by row at irregular times with a tenth missing, and the rest told apart after the last row; ten more of each choose
the rate and the best weights. GRU, GRU-Δt and CfC have as many parameters, the same streams and steps; each model's
learning rate is chosen on validation streams. Falsified where the median of our seeds is not better than CfC's. An
untied residual net is not among the rivals.

    pip install 'odestream[bench]' && python benchmarks/few_shot.py    three seeds, ten minutes on one quiet core
    python benchmarks/few_shot.py --quick                              a few steps; its figures mean nothing

Writes results/few_shot.json, figures/few_shot.png and a section of RESULTS.md; with --quick into runs/few_shot only. An
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import torch
from rich.progress import track

from claim import judged, run
from equal_models import SIZES, build, fit
from few_shot_data import A_CLASS, digits, oscillators
from irregular_data import Count, Problem
from irregular_scoring import answers_of, errors, last_values
from odestream.models.baselines import footprint
from odestream.models.config import Sizes
from odestream.models.data import Dataset
from odestream.models.labelling import Judging, score
from odestream.models.model import Model
from odestream.models.sequences import calls_of, longest_call
from results import circumstances_text, markdown_table
from sweep import Sweep

OURS, CFC = "odestream", "CfC"
NAMES = {OURS: "cell", "GRU": "gru", "GRU-Δt": "gru-dt", CFC: "cfc"}
LAST, PRIOR = "last value", "0"
OSCILLATORS, DIGITS = "oscillators", "digits"
GENTLER = 1 / 3  # the learning rate of an adaptation, of that before it


@dataclass(frozen=True)
class Plan:
    """Streams of the known family, streams to adapt to, learning rates to choose from, steps on the known family, of
    an adaptation and on digits, digits to test on, seeds, and our cell's sizes."""

    count: Count
    shots: tuple[int, ...]
    rates: tuple[float, ...]
    steps: int
    adapting: int
    digit_steps: int
    digits: int
    seeds: int
    sizes: Sizes = SIZES


FULL = Plan(Count(64, 8, 16), (1, 5, 10), (1e-2, 2e-2), 200, 50, 150, 1000, 3)
QUICK = Plan(Count(6, 1, 2), (1, 2), (1e-2,), 2, 2, 2, 20, 1, Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4))


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Errors on oscillators by model and streams seen, accuracies on digits, one for each seed."""
    tasks = {OSCILLATORS: adapt, DIGITS: tell_digits}
    choices = [(task, name, rate, 0) for task in tasks for name in NAMES for rate in plan.rates]
    total = len(choices) + len(tasks) * len(NAMES) * (plan.seeds - 1)
    print(f"{total} models, steps: {plan.steps} + {len(plan.shots)} × {plan.adapting}, {plan.digit_steps} on digits")

    def get(task: str, name: str, rate: float, seed: int) -> dict[str, Any]:
        key = f"{task}/{name}/{rate:g}/{seed}"
        return dict(sweep.get(key, partial(tasks[task], NAMES[name], rate, seed, plan)))

    scores = {choice: get(*choice)["validation"] for choice in track(choices, "learning rates")}
    chosen = {
        (task, name): min(plan.rates, key=lambda rate: scores[task, name, rate, 0]) for task in tasks for name in NAMES
    }
    found: dict[str, Any] = {task: {} for task in tasks}
    parameters: dict[str, list[int]] = {task: [] for task in tasks}
    work = [(task, name, chosen[task, name], seed) for task in tasks for name in NAMES for seed in range(plan.seeds)]
    for task, name, rate, seed in track(work, "models"):
        point = get(task, name, rate, seed)
        parameters[task].append(point["parameters"])
        for shot, value in point["scores"].items():
            found[task].setdefault(name, {}).setdefault(shot, []).append(value)
    for seed in range(plan.seeds):
        _, by_shots = oscillators(plan.count, plan.shots, seed)
        new = next(iter(by_shots.values()))
        found[OSCILLATORS].setdefault(LAST, {}).setdefault(PRIOR, []).append(errors(new, last_values(new))["1"])
    return {
        "seeds": list(range(plan.seeds)),
        "steps": {"known family": plan.steps, "adaptation": plan.adapting, "digits": plan.digit_steps},
        "test_digits": plan.digits,
        "learning_rates": {task: {name: chosen[task, name] for name in NAMES} for task in tasks},
        "parameters": parameters,
        "scores": found,
    }


def adapt(name: str, rate: float, seed: int, plan: Plan) -> dict[str, Any]:
    """Train on the known family, then adapt a copy to each number of streams of the new one."""
    known, by_shots = oscillators(plan.count, plan.shots, seed)
    torch.manual_seed(seed)
    prior, validation = fit(build(name, known.data, plan.sizes), known.data, rate, plan.steps, seed)
    scores = {PRIOR: _error(prior, next(iter(by_shots.values())))}
    for shot, new in by_shots.items():
        adapted, _ = fit(copy.deepcopy(prior), new.data, GENTLER * rate, plan.adapting, seed)
        scores[str(shot)] = _error(adapted, new)
    return {"validation": validation, "scores": scores, "parameters": footprint(prior).parameters}


def tell_digits(name: str, rate: float, seed: int, plan: Plan) -> dict[str, Any]:
    """Train on ten digits a class; the share of others told right after their last row."""
    data = digits(plan.digits, seed)
    torch.manual_seed(seed)
    best, validation = fit(build(name, data, plan.sizes), data, rate, plan.digit_steps, seed)
    scores = {str(A_CLASS): accuracy(best, data)}
    return {"validation": validation, "scores": scores, "parameters": footprint(best).parameters}


def accuracy(model: Model, data: Dataset) -> float:
    """Share of the test streams labelled right after their last row."""
    tests, longest = [p.series for p in data.parts if p.test == 0], longest_call(model.config, 1)
    calls = [calls_of(s, np.arange(len(s.ticks)), data.time, longest) for s in tests]
    scored = score(model, [Judging(own, 0) for own in calls], 1)
    return float(np.mean((scored.log_chances.argmax(axis=1) == scored.labels)[scored.last]))


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Where the claim stands and where it falls, falls first."""
    said = []
    for task, models in result["scores"].items():
        for shot in models[OURS]:
            if shot == PRIOR:
                continue
            ours, theirs = (statistics.median(models[name][shot]) for name in (OURS, CFC))
            better = ours < theirs if task == OSCILLATORS else ours > theirs
            what = f"{shot} stream{'s' * (shot != '1')}" if task == OSCILLATORS else f"{shot} of each class"
            said.append((better, f"{task}, {what}: {ours:.3f}, CfC {theirs:.3f}"))
    return judged(said)


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    waves, told = result["scores"][OSCILLATORS], result["scores"][DIGITS]
    shots = list(waves[OURS])
    rows = [[name, *(_cell(by_shot[s]) if s in by_shot else "" for s in shots)] for name, by_shot in waves.items()]
    columns = [f"**{OSCILLATORS}**, error", *(f"{s} streams" for s in shots)]
    digit_rows = [[name, _cell(by_shot[str(A_CLASS)])] for name, by_shot in told.items()]
    steps = ", ".join(f"{count} on {what}" for what, count in result["steps"].items())
    sizes = [size for sizes in result["parameters"].values() for size in sizes]
    rates = "; ".join(
        f"{task}: " + ", ".join(f"{name} {rate:g}" for name, rate in by_name.items())
        for task, by_name in result["learning_rates"].items()
    )
    return "\n\n".join(
        (
            *verdicts(result),
            f"Median of {len(result['seeds'])} seeds (lowest – highest), a small tier for two cores; a seed draws "
            f"streams and weights. Steps: {steps}. {min(sizes):,} to {max(sizes):,} parameters. Learning rates: "
            f"{rates}. Oscillators: mean absolute error at 1 to 8 mean gaps ahead, in deviations of the known family; "
            "periods are 20 to 60 s in the known family, 10 to 20 in the new one. Digits: ten of each class to train "
            "on, and ten more of each choose the learning rate and the best weights. An untied residual net is not "
            "among the rivals.",
            markdown_table(columns, rows),
            markdown_table([f"**{DIGITS}**, accuracy on {result['test_digits']:,}", f"{A_CLASS} of each"], digit_rows),
            circumstances_text(),
            "![Error and accuracy over shots](figures/few_shot.png)",
        )
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Error over streams seen, and accuracy on digits."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    waves, told = result["scores"][OSCILLATORS], result["scores"][DIGITS]
    shots = list(waves[OURS])
    for place, name in enumerate(NAMES):
        columns = [waves[name][s] for s in shots]
        curves.plot(shots, [statistics.median(c) for c in columns], marker="o", color=f"C{place}", label=name)
        curves.fill_between(shots, [min(c) for c in columns], [max(c) for c in columns], alpha=0.2, color=f"C{place}")
        values = told[name][str(A_CLASS)]
        bars.bar(name, statistics.median(values), color=f"C{place}")
        bars.scatter([name] * len(values), values, color="black", s=12, zorder=3)
    curves.axhline(statistics.median(waves[LAST][PRIOR]), linestyle="--", color="grey", label=LAST)
    curves.set(title=OSCILLATORS, xlabel="streams adapted to", ylabel="error / deviation", ylim=(0, None))
    curves.legend(fontsize="small")
    bars.set(title=f"{DIGITS}, {A_CLASS} of each", ylabel="accuracy", ylim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _error(model: Model, new: Problem) -> float:
    return errors(new, answers_of(model, new))["1"]


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


if __name__ == "__main__":
    run("few_shot", __doc__, (FULL, QUICK), measure, report, draw)
