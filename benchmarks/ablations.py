"""Does every part of our cell pay on irregular series?

The cell of irregular.py, trained and asked as there on damped oscillators, whole and with one part off: each memory,
each gate, the reads of all memories, the flow, all that it knows of the time between rows, and the level that a
stationary record comes back to; time features on the CO2 record, the only one here with a season. Beside it what the
trainer's thinned copies of each stream, which irregular.py does without, do for it and for GRU-Δt. Falsified for a part
where the cell without it does not err more with every seed, over all rates.

    python benchmarks/ablations.py            three seeds, ten minutes on one quiet core
    python benchmarks/ablations.py --quick    a few steps of small models; its figures mean nothing

Writes results/ablations.json, figures/ablations.png and a section of RESULTS.md; with --quick into runs/ablations only.
An interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.figure
from rich.progress import track

from claim import judged, run
from irregular import FULL, GRU_DT, NAMES, OURS, QUICK, Plan, append, table, train
from irregular_data import KINDS
from odestream.models.config import STORES
from odestream.models.training.forecast import MOST_DROPPED
from results import circumstances_text
from sweep import Sweep

ABLATED, SEASONAL = KINDS[0], KINDS[-1]
RATE = 1e-2  # of those that irregular.py tries, the middle one
SWITCHES: dict[str, tuple[str, ...]] = {
    "no flow": ("flow",),
    "dt ignored": ("flow", "elapsed"),
    "no write gate": ("write-gate",),
    "no read gate": ("read-gate",),
    "no forget gate": ("forget-gate",),
    "no memory": ("reads",),
}
PARTS: dict[str, dict[str, Any]] = {
    **{name: {"without": parts} for name, parts in SWITCHES.items()},
    **{f"no {store} memory": {"stores": tuple(s for s in STORES if s != store)} for store in STORES},
    "no level": {"stationary": False},
    "no time features": {"frequencies": ()},
}
COPIES = "thinned copies"


def measure(plan: Plan, sweep: Sweep) -> dict[str, Any]:
    """Errors by kind, row and rate, one for each seed."""
    rows: list[tuple[str, str, str, dict[str, Any]]] = [(kind, OURS, OURS, {}) for kind in (ABLATED, SEASONAL)]
    for name, changes in PARTS.items():
        rows.append((SEASONAL if "frequencies" in changes else ABLATED, name, OURS, changes))
    rows.append((ABLATED, GRU_DT, GRU_DT, {}))
    rows += [(ABLATED, f"{name}, {COPIES}", name, {"dropped": MOST_DROPPED}) for name in (OURS, GRU_DT)]
    print(f"{len(rows) * plan.seeds} trainings of {plan.steps} steps")
    found: dict[str, Any] = {ABLATED: {}, SEASONAL: {}}
    for seed, (kind, row, name, changes) in track([(s, row) for s in range(plan.seeds) for row in rows], "models"):
        point = partial(train, kind, NAMES[name], RATE, seed, plan, **changes)
        append(found[kind], row, sweep.get(f"{kind}/{row}/{seed}", point)["errors"])
    return {"seeds": list(range(plan.seeds)), "training_steps": plan.steps, "learning_rate": RATE, "errors": found}


def costs(result: Mapping[str, Any], part: str) -> list[float]:
    """By which share the error grows without a part: the mean over rates, of every seed, paired."""
    models = next(models for models in result["errors"].values() if part in models)
    shares = [
        [without / whole - 1 for without, whole in zip(models[part][rate], models[OURS][rate], strict=True)]
        for rate in models[OURS]
    ]
    return [statistics.mean(by_rate) for by_rate in zip(*shares, strict=True)]


def verdicts(result: Mapping[str, Any]) -> list[str]:
    """Which parts pay, those that do not first."""
    said = []
    for part in PARTS:
        more = [100 * share for share in costs(result, part)]
        text = f"{part}: {statistics.median(more):+.1f} % error ({min(more):+.1f} – {max(more):+.1f})"
        said.append((min(more) > 0, text))
    return judged(said)


def report(result: Mapping[str, Any]) -> str:
    """The section of RESULTS.md."""
    return "\n\n".join(
        (
            *verdicts(result),
            f"Errors as in irregular.py, whose cell, streams and {result['training_steps']} training steps these are; "
            f"median of {len(result['seeds'])} seeds (lowest – highest), a small tier for two cores; learning rate "
            f"{result['learning_rate']:g} for all, where irregular.py chooses one for each model. A gate that is off "
            "stays open; where dt is ignored, h stands still between rows and encoder and head are not told the time; "
            "without memory its reads are held back. Thinned copies: the trainer's default, with which training sees "
            "more than one rate.",
            *(table(kind, models) for kind, models in result["errors"].items()),
            circumstances_text(),
            "![What each part is worth](figures/ablations.png)",
        )
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A bar for each part."""
    figure = matplotlib.figure.Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for part in PARTS:
        more = [100 * share for share in costs(result, part)]
        axes.barh(part, statistics.median(more), color="C0" if min(more) > 0 else "C3")
        axes.scatter(more, [part] * len(more), color="black", s=8, zorder=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel("% more error without it")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run("ablations", __doc__, (FULL, dataclasses.replace(QUICK, kinds=(ABLATED, SEASONAL))), measure, report, draw)
