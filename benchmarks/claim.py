"""What the scripts of single claims share: the command line, where results go, and how verdicts read."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from results import FIGURES, publish, write_json
from sweep import Sweep

RUNS = Path(__file__).parents[1] / "runs"

Result = dict[str, Any]
Plan = TypeVar("Plan")


def run(
    name: str,
    about: str | None,
    plans: tuple[Plan, Plan],
    measure: Callable[[Plan, Sweep], Result],
    report: Callable[[Result], str],
    draw: Callable[[Result, Path], None],
    parts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Measure by the first plan and publish; with --quick by the second, which writes into runs/NAME only.

    parts: fields of a plan that the command line may narrow to some of the names given here; what was narrowed is not
    published either, and its points are kept for a whole run to go on from.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    tier = parser.add_mutually_exclusive_group()
    tier.add_argument("--full", action="store_true", help="measure and publish, which is the default")
    tier.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    for field, known in (parts or {}).items():
        parser.add_argument(f"--{field}", nargs="+", choices=known, help="these alone; not published")
    options = vars(parser.parse_args())
    quick = options.pop("quick")
    del options["full"]
    narrowed = {field: tuple(names) for field, names in options.items() if names}
    torch.set_num_threads(1)
    sweep = Sweep(RUNS / name / f"points_{'quick' if quick else 'full'}.json")
    plan: Any = plans[quick]
    result = measure(dataclasses.replace(plan, **narrowed) if narrowed else plan, sweep)
    print(report(result))
    if quick or narrowed:
        write_json(RUNS / name / f"{name}.json", result)
        draw(result, RUNS / name / f"{name}.png")
    else:
        publish(name, result, report(result))
        draw(result, FIGURES / f"{name}.png")
    if not narrowed:
        sweep.finish()


def judged(said: Sequence[tuple[bool, str]]) -> list[str]:
    """A sentence for each part of a claim, by whether it stands; what falls comes first."""
    return [f"{'Holds' if held else '**Falsified**'}: {text}." for held, text in sorted(said, key=lambda one: one[0])]
