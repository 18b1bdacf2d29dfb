"""Measuring latency: back-to-back and paced loops, and what is said of the times they give.

Measurements are taken in interleaved rounds, so that a disturbance of the machine shows as spread between rounds
instead of as a difference between two measurements. Warm-up calls before the first round are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
ROUNDS = 5
WARMUP_CALLS = 200
WARMUP_SECONDS = 0.5

Times = NDArray[np.int64]


@dataclass(frozen=True)
class Subject:
    """What is measured. prepare(i) is not timed, call() is; rows: observations that one call takes in.

    rate: calls a second where it is paced, None for back-to-back. steps: of the solver, None where they vary or there
    is none.
    """

    name: str
    rows: int
    rate: float | None
    prepare: Callable[[int], None]
    call: Callable[[], object]
    steps: int | None = None

    @property
    def title(self) -> str:
        """The name, and the solver steps where they are fixed."""
        return self.name if self.steps is None else f"{self.name}, {self.steps} step{'s' * (self.steps != 1)}"


@dataclass(frozen=True)
class Measured:
    """A subject's times in ns, one array a round. missed: calls that ended after the next one's release."""

    subject: Subject
    rounds: tuple[Times, ...]
    missed: int

    @property
    def times(self) -> Times:
        """All rounds' times."""
        return np.concatenate(self.rounds)


def measure(
    subjects: Sequence[Subject], seconds: float, done: Callable[[float], None], rounds: int = ROUNDS
) -> list[Measured]:
    """Measure each subject for `seconds` in all; done(seconds) hears of the time that has passed."""
    for subject in subjects:
        _warm_up(subject)
    results: list[list[tuple[Times, int]]] = [[] for _ in subjects]
    for _ in range(rounds):
        for subject, collected in zip(subjects, results, strict=True):
            collected.append(_round(subject, seconds / rounds))
            done(seconds / rounds)
    return [
        Measured(subject, tuple(times for times, _ in collected), sum(missed for _, missed in collected))
        for subject, collected in zip(subjects, results, strict=True)
    ]


def median_ratio(measured: Measured, first: Measured) -> float:
    """Of the medians, the median over the rounds: a disturbance that outlasts a round falls on both alike."""
    pairs = zip(measured.rounds, first.rounds, strict=True)
    return float(np.median([np.median(own) / np.median(reference) for own, reference in pairs]))


def summary(measured: Measured) -> dict[str, Any]:
    """A measurement's figures for JSON; times in µs.

    A percentile beyond which there is no call is None. jitter: standard deviation.
    p50_spread: lowest and highest median of a round. deadline_misses: None unless paced.
    """
    times = measured.times / 1000.0
    medians = [float(np.median(part)) / 1000.0 for part in measured.rounds]
    subject = measured.subject
    return {
        "name": subject.name,
        "steps": subject.steps,
        "batch": subject.rows,
        "mode": "back-to-back" if subject.rate is None else "paced",
        "rate_hz": subject.rate,
        "calls": len(times),
        "mean_us": _figure(times.mean()),
        **{f"p{q:g}_us": _percentile(times, q) for q in PERCENTILES},
        "max_us": _figure(times.max()),
        "jitter_us": _figure(times.std()),
        "p50_spread_us": [_figure(min(medians)), _figure(max(medians))],
        "rows_per_second": _figure(subject.rows * 1e6 / times.mean()) if subject.rate is None else None,
        "deadline_misses": None if subject.rate is None else measured.missed,
    }


def warm_up_text() -> str:
    """How subjects were warmed up, for the report."""
    return f"{WARMUP_CALLS} calls, at most {WARMUP_SECONDS} s, before the first round"


def _warm_up(subject: Subject) -> None:
    end = time.perf_counter() + WARMUP_SECONDS
    for i in range(WARMUP_CALLS):
        subject.prepare(i)
        subject.call()
        if time.perf_counter() > end:
            break


def _round(subject: Subject, seconds: float) -> tuple[Times, int]:
    """At least one call."""
    times: list[int] = []
    missed = 0
    period = 0 if subject.rate is None else round(1e9 / subject.rate)
    prepare, call, clock = subject.prepare, subject.call, time.perf_counter_ns
    for i, release in enumerate(_releases(period, seconds)):
        prepare(i)
        begin = clock()
        call()
        end = clock()
        times.append(end - begin)
        missed += period > 0 and end - release > period
    return np.array(times, np.int64), missed


def _releases(period: int, seconds: float) -> Iterator[int]:
    """The times at which calls are due, in ns, each given when it has come; period 0: at once."""
    start = time.perf_counter_ns()
    end = start + round(seconds * 1e9)
    release = start
    while True:
        now = time.perf_counter_ns()
        if release > now:
            time.sleep((release - now) / 1e9)
        yield release if period else now
        release += period
        if max(release, time.perf_counter_ns()) >= end:
            return


def _percentile(times: NDArray[np.float64], q: float) -> float | None:
    return _figure(np.percentile(times, q)) if len(times) >= round(100 / (100 - q)) else None


def _figure(value: float | np.floating) -> float:
    return float(f"{float(value):.5g}")
