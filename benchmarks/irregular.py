"""Does continuous time win on irregular, multi-rate series, when rows come at another rate than in training?

Damped oscillators, chirps, Lotka-Volterra and Lorenz orbits, observed at Poisson times with 30 to 80 % of each channel
missing, and a quarter of the weekly CO2 record. All models are trained at one rate, without thinned copies, and tested
at a quarter of it, at it, and at four times it: the same orbits, asked at the same moments for the same times ahead,
and scored against the truth without noise. Rivals have as many parameters, the same rows, steps and recipe; each
model's learning rate is chosen on validation streams of the oscillators. Falsified where, at a shifted rate, the median
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
from pathlib import Path
from typing import Any

import matplotlib.figure
import torch
from rich.progress import track

from claim import judged, run
from irregular_data import HORIZONS, KINDS, RATES, Count, problem
from irregular_models import SIZES, build, fit
from irregular_scoring import answers_of, constant, errors, last_values
from odestream.models.baselines import footprint
from odestream.models.config import STORES, Sizes
from results import circumstances_text, markdown_table
from sweep import Sweep

OURS, GRU_DT, CONSTANT, LAST = "odestream", "GRU-Δt", "training mean", "last value"
NAMES = {
    OURS: "cell",
    "GRU": "gru",
    GRU_DT: "gru-dt",
    "GRU-D": "gru-d",
    "ODE-RNN": "ode-rnn",
    "CfC": "cfc",
    "diagonal SSM": "diagonal-ssm",
}
NAIVE = {CONSTANT: constant, LAST: last_values}
MUST_BEAT = (GRU_DT, CONSTANT, LAST)
SWITCHES: dict[str, tuple[str, ...]] = {
    "no flow": ("flow",),
    "dt ignored": ("flow", "elapsed"),
    "no write gate": ("write-gate",),
    "no read gate": ("read-gate",),
    "no forget gate": ("forget-gate",),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    **{name: {"without": parts} for name, parts in SWITCHES.items()},
    **{f"no {store} memory": {"stores": tuple(s for s in STORES if s != store)} for store in STORES},
    "no time features": {"frequencies": ()},
}
SHIFTED = tuple(f"{rate:g}" for rate in RATES if rate != 1)
ABLATED, SEASONAL = KINDS[0], KINDS[-1]
"""Where parts are taken off; time features exist only where there is a season."""
THINNED = 0.6
"""Of the rows, in the thinnest copy of a stream that the trainer's default adds."""


@dataclass(frozen=True)
class Plan:
    """Streams of a family, learning rates to choose from, training steps of a model, seeds, and our cell's sizes."""

    count: Count
    rates: tuple[float, ...]
    steps: int
    seeds: int
    sizes: Sizes = SIZES
    kinds: tuple[str, ...] = KINDS


FULL = Plan(Count(64, 8, 24), (5e-3, 1e-2, 2e-2), 250, 3)
QUICK = Plan(Count(6, 1, 2), (1e-2,), 2, 1, Sizes(8, 8, 8, 8, 8, 2, 2, 1, 4, 4), (KINDS[0], KINDS[-1]))


