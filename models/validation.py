"""A forecaster's error on validation rows, fast enough to be asked for many times while it trains.

The rows, whole and with half of them gone, are cut into segments that are walked side by side, each from the exact
running statistics and warmed on the calls before it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from odestream.models.data import Dataset, Part
from odestream.models.flow import Integrator
from odestream.models.forecasting import Walk, forecast, pairs_at, walk
from odestream.models.model import Model
from odestream.models.sequences import MAX_PIECES, Calls, calls_of, longest_call, running_statistics

STREAMS, ROWS = 16, 1000  # at most: a score needs no more
ONE_SIGMA, FEWEST = 0.6827, 50
FACTORS = (1e-3, 1e3)  # least and largest change of a deviation
SEGMENT, WARM = 64, 64  # calls that count, and calls before them
Errors = NDArray[np.float64]


class ValidationSegments:
    """The validation rows of `data`; the cell gives centre, scale and time constants, not weights.

    most: calls that a gap may take, see `calls_of`.
    """

    def __init__(self, cell: Model, data: Dataset, seed: int, most: int = MAX_PIECES) -> None:
        self.time, self.gap = data.time, data.gap
        self.segments: list[_Segment] = []
        random, longest = np.random.default_rng([seed, 2]), longest_call(cell.config, 1)
        judged = [p for p in data.parts if p.test > p.validation][:STREAMS]
        for part, share in itertools.product(judged, (1.0, 0.5)):
            rows = np.arange(min(part.test, part.validation + ROWS))
            come = rows[(rows < part.validation) | (random.random(len(rows)) < share)]
            if len(come) > 0:
                calls = calls_of(part.series, come, data.time, longest, most)
                self.segments += _segments(part, calls, running_statistics(cell, [calls])[0])

    def score(
        self,
        cell: Model,
        channels: Sequence[int],
        horizons: Sequence[int],
        steps: int | None,
        integrator: Integrator | None = None,
    ) -> float:
        """Mean absolute error in units of the scale, over channels and horizons; NaN where nothing was observed."""
        errors, scale = self.errors(cell, horizons, steps, integrator), cell.scale.double().numpy()
        scaled = np.array([e[list(channels)] / scale[list(channels)] for e in errors.values()])
        return float(np.nanmean(scaled)) if np.isfinite(scaled).any() else math.nan

    def errors(
        self, cell: Model, horizons: Sequence[int], steps: int | None, integrator: Integrator | None = None
    ) -> dict[int, Errors]:
        """horizon -> mean absolute error of each channel [X], NaN where nothing was observed.

        steps, integrator: of the flow, as in `Cell.expect`.
        """
        walks = self._walk(cell, steps, integrator)
        return {h: self._error(cell, walks, h, steps, integrator) for h in horizons}

    def deviation_factors(self, cell: Model, horizons: Sequence[int], steps: int) -> Errors:
        """By how much each channel's stated deviation [X] is too small: so scaled, it covers 68.3 % of the errors.

        All forecasts of all horizons count alike. 1 where fewer than `FEWEST` were observed, and where they were met
        exactly (a constant channel); within `FACTORS`.
        """
        walks = self._walk(cell, steps)
        found: list[list[Errors]] = [[] for _ in range(cell.config.channels)]
        for (walked, segment), horizon in itertools.product(zip(walks, self.segments, strict=True), horizons):
            mean, deviation, x, observed = self._forecast(cell, walked, segment, horizon, steps)
            for channel, distances in enumerate(found):
                seen = observed[:, channel]
                distances.append((np.abs(mean - x) / deviation)[seen, channel])
        pooled = [np.concatenate(distances) if distances else np.empty(0) for distances in found]
        return np.array([_factor(d) for d in pooled])

    def _walk(self, cell: Model, steps: int | None, integrator: Integrator | None = None) -> list[Walk]:
        if not self.segments:
            return []
        series, calls, norms = zip(*((s.part.series, s.calls, s.norm) for s in self.segments), strict=True)
        return walk(cell, series, calls, steps, norms, integrator)

    def _forecast(
        self,
        cell: Model,
        walked: Walk,
        segment: _Segment,
        horizon: int,
        steps: int | None,
        integrator: Integrator | None = None,
    ) -> tuple[Errors, Errors, Errors, NDArray[np.bool_]]:
        """Mean, deviation, target and whether it was observed, [Q, X] each."""
        series = segment.part.series
        origins, rows = pairs_at(walked, horizon * self.gap, 0.5 * self.gap, segment.first, segment.part.test)
        mean, deviation = forecast(cell, self.time, walked, origins, series.ticks[rows], steps, integrator)
        return mean, deviation, series.x[rows].astype(np.float64), series.mask[rows] > 0

    def _error(
        self, cell: Model, walks: Sequence[Walk], horizon: int, steps: int | None, integrator: Integrator | None
    ) -> Errors:
        total, count = np.zeros(cell.config.channels), np.zeros(cell.config.channels)
        for walked, segment in zip(walks, self.segments, strict=True):
            mean, _, x, observed = self._forecast(cell, walked, segment, horizon, steps, integrator)
            total += np.where(observed, np.abs(mean - x), 0.0).sum(axis=0)
            count += observed.sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class _Segment(NamedTuple):
    """Calls of a stream around some validation rows: forecasts from row `first` on count."""

    part: Part
    first: int
    calls: Calls
    norm: Tensor


def _factor(distances: Errors) -> float:
    quantile = float(np.quantile(distances, ONE_SIGMA)) if len(distances) >= FEWEST else 1.0
    return float(np.clip(quantile, *FACTORS)) if quantile > 0 else 1.0


def _segments(part: Part, calls: Calls, norms: Tensor) -> list[_Segment]:
    begin = int(np.searchsorted(calls.ticks, part.series.ticks[part.validation]))
    found = []
    for start in range(begin, len(calls), SEGMENT):
        warm = max(0, start - WARM)
        own = calls.part(warm, min(start + SEGMENT, len(calls)))
        brought = own.rows[start - warm :]
        if np.any(brought >= 0):
            found.append(_Segment(part, int(brought[brought >= 0][0]), own, norms[warm]))
    return found
