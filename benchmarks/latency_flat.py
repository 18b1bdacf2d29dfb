"""Whether a step takes as long, and the process as much memory, after a million steps as after a hundred."""

from __future__ import annotations

import math
from typing import Any

from latency_limits import resident_bytes
from latency_model import Inputs
from latency_paired import Medians, Side, in_turn, interval, median_of
from odestream.runtime import Model


def flatness(model: Model, inputs: Inputs, calls: int, turns: int) -> dict[str, Any]:
    """A stream of `calls` steps beside a fresh one, which is put back to its hundredth step again and again.

    At each power of ten the two step in turn. What counts is their ratio there over their ratio at the first: where a
    stream's buffers happen to lie makes it a percent faster or slower than another from the beginning. Memory: how much
    the process has grown in the last nine tenths of the steps.
    """
    marks = [10**k for k in range(2, round(math.log10(calls)) + 1)]
    aging, fresh = _Walk(model, inputs), _Walk(model, inputs)
    fresh.go(marks[0])
    beside, age = fresh.held(), 0
    first: Medians = {}
    at: dict[str, dict[str, Any]] = {}
    for mark in marks:
        aging.go(mark - age)
        resident, own, age = resident_bytes(), aging.held(), mark
        found = in_turn({"aged": own, "fresh": beside}, turns)
        own.begin()
        first = first or {f"{name} at first": medians for name, medians in found.items()}
        at[str(mark)] = {
            "p50_us": median_of(found, "aged"),
            "resident_bytes": resident,
            "to_fresh": interval(_change, {**found, **first}),
        }
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


def _change(medians: Medians) -> float:
    now = median_of(medians, "aged") / median_of(medians, "fresh")
    return now / (median_of(medians, "aged at first") / median_of(medians, "fresh at first"))
