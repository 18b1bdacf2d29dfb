"""Naive forecasters: what a trained model must beat before its error means anything.

They read a stream's past only: a forecast made at row i knows rows 0 … i. Times are integer ticks and may be
irregular; a missing observation is a zero in the mask. To forecast from a thinned record, pass `select_rows` of it.

Seasonal naive, for a period P and the least k ≥ h/P whose slot t + h − kP lies near an observation already seen:

    x̂(t + h) = x(t + h − kP) + k·drift(t)
    drift    = exponential moving average of (x(t) − x(t − jP))/j, with a time constant τ chosen on training rows,
               j ≥ 1 found as k is; or no drift at all, if that forecast the training rows better

A hole is thus filled from the same phase of an earlier period, not from its neighbours at other phases; only where
no earlier period holds an observation near that phase does k = ⌈h/P⌉ stand. A value between two observations is
interpolated linearly; the newest one stands for everything after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.errors import InputError
from odestream.runtime.table import Series

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

Smoothing = float | None

SMOOTHING_GRID: tuple[Smoothing, ...] = (None, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 4.0, 16.0)
DEFAULT_SMOOTHING = 1 / 16
NEAR = 1 / 10  # of a period: an observation this close to a slot is of the same phase; less than a day of a week


def horizon_pairs(origin_ticks: NDArray[np.int64], target_ticks: NDArray[np.int64], horizon: int) -> tuple[Rows, Rows]:
    """Rows i of the first and j of the second record with target_ticks[j] == origin_ticks[i] + horizon exactly."""
    wanted = origin_ticks + horizon
    found = np.minimum(np.searchsorted(target_ticks, wanted), len(target_ticks) - 1)
    origins = np.flatnonzero(target_ticks[found] == wanted)
    return origins, found[origins]


def last_value(series: Series, origins: Rows) -> Floats:
    """Forecast [Q, X] made at each of the rows `origins` [Q]: the newest value observed, NaN before the first."""
    return np.stack([_Channel.of(series, c).newest(origins) for c in range(series.x.shape[1])], axis=1)


def select_rows(series: Series, keep: slice | NDArray[np.bool_] | Rows) -> Series:
    """The stream thinned to the rows that `keep` selects."""
    return Series(series.name, series.ticks[keep], series.x[keep], series.mask[keep], series.labels[keep])


@dataclass(frozen=True)
class SeasonalNaive:
    """The same phase when it was last observed plus the smoothed drift since.

    period: season's length in ticks. smoothing: each channel's time constant τ of the drift, in periods; None: without.
    """

    period: float
    smoothing: tuple[Smoothing, ...]

    def forecast(self, series: Series, origins: Rows, target_ticks: NDArray[np.int64]) -> Floats:
        """Forecast [Q, X] for the times `target_ticks` [Q], made at the rows `origins` [Q].

        Where less than a period has been seen it is the last value, and NaN before the first observation.
        """
        columns = [
            _seasonal(_Channel.of(series, c), self.period, (tau,), origins, target_ticks)[0]
            for c, tau in enumerate(self.smoothing)
        ]
        return np.stack(columns, axis=1)


def fit_seasonal(training: Sequence[Series], period: float, horizons: Sequence[int]) -> SeasonalNaive:
    """Choose each channel's smoothing: least mean absolute error over all training rows and all `horizons` (ticks).

    Every origin of the training series is forecast from its own past; targets are the training rows that lie
    exactly one horizon later. A channel that gives no such pair gets `DEFAULT_SMOOTHING`.
    """
    if not period > 0:
        raise InputError(f"period: found {period}, expected a positive number of ticks; give the season's length")
    scores = np.stack([_smoothing_scores(training, c, period, horizons) for c in range(training[0].x.shape[1])])
    best = [DEFAULT_SMOOTHING if np.isnan(row).any() else SMOOTHING_GRID[int(np.argmin(row))] for row in scores]
    return SeasonalNaive(float(period), tuple(best))


def mean_absolute_error(forecast: Floats, series: Series, targets: Rows) -> Floats:
    """Mean |forecast − x| of each channel [X], over those `targets` rows that were observed and forecast; else NaN."""
    counted = (series.mask[targets] > 0) & ~np.isnan(forecast)
    error = np.where(counted, np.abs(forecast - series.x[targets]), 0.0).sum(axis=0)
    count = counted.sum(axis=0)
    return np.where(count > 0, error / np.maximum(count, 1), np.nan)


@dataclass(frozen=True)
class _Channel:
    """The observed values of one channel: `when` [N] ticks since the first row, `value` [N], `seen` [T].

    seen[i] is how many of them a forecast made at row i knows.
    """

    start: int
    row_ticks: NDArray[np.int64]
    when: Floats
    value: Floats
    seen: Rows

    @classmethod
    def of(cls, series: Series, channel: int) -> _Channel:
        observed = series.mask[:, channel] > 0
        start = int(series.ticks[0]) if len(series.ticks) else 0
        when = (series.ticks[observed] - start).astype(np.float64)
        value = series.x[observed, channel].astype(np.float64)
        return cls(start, series.ticks, when, value, np.cumsum(observed, dtype=np.int64))

    def newest(self, origins: Rows) -> Floats:
        """The last value that each origin knows, NaN before the first."""
        known = self.seen[origins]
        return np.where(known > 0, self._padded(known), np.nan)

    def at(self, when: Floats, known: Rows) -> Floats:
        """Values at `when` interpolated among the first `known` observations; NaN before the first."""
        left = np.minimum(np.searchsorted(self.when, when, side="right"), known)
        right = np.minimum(left + 1, known)
        t0, t1 = self.when[np.maximum(left, 1) - 1], self.when[np.maximum(right, 1) - 1]
        share = np.clip((when - t0) / np.where(t1 > t0, t1 - t0, 1.0), 0.0, 1.0)
        value = self._padded(left) + share * (self._padded(right) - self._padded(left))
        return np.where(left > 0, value, np.nan)

    def in_phase(self, when: Floats, known: Rows, period: float) -> tuple[Floats, Floats]:
        """Values at `when`, or at the first slot whole periods earlier that has a near observation, and how many.

        Where no slot of the past has one it is the value at `when` itself, and 0 periods.
        """
        back = np.zeros(len(when))
        sought = np.flatnonzero(self._phase_occurs(when, period))
        step = 0
        while len(sought):
            slot = when[sought] - step * period
            near = self._distance(slot, known[sought]) <= NEAR * period
            back[sought[near]] = step
            sought = sought[~near & (slot - period >= self.when[0])]
            step += 1
        return self.at(when - back * period, known), back

    def _distance(self, when: Floats, known: Rows) -> Floats:
        """Ticks to the nearest of the first `known` observations; infinite before the first."""
        left = np.minimum(np.searchsorted(self.when, when, side="right"), known)
        before = when - self.when[np.maximum(left, 1) - 1]
        after = self.when[np.minimum(left, len(self.when) - 1)] - when
        nearest = np.where(left < known, np.minimum(before, after), before)
        return np.where(left > 0, nearest, np.inf)

    def _phase_occurs(self, when: Floats, period: float) -> NDArray[np.bool_]:
        """False where no observation, past or to come, is near that phase: there a search of the past is in vain.

        Only a short cut (a closed weekend would cost a walk through all weeks), hence the margin for rounding.
        """
        phases = np.sort(np.mod(self.when, period))
        phases = np.concatenate([phases[-1:] - period, phases, phases[:1] + period])
        wanted = np.mod(when, period)
        right = np.searchsorted(phases, wanted)
        nearest = np.minimum(wanted - phases[right - 1], phases[right] - wanted)
        occurs: NDArray[np.bool_] = nearest <= 1.001 * NEAR * period
        return occurs

    def _padded(self, count: Rows) -> Floats:
        """The newest of the first `count` values; where there is none, the first, which callers mask out."""
        newest: Floats = self.value[np.maximum(count, 1) - 1]
        return newest


def _seasonal(
    channel: _Channel, period: float, smoothing: Sequence[Smoothing], origins: Rows, target_ticks: NDArray[np.int64]
) -> Floats:
    """Forecasts [G, Q] of one channel under each of G smoothings."""
    if len(channel.value) == 0:
        return np.full((len(smoothing), len(origins)), np.nan)
    known = channel.seen[origins]
    ahead = target_ticks - channel.row_ticks[origins]
    periods = np.maximum(np.ceil(ahead / period), 1.0)
    season, back = channel.in_phase((target_ticks - channel.start) - periods * period, known, period)
    drift = _drift(channel, period, smoothing)[:, np.maximum(known, 1) - 1]
    forecast = season + (periods + back) * drift
    return np.where(np.isnan(forecast), channel.newest(origins), forecast)


def _drift(channel: _Channel, period: float, smoothing: Sequence[Smoothing]) -> Floats:
    """Smoothed change per period [G, N] after each of a channel's N observations; NaN until one period was seen."""
    season, back = channel.in_phase(channel.when - period, np.arange(1, len(channel.value) + 1), period)
    change = (channel.value - season) / (1 + back)
    drift = np.full((len(smoothing), len(change)), np.nan)
    usable = np.flatnonzero(~np.isnan(change))
    if len(usable) == 0:
        return drift
    gaps = np.diff(channel.when[usable], prepend=channel.when[usable[0]])
    constants = np.array([np.inf if tau is None else tau for tau in smoothing])
    weights = -np.expm1(-gaps[:, None] / (constants * period))
    current = np.where(np.isinf(constants), 0.0, change[usable[0]])
    for row, weight in zip(usable, weights, strict=True):
        current = current + weight * (change[row] - current)
        drift[:, row] = current
    newest = np.maximum.accumulate(np.where(np.isnan(change), -1, np.arange(len(change))))
    return np.where(newest >= 0, drift[:, np.maximum(newest, 0)], np.nan)


def _smoothing_scores(training: Sequence[Series], channel: int, period: float, horizons: Sequence[int]) -> Floats:
    """Mean over horizons of the mean absolute error under each smoothing of the grid [G]; NaN without any pair."""
    means = []
    for horizon in horizons:
        errors = [_horizon_errors(series, channel, period, horizon) for series in training]
        pooled = np.concatenate(errors, axis=1)
        if pooled.shape[1]:
            means.append(pooled.mean(axis=1))
    return np.mean(means, axis=0) if means else np.full(len(SMOOTHING_GRID), np.nan)


def _horizon_errors(series: Series, channel: int, period: float, horizon: int) -> Floats:
    """|forecast − x| [G, Q'] at one horizon, over the pairs whose target was observed and could be forecast."""
    if len(series.ticks) == 0:
        return np.empty((len(SMOOTHING_GRID), 0))
    origins, targets = horizon_pairs(series.ticks, series.ticks, horizon)
    made = _seasonal(_Channel.of(series, channel), period, SMOOTHING_GRID, origins, series.ticks[targets])
    counted = (series.mask[targets, channel] > 0) & ~np.isnan(made).any(axis=0)
    errors: Floats = np.abs(made - series.x[targets, channel])
    return errors[:, counted]
