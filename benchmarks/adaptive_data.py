"""A sensor with quiet periods and rare bursts, sampled irregularly and with holes; made from a seed.

Two channels follow slow waves. Now and then something happens: both ring with an oscillation thirty times faster that
dies out, and the sensor, as such sensors do, samples four times faster while it rings. Gaps are spread over two
decades, and one value in five is missing.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MEDIAN_GAP = 1.0  # s, of the quiet; all times below are in s
SPREAD = 10.0  # gaps are log-uniform from MEDIAN_GAP / SPREAD to MEDIAN_GAP * SPREAD
FASTER = 4.0  # sampling within a burst
BURST_EVERY = 250.0  # mean time between bursts
BURST_DECAY = 12.0
BURST_PERIOD = 6.0
SLOW_PERIODS = (180.0, 410.0)
MISSING = 0.2
NOISE = 0.03
LOUD = 0.3  # envelope above which the sensor samples faster

COLUMNS = ("time", "level", "vibration")


@dataclass(frozen=True)
class Record:
    """Times `[T]` in s, values `[T, 2]`, which of them were observed `[T, 2]`, and the bursts' envelope `[T]`."""

    times: Floats
    values: Floats
    observed: Bools
    envelope: Floats


def bursty_record(rows: int, seed: int) -> Record:
    """A record of `rows` observations."""
    random = np.random.default_rng(seed)
    longest = rows * MEDIAN_GAP * SPREAD
    starts = np.cumsum(random.exponential(BURST_EVERY, int(longest / BURST_EVERY) + 1))
    heights = np.exp(random.normal(0.5, 0.5, len(starts)))
    times = _times(rows, starts, heights, random)
    turns = random.uniform(0, 2 * np.pi, (2, len(SLOW_PERIODS)))
    slow = np.stack(
        [sum(np.sin(2 * np.pi * times / p + a) for p, a in zip(SLOW_PERIODS, row, strict=True)) for row in turns],
        axis=1,
    )
    ringing, envelope = _ringing(times, starts, heights)
    values = slow + ringing + NOISE * random.standard_normal((rows, 2))
    observed = random.random((rows, 2)) >= MISSING
    return Record(times, values, observed, envelope)


def write_table(path: Path, record: Record) -> None:
    """The record as a CSV; a value that was not observed is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for time, values, seen in zip(record.times, record.values, record.observed, strict=True):
            cells = [f"{value:.5f}" if known else "" for value, known in zip(values, seen, strict=True)]
            writer.writerow([f"{time:.6f}", *cells])


def _times(rows: int, starts: Floats, heights: Floats, random: np.random.Generator) -> Floats:
    """Gap after gap, since how fast the sensor samples depends on whether it rings."""
    gaps = MEDIAN_GAP * np.exp(random.uniform(-np.log(SPREAD), np.log(SPREAD), rows))
    times, now = np.empty(rows), 0.0
    for row, gap in enumerate(gaps):
        loud = _envelope(np.array([now]), starts, heights)[0] > LOUD
        now += gap / FASTER if loud else gap
        times[row] = now
    return times


def _envelope(times: Floats, starts: Floats, heights: Floats) -> Floats:
    return np.abs(_ringing(times, starts, heights)[1])


def _ringing(times: Floats, starts: Floats, heights: Floats) -> tuple[Floats, Floats]:
    """What the bursts add to both channels `[T, 2]`, and the envelope `[T]` of the latest one."""
    latest = np.searchsorted(starts, times, side="right") - 1
    since = np.where(latest >= 0, times - starts[latest], np.inf)
    envelope = np.where(latest >= 0, heights[latest], 0.0) * np.exp(-since / BURST_DECAY)
    angle = 2 * np.pi * np.where(latest >= 0, since, 0.0) / BURST_PERIOD
    return np.stack([0.3 * envelope * np.sin(angle), envelope * np.cos(angle)], axis=1), envelope
