"""What a trained forecaster reaches on rows that it was not made from, beside rivals that cost nothing.

Each stream is walked forward call by call as it would be deployed, from its first row on; forecasts start from every
row of the judged part, and their targets are the rows observed one horizon later. Errors are pooled over streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.models import rivals
from odestream.models.cell import Cell
from odestream.models.data import Dataset, Rows, period_ticks
from odestream.models.flow import Integrator
from odestream.models.forecasting import Walk, forecast, pairs_at, walk
from odestream.models.model import Model
from odestream.models.sequences import MAX_CALLS, calls_of, longest_call
from odestream.models.solver_gate import solver_gate
from odestream.models.validation import ValidationSegments

Floats = NDArray[np.float64]
Range = tuple[int, int]
Report = dict[str, Any]

SCORE = "validation mean absolute error / scale"
DROPPED = 0.5
WARM_ROWS = 20_000  # of a stream before its judged part; a state does not remember more than its averages do


def forecast_report(cell: Model, data: Dataset, horizons: Sequence[int], period: float | None, seed: int) -> Report:
    """Errors on the test and validation rows, with half of the test rows dropped at random, and the solver gate.

    horizons: in median gaps. A horizon at which no target was observed has a count of 0 and no errors.
    """
    season = _season(data, horizons, period)
    judge = Judge(cell, data, tuple(horizons), season)
    segments = ValidationSegments(cell, data, seed, MAX_CALLS)
    random = np.random.default_rng(seed)
    whole = [np.arange(len(p.series.ticks)) for p in data.parts]
    thinned = [
        rows[(rows < p.test) | (random.random(len(rows)) >= DROPPED)] for rows, p in zip(whole, data.parts, strict=True)
    ]
    walks = judge.walks([*whole, *thinned])
    test = [(p.test, len(p.series.ticks)) for p in data.parts]
    count = len(data.parts)
    targets = [data.task.inputs.index(t) for t in data.task.targets]

    def measure(steps: int | None, integrator: Integrator | None) -> float:
        return segments.score(cell, targets, horizons, steps, integrator)

    solved: Report = {}
    if isinstance(cell, Cell):
        solved = {"solver_gate": solver_gate(cell, SCORE, 0.0, measure), "deployed_solver_steps": cell.config.steps}
    return {
        "test": judge.report(walks[:count], test),
        "test_thinned": {"dropped": DROPPED, **judge.report(walks[count:], test)},
        "validation": judge.report(walks[:count], [(p.validation, p.test) for p in data.parts]),
        **solved,
        "seasonal_smoothing_in_periods": None if season is None else list(season.smoothing),
    }


@dataclass(frozen=True)
class Judged:
    """Forecasts of one horizon beside what came: [Q, X] each, NaN where a rival has none.

    observed: 1 where the target was observed. rivals: by name.
    """

    mean: Floats
    deviation: Floats
    target: Floats
    observed: Floats
    rivals: dict[str, Floats]


@dataclass(frozen=True)
class Judge:
    """Walks streams and compares forecasts with what came.

    horizons: in median gaps. season: the seasonal rival, None without a period.
    """

    cell: Model
    data: Dataset
    horizons: tuple[int, ...]
    season: rivals.SeasonalNaive | None = None

    def report(self, walks: Sequence[Walk | None], ranges: Sequence[Range]) -> Report:
        """target -> horizon -> figures, on rows [start, stop) of each stream that was walked."""
        walked = [(walk, rows) for walk, rows in zip(walks, ranges, strict=True) if walk is not None]
        made = {h: _joined([self.judge(*one, h) for one in walked]) for h in self.horizons}
        columns = {target: self.data.task.inputs.index(target) for target in self.data.task.targets}
        return {
            target: {str(horizon): _figures(one, column) for horizon, one in made.items()}
            for target, column in columns.items()
        }

    def walks(self, arriving: Sequence[Rows]) -> list[Walk | None]:
        """The streams, in order and as often as `arriving` goes round them, walked through the rows that arrive.

        None for a stream of which nothing arrives.
        """
        longest = longest_call(self.cell.config, self.cell.config.steps)
        parts = [self.data.parts[i % len(self.data.parts)] for i in range(len(arriving))]
        calls = [
            calls_of(part.series, rows[rows >= part.validation - WARM_ROWS], self.data.time, longest, MAX_CALLS)
            for part, rows in zip(parts, arriving, strict=True)
        ]
        come = [(part.series, own) for part, own in zip(parts, calls, strict=True) if len(own) > 0]
        walks = iter(walk(self.cell, [series for series, _ in come], [own for _, own in come]))
        return [next(walks) if len(own) > 0 else None for own in calls]

    def judge(self, walked: Walk, rows: Range, horizon: int) -> Judged:
        """Forecasts of one stream from the calls that bring one of `rows`, for targets among the same rows."""
        ahead = horizon * self.data.gap
        origins, targets = pairs_at(walked, ahead, 0.5 * self.data.gap, *rows)
        series, ticks = walked.series, walked.series.ticks[targets]
        mean, deviation = forecast(self.cell, self.data.time, walked, origins, ticks)
        naive = self._rivals(walked, origins, ticks)
        return Judged(
            mean, deviation, series.x[targets].astype(np.float64), series.mask[targets].astype(np.float64), naive
        )

    def _rivals(self, walked: Walk, origins: Rows, ticks: Rows) -> dict[str, Floats]:
        """The rivals know the rows that arrived, and no others."""
        brought = walked.calls.rows >= 0
        known = rivals.select_rows(walked.series, walked.calls.rows[brought])
        places = (np.cumsum(brought) - 1)[origins]
        made = {"last_value": rivals.last_value(known, places)}
        if self.season is not None:
            made["seasonal_naive"] = self.season.forecast(known, places, ticks)
        return made


def _figures(judged: Judged, channel: int) -> Report:
    """count, mae, rmse, bias (mean of forecast minus target), coverage of ±1σ and ±2σ, and each rival's mae."""
    error = judged.mean - judged.target
    distance = np.abs(error) / judged.deviation
    square = _mean(error * error, judged, channel)
    return {
        "count": int(judged.observed[:, channel].sum()),
        "mae": _mean(np.abs(error), judged, channel),
        "rmse": None if square is None else float(np.sqrt(square)),
        "bias": _mean(error, judged, channel),
        "coverage_1": _mean(distance <= 1, judged, channel),
        "coverage_2": _mean(distance <= 2, judged, channel),
        "rivals": {n: _mean(np.abs(made - judged.target), judged, channel) for n, made in judged.rivals.items()},
    }


