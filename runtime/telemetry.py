"""What a fleet has done, as counts: for people, for tests, for a dashboard (see `metrics`)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from odestream.runtime.errors import InputError
from odestream.runtime.records import Output

if TYPE_CHECKING:
    from odestream.runtime.fleet import Answer
    from odestream.runtime.member import Observation

BOUNDS = tuple(base * 10**power / 1e6 for power in range(1, 6) for base in (1, 2, 5))
"""Upper bounds in seconds of the latency histogram: 10, 20, 50, 100 … µs, to 0.5 s; what is slower counts beyond."""

MOST_STREAMS = 4096
"""Streams that are counted by name: the first to come, so that a service whose names change every day stays bounded."""


class Telemetry:
    """Counts of a fleet's calls; read by other threads while it counts.

    deadline: seconds that a call may take; None for no limit. calls, rows: what was asked for. streams: rows answered
    by stream, for the first `MOST_STREAMS` of them; others: those of all further streams together. refused: rows by the
    name of their error. flagged, reruns, split: see `Counters`. buckets: solver steps → rows answered in that bucket.
    missed: calls that took longer than the deadline. unlogged: calls that were answered and that the log lacks (see
    `recorder`). latencies: calls by `BOUNDS`. seconds: their sum.
    """

    def __init__(self, deadline: float | None = None) -> None:
        if deadline is not None and not deadline > 0:
            raise InputError(f"deadline is {deadline} s, expected more than 0; leave it out for none")
        self.deadline = deadline
        self.calls = self.rows = self.flagged = self.reruns = self.split = self.missed = self.others = 0
        self.unlogged = 0
        self.seconds = 0.0
        self.refused: dict[str, int] = {}
        self.buckets: dict[int, int] = {}
        self.streams: dict[str, int] = {}
        self.latencies = [0] * (len(BOUNDS) + 1)

    def count(self, seconds: float, rows: Sequence[Observation], answers: Sequence[Answer]) -> None:
        """A call that took `seconds`, and what came of its rows."""
        self.calls += 1
        self.rows += len(rows)
        self.seconds += seconds
        self.latencies[bisect_left(BOUNDS, seconds)] += 1
        if self.deadline is not None and seconds > self.deadline:
            self.missed += 1
        streams = self.streams
        for row, answer in zip(rows, answers, strict=True):
            if not isinstance(answer, Output):
                kind = type(answer).__name__
                self.refused[kind] = self.refused.get(kind, 0) + 1
                continue
            if row.stream in streams:
                streams[row.stream] += 1
            elif len(streams) < MOST_STREAMS:
                streams[row.stream] = 1
            else:
                self.others += 1
            if answer.bucket is not None:
                self.buckets[answer.bucket] = self.buckets.get(answer.bucket, 0) + 1
            if answer.flagged or answer.reruns or answer.calls > 1:  # few are any of it
                self.flagged += answer.flagged
                self.reruns += answer.reruns
                self.split += answer.calls > 1

    def quantile(self, q: float) -> float:
        """Seconds that the share `q` of the calls did not exceed, as an upper bound of the histogram; 0 before any."""
        wanted, seen = q * self.calls, 0
        for bound, count in zip((*BOUNDS, float("inf")), self.latencies, strict=True):
            seen += count
            if seen >= wanted:
                return bound if self.calls else 0.0
        return float("inf")

    def as_dict(self) -> dict[str, Any]:
        """All counts, and the latency's quantiles in seconds, None for one beyond the largest bound."""
        counts = {name: value for name, value in vars(self).items() if name != "latencies"}
        quantiles = {f"p{100 * q:g}": self.quantile(q) for q in (0.5, 0.99, 0.999)}
        return counts | {name: value if isfinite(value) else None for name, value in quantiles.items()}
