"""Whether a step takes as long, and the process as much memory, after a million steps as after a hundred."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from latency_limits import resident_bytes
from latency_model import Inputs
from latency_paired import Medians, Side, in_turn, interval, median_of
from odestream.runtime import Model

SURE = 0.004
"""How wide the interval of a ratio may be, as a share of it, before more turns are measured."""

MOST = 16
"""As many times the turns that were asked for are measured at most."""


def flatness(model: Model, inputs: Inputs, calls: int, turns: int) -> dict[str, Any]:
    """A stream of `calls` steps beside a fresh one, which is put back to its hundredth step again and again.

    At each power of ten the two step in turn: `turns` times, then twice as often until their ratio is sure. What
    counts, from the second on, is that ratio over the one at the first: where a stream's buffers happen to lie makes it
    a percent faster or slower than another from the beginning. Memory: how much the process has grown in the last nine
    tenths of the steps.
    """
    marks = [10**k for k in range(2, round(math.log10(calls)) + 1)]
    aging, fresh = _Walk(model, inputs), _Walk(model, inputs)
    fresh.go(marks[0])
    beside, age = fresh.held(), 0
    first: Medians | None = None
    at: dict[str, dict[str, Any]] = {}
    for mark in marks:
        aging.go(mark - age)
        resident, own, age = resident_bytes(), aging.held(), mark
        found = _until_sure({"aged": own, "fresh": beside}, turns)
        own.begin()
        row = {"p50_us": median_of(found, "aged"), "resident_bytes": resident, "turns": len(found["aged"])}
        at[str(mark)] = row if first is None else {**row, "to_fresh": interval(_change, found, first)}
        first = first or found
    last, before = (at[str(mark)]["resident_bytes"] for mark in (marks[-1], marks[-2]))
    return {"calls": calls, "at": at, "grown_bytes": last - before}


class _Walk:
    """A stream that steps through the inputs again and again at the usual gap."""

    def __init__(self, model: Model, inputs: Inputs) -> None:
        self._stream = model.stream(buckets=(1,))
        self._inputs = inputs
        self._gap = int(inputs.ticks[1] - inputs.ticks[0])
        self._given = inputs.x[0], int(inputs.ticks[0])

    def go(self, steps: int) -> None:
        for i in range(steps):
            self._prepare(i)
            self._call()

    def held(self) -> Side:
        """The stream as it stands now, to which it is put back before each block."""
        state = self._stream.save()
        return Side(lambda: self._stream.load(state), self._prepare, self._call)

    def _prepare(self, i: int) -> None:
        last = self._stream.last_tick
        tick = int(self._inputs.ticks[0]) if last is None else last + self._gap
        self._given = self._inputs.x[i % self._inputs.rows], tick

    def _call(self) -> None:
        self._stream.step(*self._given)


def _until_sure(sides: Mapping[str, Side], turns: int) -> Medians:
    """More turns while it is the machine's noise that says how the two compare; how they compare does not matter."""
    found = in_turn(sides, turns)
    while len(found["aged"]) < MOST * turns and _width(found) > SURE:
        more = in_turn(sides, len(found["aged"]))
        found = {name: np.concatenate([medians, more[name]]) for name, medians in found.items()}
    return found


def _width(found: Medians) -> float:
    low, middle, high = interval(_ratio, found)
    return (high - low) / middle


def _change(now: Medians, first: Medians) -> float:
    return _ratio(now) / _ratio(first)


def _ratio(medians: Medians) -> float:
    """Median over turns of each turn's own ratio, which a machine that changes its pace between turns leaves alone."""
    return float(np.median(medians["aged"] / medians["fresh"]))
