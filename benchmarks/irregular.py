"""Does continuous time win on irregular, multi-rate series, when rows come at another rate than in training?

Damped oscillators, chirps, Lotka-Volterra and Lorenz orbits, observed at Poisson times with 30 to 80 % of each channel
missing, and a quarter of the weekly CO2 record. All models are trained at one rate, without thinned copies, and tested
at a quarter of it, at it, and at four times it: the same orbits, asked at the same moments for the same times ahead,
and scored against the truth without noise. Rivals have as many parameters, the same rows, steps and recipe; each
model's learning rate is chosen for each family, on validation streams. Falsified where, at a shifted rate, the median
error of our seeds is not below GRU-Δt's, that of the last value and that of the training mean.

    python benchmarks/irregular.py            three seeds, half an hour on one quiet core
    python benchmarks/irregular.py --quick    a few steps of small models; its figures mean nothing

Writes results/irregular.json, figures/irregular.png and a section of RESULTS.md; with --quick into runs/irregular only.
An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.figure
import torch
from rich.progress import track

from claim import judged, run
from equal_models import SIZES, build, fit
from irregular_data import HORIZONS, KINDS, RATES, Count, problem
from irregular_scoring import answers_of, constant, errors, last_values
from odestream.models.baselines import footprint
from odestream.models.config import Sizes
from results import circumstances_text, markdown_table
from sweep import Sweep

OURS, GRU_DT, CONSTANT, LAST = "odestream", "GRU-Δt", "training mean", "last value"
NAMES = {
    OURS: "cell",
    GRU_DT: "gru-dt",
    "GRU-D": "gru-d",
    "ODE-RNN": "ode-rnn",
    "diagonal SSM": "diagonal-ssm",
    "CfC": "cfc",
    "GRU": "gru",
}
"""What the claim is about comes first."""
NAIVE = {CONSTANT: constant, LAST: last_values}
MUST_BEAT = (GRU_DT, CONSTANT, LAST)
SHIFTED = tuple(f"{rate:g}" for rate in RATES if rate != 1)


@dataclass(frozen=True)
class Plan:
    """Streams of a family, learning rates to choose from, training steps of a model, seeds, our cell's sizes, and what
    is trained on what."""

    count: Count
    rates: tuple[float, ...]
    steps: int
    seeds: int
    sizes: Sizes = SIZES
    kinds: tuple[str, ...] = KINDS
    names: tuple[str, ...] = tuple(NAMES)


FULL = Plan(Count(64, 8, 24), (5e-3, 1e-2, 2e-2), 200, 3)
QUICK = Plan(Count(6, 1, 2), (1e-2,), 2, 1, Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4), (KINDS[0], KINDS[-1]))


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Errors by kind, model and rate, one for each seed."""
    seeds = range(plan.seeds)
    each = len(plan.kinds) * (len(plan.rates) + plan.seeds - 1)
    print(f"{len(plan.names)} models, {each} trainings of {plan.steps} steps each")
    found: dict[str, Any] = {kind: {} for kind in plan.kinds}
    chosen: dict[str, dict[str, float]] = {kind: {} for kind in plan.kinds}
    parameters: list[int] = []
    for name, kind in track(list(product(plan.names, plan.kinds)), "models on families"):
        get = partial(_point, name, plan, sweep, kind)
        scores = {rate: get(rate, 0)["validation"] for rate in plan.rates}
        rate = chosen[kind][name] = min(scores, key=scores.__getitem__)
        for point in (get(rate, seed) for seed in seeds):
            append(found[kind], name, point["errors"])
            parameters.append(point["parameters"])
    for kind in plan.kinds:
        for seed in seeds:
            drawn = problem(kind, plan.count, seed)
            for name, make in NAIVE.items():
                append(found[kind], name, errors(drawn, make(drawn)))
    return {
        "seeds": list(seeds),
        "training_steps": plan.steps,
        "streams": plan.count.training,
        "learning_rates": chosen,
        "parameters": [min(parameters), max(parameters)],
        "errors": found,
    }


def _point(name: str, plan: Plan, sweep: Sweep, kind: str, rate: float, seed: int) -> dict[str, Any]:
    return dict(sweep.get(f"{kind}/{name}/{rate:g}/{seed}", partial(train, kind, NAMES[name], rate, seed, plan)))


