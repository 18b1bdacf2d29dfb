"""What streams did during a run, for people and for machines: rows, re-runs, splits, flags, calls of each bucket."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.fleet import Fleet
from odestream.runtime.records import Counters
from odestream.runtime.verbs.rows import TableRow


class Tally:
    """Counts from now on: a restored stream brings those of earlier runs, and a stream may be replaced by a new one.

    late: rows that came after a later one of their stream. Each counts once, and so do the rows that ran again for it.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.late = 0
        self._fleet = fleet
        self._earlier = self._all()
        self._last = {name: state.tick for name, state in fleet.states().items() if state.tick is not None}

    def watched(self, rows: Iterator[TableRow]) -> Iterator[TableRow]:
        """The rows as they come, the late ones counted."""
        for row in rows:
            if row.t is not None:
                last = self._last.get(row.stream, row.t)
                self.late += row.t < last
                self._last[row.stream] = max(row.t, last)
            yield row

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


def sentence(counters: Counters, late: int = 0, estimated: bool = True) -> str:
    """The counts in one line, such as `40 rows, 3 run again (7.5 %), 1 split, 0 flagged; calls by solver steps: …`.

    estimated: whether the solver tells how well it did; one that does not runs nothing again and flags nothing.
    """
    rows = counters.steps
    told = [f"{rows:,} row{'s' * (rows != 1)}" + (f" ({late:,} late)" if late else "")]
    if estimated:
        told.append(
            f"{counters.rerun:,} run again" + (f" ({100 * counters.rerun / rows:.3g} %)" * bool(counters.rerun))
        )
    if estimated or counters.split:
        told.append(f"{counters.split:,} split")
    if estimated:
        told.append(f"{counters.flagged:,} flagged")
    kinds = {"calls by solver steps": counters.buckets, "rejected": counters.rejected}
    calls = [f"{kind}: {text}" for kind, each in kinds.items() if (text := histogram(each))]
    return "; ".join([", ".join(told), *calls])


def histogram(*calls: Mapping[str, int]) -> str:
    """All calls of each bucket that was called, such as `1: 1,204, 4: 31`; empty where there is no solver."""
    labels = dict.fromkeys(label for each in calls for label in each if label != NO_SOLVER)
    counts = {label: sum(each.get(label, 0) for each in calls) for label in labels}
    return ", ".join(f"{label}: {count:,}" for label, count in counts.items() if count)
