"""A point of a work–precision diagram: what a solver's setting costs on some gaps, and how well it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

COVERAGE = 0.99
"""Share of gaps within tolerance that a setting must reach to count as calibrated."""
_OVERFLOW = 1e30  # stands for a diverged error, which JSON cannot say
_BLOCK = 20
_ENOUGH = 100  # calls, for a 99th percentile of their times


@dataclass(frozen=True)
class Errors:
    """True errors of some gaps: `scaled` [n] in units of the tolerance, `absolute` [n] as the RMS over h."""

    scaled: Floats
    absolute: Floats


@dataclass(frozen=True)
class Point:
    """One setting of one solver on one scenario.

    family: the solver; setting: its bucket, factor or tolerance. evaluations: of the field for one gap, mean.
    within: share of gaps whose true error is at most 1 tolerance, of the unflagged ones where there are flags;
    median, p99, worst: of that error; absolute: RMS over all gaps and components. flagged: share, None without flags.
    p50_us, p99_us: wall time, None where it was not measured, or not often enough.
    stated: whether this is the setting that a user gets at the stated tolerance, nothing calibrated by hindsight.
    """

    family: str
    setting: str
    evaluations: float
    within: float
    median: float
    p99: float
    worst: float
    absolute: float
    flagged: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    stated: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether enough gaps are within tolerance."""
        return self.within >= COVERAGE

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def make_point(
    family: str,
    setting: str,
    errors: Errors,
    evaluations: Floats,
    *,
    flagged: NDArray[np.bool_] | None = None,
    times: Floats | None = None,
    stated: bool = False,
) -> Point:
    """The point of a setting from each gap's error, evaluations, flag and wall time in µs."""
    scaled = np.nan_to_num(errors.scaled, nan=_OVERFLOW, posinf=_OVERFLOW)
    absolute = np.minimum(np.nan_to_num(errors.absolute, nan=_OVERFLOW, posinf=_OVERFLOW), _OVERFLOW)
    judged = scaled if flagged is None or flagged.all() else scaled[~flagged]
    return Point(
        family,
        setting,
        float(evaluations.mean()),
        float((judged <= 1).mean()),
        float(np.median(scaled)),
        float(np.quantile(scaled, 0.99)),
        float(judged.max()),
        float(np.sqrt((absolute**2).mean())),
        None if flagged is None else float(flagged.mean()),
        None if times is None else float(np.median(times)),
        None if times is None or len(times) < _ENOUGH else float(np.quantile(times, 0.99)),
        stated,
    )


def points_of(scenario: Mapping[str, Any]) -> list[Point]:
    """A scenario's points, from their JSON values."""
    return [Point(**values) for values in scenario["points"]]


def steps_text(steps: int) -> str:
    """A number of solver steps in words."""
    return f"{steps} step{'s' if steps > 1 else ''}"


def families(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Points by family, in order of appearance."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.family, []).append(point)
    return found


def cheapest(points: Sequence[Point]) -> Point | None:
    """The calibrated point with the fewest evaluations."""
    return min((p for p in points if p.calibrated), key=lambda p: p.evaluations, default=None)


def interleaved(contenders: Mapping[str, Callable[[int], object]], rows: int, repeats: int) -> dict[str, Floats]:
    """Wall time [rows] in µs of each contender called with 0 … rows − 1 in order: the median of `repeats` rounds.

    Contenders take turns every few rows, so that whatever else the machine does meets all of them alike. The first
    round warms up and is not counted.
    """
    taken = {name: np.empty((repeats + 1, rows)) for name in contenders}
    for turn in range(repeats + 1):
        for start in range(0, rows, _BLOCK):
            for name, call in contenders.items():
                for row in range(start, min(start + _BLOCK, rows)):
                    began = time.perf_counter_ns()
                    call(row)
                    taken[name][turn, row] = (time.perf_counter_ns() - began) / 1e3
    return {name: np.median(times[1:], axis=0) for name, times in taken.items()}
