"""Calls compared by short blocks in turn, and the interval in which a figure of their medians lies.

A machine drifts by more than the differences that are looked for. Blocks of a few calls, one side's right after the
other's, share its drift; and drawing whole turns again and again tells how sure a figure is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALLS, WARM = 20, 4
DRAWS = 1000
CERTAINTY = 0.95

Medians = Mapping[str, NDArray[np.float64]]
"""Name → a median for each turn, in µs."""


@dataclass(frozen=True)
class Side:
    """What takes part. begin(): before each block. prepare(i): hand over call i. call(): the only part timed.

    own_clock: whether call itself tells how many ns count.
    """

    begin: Callable[[], object]
    prepare: Callable[[int], object]
    call: Callable[[], Any]
    own_clock: bool = False


def in_turn(sides: Mapping[str, Side], turns: int) -> Medians:
    """In every turn a block of `CALLS` calls of each side, its first `WARM` not counted; every other turn backwards."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns):
        for name in sorted(sides, reverse=turn % 2 == 1):
            found[name].append(_block(sides[name]))
    return {name: np.array(medians) for name, medians in found.items()}


def interval(figure: Callable[..., float], *runs: Medians) -> list[float]:
    """[low, figure, high]: the figure of the runs, and between what it lies when turns are drawn again (bootstrap).

    figure: of as many runs as are given; each one's turns are drawn by themselves.
    """
    rng = np.random.default_rng(0)
    drawn = [figure(*(_drawn(run, rng) for run in runs)) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [(1 - CERTAINTY) / 2, (1 + CERTAINTY) / 2])
    return [float(low), figure(*runs), float(high)]


def median_of(medians: Medians, name: str) -> float:
    """Over all turns."""
    return float(np.median(medians[name]))


def _drawn(run: Medians, rng: np.random.Generator) -> Medians:
    turns = min(len(values) for values in run.values())
    chosen = rng.integers(0, turns, turns)
    return {name: values[chosen] for name, values in run.items()}


def _block(side: Side) -> float:
    side.begin()
    times = []
    for i in range(CALLS):
        side.prepare(i)
        begin = time.perf_counter_ns()
        told = side.call()
        times.append(told if side.own_clock else time.perf_counter_ns() - begin)
    return float(np.median(times[WARM:])) / 1000
