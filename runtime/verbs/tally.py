"""What streams did during a run, for people and for machines: rows, re-runs, splits, flags, calls of each bucket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.fleet import Fleet
from odestream.runtime.records import Counters


class Tally:
    """Counts from now on: a restored stream brings those of earlier runs, and a stream may be replaced by a new one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._earlier = self._all()

    def counts(self) -> dict[str, Counters]:
        """Name → what it did, of every stream that did anything."""
        counts = {name: total([now], less=self._earlier.get(name)) for name, now in self._all().items()}
        return {name: counters for name, counters in counts.items() if counters.steps}

    def _all(self) -> dict[str, Counters]:
        ended = self._fleet.ended
        states = self._fleet.states().items()
        return {name: total([state.counters, ended.get(name, Counters())]) for name, state in states}


def total(counts: Iterable[Counters], less: Counters | None = None) -> Counters:
    """The sum of counters; `less` is taken off."""
    result = Counters()
    for counters in counts:
        result.add(counters)
    if less is not None:
        result.add(less, -1)
    return result


def as_json(counters: Counters) -> dict[str, Any]:
    """A count of each kind, under the names that Counters gives them."""
    found: dict[str, Any] = msgspec.to_builtins(counters)
    return found


def sentence(counters: Counters) -> str:
    """The counts in one line, such as `40 rows, 3 run again (7.5 %), 1 split, 0 flagged; calls by solver steps: …`."""
    rows = counters.steps
    again = f"{counters.rerun:,} run again" + (f" ({100 * counters.rerun / rows:.3g} %)" if counters.rerun else "")
    told = f"{rows:,} row{'s' * (rows != 1)}, {again}, {counters.split:,} split, {counters.flagged:,} flagged"
    calls = histogram(counters.buckets, counters.rejected)
    return f"{told}; calls by solver steps: {calls}" if calls else told


def histogram(accepted: Mapping[str, int], rejected: Mapping[str, int]) -> str:
    """All calls of each bucket that was called, such as `1: 1,204, 4: 31`; empty where there is no solver."""
    calls = {label: count + rejected.get(label, 0) for label, count in accepted.items() if label != NO_SOLVER}
    return ", ".join(f"{label}: {count:,}" for label, count in calls.items() if count)
