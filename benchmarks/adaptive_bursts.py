"""Quiet and bursts: the adaptive runtime against every fixed bucket, over one stream that nothing was trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptive_coverage import solver_of, summary, take, walk
from odestream.models.field import FieldWeights
from odestream.runtime import Model
from odestream.runtime.session import Stream
from odestream.runtime.table import Series

ADAPTIVE = "adaptive"
TARGET = 0.99  # of the steps within tolerance
BLOCK = 64  # rows that one contestant takes before the next has its turn
PAUSE = 0.002  # s before each step of a paced stream, as a sensor would leave; caches grow cold in it
PACES = {"b2b": 0.0, "paced": PAUSE}
ENGINE_CALLS = 400
Buckets = tuple[int, ...] | None


def contestants(model: Model) -> dict[str, Buckets]:
    """The adaptive runtime, and each bucket alone."""
    return {ADAPTIVE: None, **{f"always {n}": (n,) for n in solver_of(model).buckets}}


def contest(model: Model, weights: FieldWeights, series: Series, repetitions: int) -> dict[str, Any]:
    """Coverage, evaluations and latency of every contestant, and what the engine alone takes in each bucket."""
    rows = {name: summary(walk(model, weights, [series], buckets)) for name, buckets in contestants(model).items()}
    for pace, pause in PACES.items():
        for name, times in latencies(model, series, repetitions, pause).items():
            rows[name] |= {f"{pace}_{key}": value for key, value in times.items()}
    return {
        "rows": rows,
        "engine_us": engine_times(model),
        "smallest": {
            "all": _smallest(rows, "within_all"),
            "unflagged": _smallest({n: r for n, r in rows.items() if r["flagged"] <= 1 - TARGET}, "within"),
        },
    }


def latencies(model: Model, series: Series, repetitions: int, pause: float) -> dict[str, dict[str, float]]:
    """Median over repetitions of p50 and p99 of `Stream.step`, µs; pause: seconds before each step, not timed.

    The contestants take the same rows in turn, a block at a time and in another order each time, so that what
    disturbs the machine disturbs them all.
    """
    names, random = contestants(model), np.random.default_rng(0)
    medians: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        streams = {name: model.stream(buckets) for name, buckets in names.items()}
        times: dict[str, list[int]] = {name: [] for name in names}
        for start in range(0, len(series.ticks), BLOCK):
            block = range(start, min(start + BLOCK, len(series.ticks)))
            for name in random.permutation(list(names)):
                times[name] += _timed(streams[name], series, block, pause)
        if repetition:  # the first one warms up
            for name in names:
                medians[name].append(np.percentile(times[name], (50, 99)) / 1000)
    found = {name: np.median(np.array(values), axis=0) for name, values in medians.items()}
    return {name: {"p50_us": float(p50), "p99_us": float(p99)} for name, (p50, p99) in found.items()}


def engine_times(model: Model) -> dict[str, dict[str, float]]:
    """Median time of the engine's own call by bucket, µs: each bucket again and again, and all of them in turn.

    What the first lacks to a step is the host's; what the second adds, a bucket's graph and weights that have gone
    cold.
    """
    labels = [str(n) for n in solver_of(model).buckets]
    alone = {label: _engine_medians(model, [label])[label] for label in labels}
    return {"alone": alone, "in turn": _engine_medians(model, labels)}


def better(rows: dict[str, dict[str, Any]], rival: str | None, pace: str) -> list[str]:
    """In what the adaptive runtime is not better than `rival`; empty where it is Pareto-better."""
    if rival is None:
        return ["anything, since no fixed bucket meets the tolerance"]
    ours, theirs = rows[ADAPTIVE], rows[rival]
    lost = [] if ours["evaluations"] < theirs["evaluations"] else ["evaluations"]
    lost += [] if ours[f"{pace}_p50_us"] < theirs[f"{pace}_p50_us"] else ["p50"]
    return lost + ([] if ours[f"{pace}_p99_us"] <= theirs[f"{pace}_p99_us"] else ["p99"])


def _engine_medians(model: Model, labels: Sequence[str]) -> dict[str, float]:
    binding = model.bind()
    binding.inputs["dt"][...] = 0.1
    times: dict[str, list[int]] = {label: [] for label in labels}
    for _ in range(ENGINE_CALLS):
        for label in labels:
            begin = time.perf_counter_ns()
            binding.run(label)
            times[label].append(time.perf_counter_ns() - begin)
    return {label: float(np.median(values)) / 1000 for label, values in times.items()}


def _smallest(rows: dict[str, dict[str, Any]], share: str) -> str | None:
    """The fixed bucket with the fewest steps that has enough of its steps within tolerance."""
    return next((name for name, row in rows.items() if name != ADAPTIVE and row[share] >= TARGET), None)


def _timed(stream: Stream, series: Series, block: Sequence[int], pause: float) -> list[int]:
    times, clock = [], time.perf_counter_ns
    for row in block:
        if pause:
            time.sleep(pause)
        begin = clock()
        take(stream, series, row)
        times.append(clock() - begin)
    return times