def train(
    kind: str, model: str, rate: float, seed: int, plan: Plan, dropped: float = 0.0, **changes: Any
) -> dict[str, Any]:
    """Train a model and score it; the seed draws streams and weights.

    model: as `--model` calls it. dropped: see `fit`. changes: of our cell's configuration.
    """
    drawn = problem(kind, plan.count, seed)
    torch.manual_seed(seed)
    untrained = build(model, drawn.data, plan.sizes, **changes)
    best, validation = fit(untrained, drawn.data, rate, plan.steps, seed, dropped)
    return {
        "validation": validation,
        "errors": errors(drawn, answers_of(best, drawn)),
        "parameters": footprint(best).parameters,
    }


def append(models: dict[str, dict[str, list[float]]], name: str, by_rate: Mapping[str, float]) -> None:
    """One seed's errors, to a model's row."""
    for rate, error in by_rate.items():
        models.setdefault(name, {}).setdefault(rate, []).append(error)


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Where the claim stands and where it falls, falls first."""
    said = []
    for kind, models in result["errors"].items():
        for rate in SHIFTED:
            ours, theirs = _median(models, OURS, rate), {name: _median(models, name, rate) for name in MUST_BEAT}
            against = ", ".join(f"{name} {value:.3f}" for name, value in theirs.items())
            said.append((ours < min(theirs.values()), f"{kind} at {rate} times the rate: {ours:.3f}; {against}"))
    return judged(said)


def better_rivals(result: Mapping[str, Any]) -> str:
    """Which other rivals err less than ours, and where."""
    found = []
    for kind, models in result["errors"].items():
        for rate in (f"{r:g}" for r in RATES):
            less = [
                name for name in NAMES if name in models and _median(models, name, rate) < _median(models, OURS, rate)
            ]
            if less:
                found.append(f"{kind} at {rate}: {', '.join(less)}")
    return f"Rivals that err less than ours: {'; '.join(found) or 'none'}."


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    rates = "; ".join(
        f"{kind}: " + ", ".join(f"{name} {rate:g}" for name, rate in by_name.items())
        for kind, by_name in result["learning_rates"].items()
    )
    least, most = result["parameters"]
    return "\n\n".join(
        (
            *verdicts(result),
            better_rivals(result),
            "Mean absolute error against the truth in deviations of the training values (CO₂: in ppm), over horizons "
            f"of {', '.join(f'{h:g}' for h in HORIZONS)} mean training gaps; median of {len(result['seeds'])} seeds "
            "(lowest – highest), a small tier for two cores. A seed draws streams and weights. "
            f"{result['streams']} training streams of 96 rows, {result['training_steps']} training steps, "
            f"{least:,} to {most:,} parameters. The families are trained as stationary records (`--stationary`), CO₂ "
            "is not. Sunspots, of which there are 309, are left out: a quarter of them is too few to train on. "
            f"Learning rates, chosen on validation streams with the first seed: {rates}. Where it is the largest that "
            f"was tried, {max(FULL.rates):g}, a model may have more to gain.",
            *(table(kind, models) for kind, models in result["errors"].items()),
            circumstances_text(),
            "![Error over the rate of rows](figures/irregular.png)",
        )
    )


def table(kind: str, models: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row for each model, a column for each rate."""
    rows = [[name, *(_cell(by_rate[f"{r:g}"]) for r in RATES)] for name, by_rate in models.items()]
    return markdown_table([f"**{kind}**, rate ×", *(f"{r:g}" for r in RATES)], rows)


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A panel for each kind: error over rate, ours bold, the naive dashed."""
    kinds = result["errors"]
    figure = matplotlib.figure.Figure(figsize=(3.2 * len(kinds), 3.8), layout="constrained")
    for axes, (kind, models) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True):
        for place, name in enumerate(models):
            columns = [models[name][f"{r:g}"] for r in RATES]
            style: dict[str, Any] = {"color": f"C{place}", "linestyle": "--" if name in NAIVE else "-"}
            axes.plot(
                RATES, [statistics.median(c) for c in columns], linewidth=1 + 1.5 * (name == OURS), label=name, **style
            )
            if name in (OURS, GRU_DT):
                axes.fill_between(
                    RATES, [min(c) for c in columns], [max(c) for c in columns], alpha=0.2, color=f"C{place}"
                )
        axes.set(title=kind, xlabel="rate of rows, training = 1", xscale="log", ylim=(0, None))
        axes.set_xticks(RATES, [f"{r:g}" for r in RATES])
        axes.minorticks_off()
    figure.axes[0].set_ylabel("error / deviation")
    figure.axes[-1].legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _median(models: Mapping[str, Mapping[str, Sequence[float]]], name: str, rate: str) -> float:
    return statistics.median(models[name][rate])


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


if __name__ == "__main__":
    run("irregular", __doc__, (FULL, QUICK), measure, report, draw)