def _mean(values: NDArray[np.generic], judged: Judged, channel: int) -> float | None:
    """Mean over the observed targets for which there is a value; None where there is none."""
    column = values[:, channel].astype(np.float64)
    counted = column[(judged.observed[:, channel] > 0) & ~np.isnan(column)]
    return float(counted.mean()) if len(counted) else None


def _joined(parts: Sequence[Judged]) -> Judged:
    """The forecasts of several streams as one."""

    def whole(arrays: Sequence[Floats]) -> Floats:
        return np.concatenate(arrays, axis=0)

    return Judged(
        whole([p.mean for p in parts]),
        whole([p.deviation for p in parts]),
        whole([p.target for p in parts]),
        whole([p.observed for p in parts]),
        {name: whole([p.rivals[name] for p in parts]) for name in parts[0].rivals},
    )


def _season(data: Dataset, horizons: Sequence[int], period: float | None) -> rivals.SeasonalNaive | None:
    """The seasonal rival, its smoothing chosen on everything before the test rows."""
    if period is None:
        return None
    training = [rivals.select_rows(p.series, slice(0, p.test)) for p in data.parts if p.test > 0]
    ahead = [round(h * data.gap) for h in horizons]
    return rivals.fit_seasonal(training, period_ticks(data.time, period), ahead)