@dataclass(frozen=True)
class Run:
    """One training: what is in the place of the cell, on what, with which rate, parts off, and thinned copies."""

    kind: str
    name: str
    rate: float
    seed: int
    ablation: str = ""
    dropped: float = 0.0

    @property
    def row(self) -> str:
        """What it is called in a table."""
        thinned = "thinned copies" if self.dropped else ""
        return ", ".join(part for part in (self.name, self.ablation, thinned) if part)

    @property
    def key(self) -> str:
        """What it is kept under."""
        return f"{self.kind}/{self.row}/{self.rate:g}/{self.seed}"


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Errors by kind, model and rate, one for each seed."""
    seeds = range(plan.seeds)
    choices = [Run(plan.kinds[0], name, rate, 0) for name in NAMES for rate in plan.rates]
    count = len(choices) + len(seeds) * (len(plan.kinds) * len(NAMES) + len(ABLATIONS) + 2) - len(NAMES)
    print(f"{count} trainings of {plan.steps} steps")

    def get(one: Run) -> dict[str, Any]:
        return dict(sweep.get(one.key, partial(train, one, plan)))

    scores = {choice: get(choice)["validation"] for choice in track(choices, "learning rates")}
    chosen = {name: min((c for c in choices if c.name == name), key=scores.__getitem__).rate for name in NAMES}
    runs = [Run(kind, name, chosen[name], seed) for kind in plan.kinds for name in NAMES for seed in seeds]
    runs += [Run(ABLATED, name, chosen[name], seed, dropped=THINNED) for name in (OURS, GRU_DT) for seed in seeds]
    for part, changes in ABLATIONS.items():
        kind = SEASONAL if "frequencies" in changes else ABLATED
        runs += [Run(kind, OURS, chosen[OURS], seed, part) for seed in seeds if kind in plan.kinds]
    found: dict[str, Any] = {kind: {} for kind in plan.kinds}
    parameters: dict[str, int] = {}
    for one in track(runs, "models"):
        point = get(one)
        _append(found[one.kind], one.row, point["errors"])
        parameters[one.row] = point["parameters"]
    for kind in plan.kinds:
        for seed in seeds:
            drawn = problem(kind, plan.count, seed)
            for name, make in NAIVE.items():
                _append(found[kind], name, errors(drawn, make(drawn)))
    return {
        "seeds": list(seeds),
        "training_steps": plan.steps,
        "streams": plan.count.training,
        "learning_rates": chosen,
        "parameters": parameters,
        "errors": found,
    }


def train(one: Run, plan: Plan) -> dict[str, Any]:
    """Train a model and score it; the seed draws streams and weights."""
    drawn = problem(one.kind, plan.count, one.seed)
    torch.manual_seed(one.seed)
    changes = ABLATIONS[one.ablation] if one.ablation else {}
    model = build(NAMES[one.name], drawn.data, plan.sizes, **changes)
    best, validation = fit(model, drawn.data, one.rate, plan.steps, one.seed, one.dropped)
    return {
        "validation": validation,
        "errors": errors(drawn, answers_of(best, drawn)),
        "parameters": footprint(best).parameters,
    }


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
            less = [name for name in NAMES if _median(models, name, rate) < _median(models, OURS, rate)]
            if less:
                found.append(f"{kind} at {rate}: {', '.join(less)}")
    return f"Rivals that err less than ours: {'; '.join(found) or 'none'}."


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    tables = []
    for kind, models in result["errors"].items():
        rows = [[name, *(_cell(by_rate[f"{r:g}"]) for r in RATES)] for name, by_rate in models.items()]
        columns = [f"**{kind}**, rate ×", *(f"{r:g}" for r in RATES)]
        tables.append(markdown_table(columns, rows))
    rates = ", ".join(f"{name} {rate:g}" for name, rate in result["learning_rates"].items())
    sizes = [result["parameters"][name] for name in NAMES if name in result["parameters"]]
    return "\n\n".join(
        (
            *verdicts(result),
            better_rivals(result),
            "Mean absolute error against the truth in deviations of the training values (CO₂: in ppm), over horizons "
            f"of {', '.join(f'{h:g}' for h in HORIZONS)} mean training gaps; median of {len(result['seeds'])} seeds "
            "(lowest – highest), a small tier for two cores. A seed draws streams and weights. "
            f"{result['streams']} training streams of 128 rows, {result['training_steps']} training steps, "
            f"{min(sizes):,} to {max(sizes):,} parameters. Learning rates, chosen on validation streams of "
            f"{next(iter(result['errors']))}: {rates}. Thinned copies: the trainer's default, which the claim does "
            "without, since with them training sees more than one rate. A gate that is off stays open; where dt is "
            "ignored, h stands still between rows and the encoder is not told the time.",
            *tables,
            circumstances_text(),
            "![Error over the rate of rows](figures/irregular.png)",
        )
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A panel for each kind: error over rate, ours bold, the naive dashed."""
    kinds = result["errors"]
    figure = matplotlib.figure.Figure(figsize=(3.2 * len(kinds), 3.8), layout="constrained")
    for axes, (kind, models) in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds.items(), strict=True):
        for place, name in enumerate((*NAMES, *NAIVE)):
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


def _append(models: dict[str, dict[str, list[float]]], row: str, by_rate: Mapping[str, float]) -> None:
    for rate, error in by_rate.items():
        models.setdefault(row, {}).setdefault(rate, []).append(error)


def _median(models: Mapping[str, Mapping[str, Sequence[float]]], name: str, rate: str) -> float:
    return statistics.median(models[name][rate])


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} – {max(values):.3f})"


if __name__ == "__main__":
    run("irregular", __doc__, (FULL, QUICK), measure, report, draw)
