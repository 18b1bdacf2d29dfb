"""What was found, in words and tables: verdicts, what falls first."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from capacity_models import CEILING, CONTENDERS, WINDOW
from capacity_task import NOISE
from capacity_training import CELL_RATE, SHARPNESS_RATE
from claim import judged
from odestream.models.model import OURS
from results import circumstances_text, markdown_table

NOTHING = 0.9  # an error that says nothing was recalled: a constant's is 1, give or take its few thousand answers
RECALLED = 0.3  # and one that says nearly everything was, where 0.2 is the least possible
TITLES = {
    "reach": "8 pairs, error over the gap",
    "pairs": "Error over the number of pairs",
    "rewritten": "Every key written three times, error over the number of keys",
    "patient": "Three times the training, error over the number of pairs",
}
WHERE = {"pairs": "pairs", "rewritten": "keys written three times", "patient": "pairs after three times the training"}
HOW = f"""\
The error is that of the answer to the value without its noise (deviation {NOISE}; the values' own is 1), as a share of
the values' variance: a constant has 1. Everybody has our cell's parameters within 5 % and up to the stated bytes of
state, as far as the parameters allow: for GRU and CfC a state of 4 KiB would take millions of them, and a diagonal SSM
or LinOSS would be too narrow. Full attention is the ceiling: its state, shown full, grows. Stacked rivals have one
layer, so that one state has all the bytes; a row holds key and value, so one layer can find them. All rivals that look
up by key start with queries equal to keys, as ours does, and the selective SSM with reads equal to writes. Two more
things are set in the gated DeltaNet's favour: it has no short convolutions, whose state it would pay for and whose
first weights mix each row with the one before (the selective SSM has none either), and it forgets slowly at first; as
published, it learnt nothing in so few steps. "Wide keys" has values 8 wide and as many rows of keys as the bytes allow,
in place of a square matrix. Sequences grow over the first 40 % of the steps. Where there is noise between pairs and
questions, rivals start from a state that noise left.

A verdict compares our median with a rival's best seed, since some trainings, ours among them, never leave the plateau
at 1. Slots hold a pair each and take no other once they are full of events as strong: ours recalls what came first. A
learned sink lets its episodic read stay silent about what it has lost, where it would otherwise give a neighbour's
value. A gated DeltaNet still improves when the steps end; `--tasks patient` gives three times as many."""


def report(result: dict[str, Any]) -> str:
    """The section of RESULTS.md."""
    plan = result["plan"]
    rates = ", ".join(f"{rate:g}" for rate in plan["rates"])
    paragraphs = [
        *verdicts(result),
        f"Median of {plan['seeds']} seeds (lowest – highest), {plan['sequences']} sequences a point. Everybody had "
        f"{plan['steps']:,} training steps of {plan['batch']} sequences; ours spent the last {plan['cell_steps']} on "
        f"the whole cell, the others on its memory path alone. Learning rates of {rates} were tried on a seed of "
        f"their own, for every model alike. Ours has two more, chosen once: {SHARPNESS_RATE:g} times the rate for the "
        f"sharpness of its reads, and {CELL_RATE:g} for the whole cell.",
        HOW,
    ]
    for name, sizes in result["parts"].items():
        for budget, at in sizes.items():
            heading = f"**{TITLES[name]}, {int(budget) // 1024} KiB**; least possible {at['floor']:.2f}; the square "
            heading += f"matrix is {at['width']} wide; commit {at['commit']}"
            paragraphs += [heading, _table(name, at)]
    return "\n\n".join((*paragraphs, circumstances_text(), "![Error over gap and pairs](figures/capacity.png)"))


def verdicts(result: dict[str, Any]) -> list[str]:
    """What of the claims stands and what falls, falls first."""
    said: list[tuple[bool, str]] = []
    for name, sizes in result["parts"].items():
        for budget, at in sizes.items():
            if OURS in at["models"]:
                said += _reach(at) if name == "reach" else _pairs(name, int(budget), at)
    return judged(said)


def median(at: dict[str, Any], name: str, place: int) -> float:
    """Error of a model at a point, of the seeds."""
    return statistics.median([float(seed[place]) for seed in at["models"][name]["errors"]])


def best(at: dict[str, Any], name: str, place: int) -> float:
    """Of the seeds: a rival whose training did not leave the plateau at 1 would be beaten by nobody's merit."""
    return min(float(seed[place]) for seed in at["models"][name]["errors"])


def _reach(at: dict[str, Any]) -> list[tuple[bool, str]]:
    places = range(len(at["points"]))
    ours, longest = [median(at, OURS, place) for place in places], at["points"][-1]
    said = [(max(ours) <= RECALLED, f"8 pairs, gaps up to {longest:,}: ours is {max(ours):.2f} off at most")]
    if WINDOW in at["models"]:
        inside, *beyond = (best(at, WINDOW, place) for place in places)
        text = f"8 pairs: the sliding window is {inside:.2f} off inside its reach, {min(beyond):.2f} at least beyond"
        said.append((min(beyond) >= NOTHING, text))
    return [*said, *(_against(at, name, "8 pairs", len(places) - 1, f"gap {longest:,}") for name in _rivals(at))]


def _pairs(part: str, budget: int, at: dict[str, Any]) -> list[tuple[bool, str]]:
    """At the point nearest to twice the width, and at the last."""
    points = at["points"]
    near = min(range(len(points)), key=lambda place: abs(points[place] - 2 * at["width"]))
    where = f"{WHERE[part]}, {budget // 1024} KiB"
    return [
        _against(at, name, where, place, f"{points[place]} keys")
        for name in _rivals(at)
        for place in sorted({near, len(points) - 1})
    ]


def _rivals(at: dict[str, Any]) -> list[str]:
    """Everybody whose state is held to the bytes."""
    return [name for name in at["models"] if name not in (OURS, CEILING)]


def _against(at: dict[str, Any], name: str, where: str, place: int, point: str) -> tuple[bool, str]:
    ours, theirs = median(at, OURS, place), best(at, name, place)
    label = CONTENDERS[name].label
    return ours < theirs, f"{where}, {point}: ours errs less than {label}, {ours:.2f} against {theirs:.2f} at best"


def _table(name: str, at: dict[str, Any]) -> str:
    unit = "gap" if name == "reach" else "keys"
    columns = ["", "bytes", "parameters", "rate", *(f"{unit} {point:,}" for point in at["points"])]
    rows = [
        [
            CONTENDERS[model].label,
            f"{it['state_bytes']:,}",
            f"{it['parameters']:,}",
            f"{it['rate']:g}",
            *_cells(it["errors"]),
        ]
        for model, it in at["models"].items()
    ]
    return markdown_table(columns, rows)


def _cells(errors: Sequence[Sequence[float]]) -> list[str]:
    columns = [[float(value) for value in column] for column in zip(*errors, strict=True)]
    return [f"{statistics.median(c):.2f} ({min(c):.2f} – {max(c):.2f})" for c in columns]
