"""The claim that the forget gate forgets: when keys are reassigned, the latest value wins, and would not without it."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.progress import track

from claim import Result, judged
from odestream.models.config import Part
from recall_beyond import FIRST_SEED, FULL_CELL, MATRIX
from recall_figure import Curve, told
from recall_scoring import Trial
from recall_streams import Subject
from recall_task import CHANCE, EVENTS
from recall_training import LONGEST_TRAINED_GAP, Recipe
from results import circumstances_text, markdown_table
from sweep import Sweep

ON, OFF = "forget gate", "no forget gate"
SUBJECTS: dict[str, tuple[Part, ...]] = {ON: (), OFF: ("forget-gate",)}

NOTES = """\
Without the gate the matrix forgets nothing: neither by the gate's factor nor over time. What replaces a value is then
the delta rule alone, which writes the difference between a value and what its key returns. With every answer right, the
test is at its ceiling: it shows that the gate is not needed here, not that it could never help."""


@dataclass(frozen=True)
class Plan:
    """What one run of the benchmark does."""

    seeds: int
    recipe: Recipe
    test: Trial


PLANS = {
    "full": Plan(3, Recipe(), Trial((10, 64, 300, 1000, 10_000), rewritten=EVENTS, sequences=8, rounds=8)),
    "quick": Plan(
        1,
        Recipe(memory_steps=200, gate_steps=50, cell_steps=2),
        Trial((10, 64), before=30, between=8, rewritten=EVENTS, sequences=4, rounds=1),
    ),
}


def measure(plan: Plan, sweep: Sweep) -> Result:
    """Accuracies over the gap by cell, with all reads and with the matrix alone, of every seed."""
    seeds = list(range(FIRST_SEED, FIRST_SEED + plan.seeds))
    found: dict[str, list[Any]] = {}
    work = [(seed, name) for seed in seeds for name in SUBJECTS]
    for seed, name in track(work, "cells"):
        with Subject(seed, plan.recipe, SUBJECTS[name]) as subject:
            for row in (FULL_CELL, MATRIX):
                key = f"{row}, {name}"
                point = sweep.get(f"{seed}/{key}", partial(subject.deployed, row, plan.test))
                found.setdefault(key, []).append(point)
    return {"seeds": seeds, "plan": dataclasses.asdict(plan), "points": found}


def curves(result: Result) -> dict[str, Curve]:
    """Accuracy over the gap, by cell and row."""
    return {name: Curve(result["plan"]["test"]["gaps"], points) for name, points in result["points"].items()}


def verdicts(result: Result) -> list[str]:
    """Where the claim stands and where it falls, falls first."""
    lines, said = curves(result), []
    gap = result["plan"]["test"]["gaps"][-1]
    for row in (FULL_CELL, MATRIX):
        on, off = (lines[f"{row}, {name}"].at(gap) for name in (ON, OFF))
        held = statistics.median(on) > statistics.median(off)
        said.append(
            (held, f"{row}: the latest value is told more often with the forget gate; {told(on)}, without {told(off)}")
        )
    return judged(said)


def report(result: Result) -> str:
    """The section of RESULTS.md."""
    test, lines = result["plan"]["test"], curves(result)
    return "\n\n".join(
        (
            *verdicts(result),
            f"Event recall with all keys rewritten, share of questions answered with the latest value on the deployed "
            f"runtime; median of {len(result['seeds'])} seeds (lowest – highest); chance {CHANCE:.3f}, and 0.5 for who "
            f"knows both values of a key but not which is the later. {test['sequences']} sequences a seed; in training "
            f"gaps of at most {LONGEST_TRAINED_GAP}.",
            markdown_table(
                ["", *(f"gap {gap:,}" for gap in test["gaps"])], [[name, *line.cells()] for name, line in lines.items()]
            ),
            NOTES,
            circumstances_text(),
            "![Accuracy over gap](figures/forgetting.png)",
        )
    )
