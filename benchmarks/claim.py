"""What the scripts of single claims share: the command line, where results go, and how verdicts read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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
) -> None:
    """Measure by the first plan and publish; with --quick by the second, which writes into runs/NAME only."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="check that the script works; its figures mean nothing")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    sweep = Sweep(RUNS / name / f"points_{'quick' if quick else 'full'}.json")
    result = measure(plans[quick], sweep)
    print(report(result))
    if quick:
        write_json(RUNS / name / f"{name}.json", result)
        draw(result, RUNS / name / f"{name}.png")
    else:
        publish(name, result, report(result))
        draw(result, FIGURES / f"{name}.png")
    sweep.finish()


def judged(said: Sequence[tuple[bool, str]]) -> list[str]:
    """A sentence for each part of a claim, by whether it stands; what falls comes first."""
    return [f"{'Holds' if held else '**Falsified**'}: {text}." for held, text in sorted(said, key=lambda one: one[0])]
