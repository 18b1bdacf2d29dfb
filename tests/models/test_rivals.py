"""The rivals against series whose continuation is known, and against the figures of the weekly CO2 data."""

import csv
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from odestream.models.ridge import RidgeDesign, fit_ridge
from odestream.models.rivals import (
    DEFAULT_SMOOTHING,
    SMOOTHING_GRID,
    SeasonalNaive,
    fit_seasonal,
    horizon_pairs,
    last_value,
    mean_absolute_error,
    select_rows,
)
from odestream.runtime.errors import InputError
from odestream.runtime.table import Series

CO2 = Path(__file__).parents[2] / "benchmarks" / "data" / "co2_weekly.csv"
HORIZONS = (7, 28, 91, 182)


def record(ticks: NDArray[np.int64], x: NDArray[np.floating], mask: NDArray[np.generic] | None = None) -> Series:
    """One stream; x and mask [T] or [T, X], everything observed without a mask."""
    values = np.asarray(x[:, None] if x.ndim == 1 else x, np.float32)
    seen = np.ones_like(values) if mask is None else np.asarray(mask, np.float32).reshape(values.shape)
    return Series("", ticks, np.nan_to_num(values), seen, np.full(len(ticks), -1))


def irregular(seed: int, rows: int = 400) -> NDArray[np.int64]:
    return np.cumsum(np.random.default_rng(seed).integers(1, 60, rows))


def drifting_season(ticks: NDArray[np.int64], period: float) -> NDArray[np.float64]:
    return 3 + 0.01 * ticks + np.sin(2 * np.pi * ticks / period) + 0.3 * np.cos(4 * np.pi * ticks / period)


def weekly_with_holes(seed: int, noise: float, slope: float = 0.0) -> Series:
    """Daily rows, a season of seven unlike days, and 30 % of the values missing at random."""
    days, rng = np.arange(700_000, 700_900), np.random.default_rng(seed)
    pattern = np.array([20.0, 22.0, 21.0, 25.0, 30.0, 5.0, 2.0])
    x = pattern[days % 7] + slope * (days - days[0]) + rng.normal(0, noise, len(days))
    return record(days, x, rng.random(len(days)) < 0.7)


def same_weekday_last_observed(daily: Series, origins: NDArray[np.int64], horizon: int) -> NDArray[np.float64]:
    """Forecast [Q, 1] of a table with a row for each day, one origin after another."""
    made = np.full((len(origins), 1), np.nan)
    for place, origin in enumerate(origins):
        past = [i for i in range(origin + horizon - 7, -1, -7) if i <= origin and daily.mask[i, 0]]
        made[place] = daily.x[past[0], 0] if past else np.nan
    return made


@pytest.fixture(scope="module")
def co2() -> Series:
    with CO2.open(newline="") as file:
        rows = list(csv.DictReader(file))
    ticks = np.array([date.fromisoformat(row["time"]).toordinal() for row in rows])
    x = np.array([float(row["co2_ppm"] or "nan") for row in rows])
    return record(ticks, x, ~np.isnan(x))


def test_seasonal_naive_is_exact_on_a_season_with_linear_drift_at_horizons_beyond_a_period() -> None:
    ticks, period = np.arange(0, 4000, 10), 400.0
    data = record(ticks, drifting_season(ticks, period))
    for horizon in (10, 390, 400, 410, 1200):
        origins, targets = horizon_pairs(ticks, ticks, horizon)
        late = origins >= 120
        forecast = SeasonalNaive(period, (0.25,)).forecast(data, origins[late], ticks[targets[late]])
        np.testing.assert_allclose(forecast, data.x[targets[late]], rtol=0, atol=1e-5)


def test_seasonal_naive_follows_straight_lines_through_irregular_times_and_holes() -> None:
    ticks = irregular(1)
    observed = np.random.default_rng(2).random(len(ticks)) < 0.7
    data = record(ticks, np.where(observed, 5 - ticks / 64, np.nan), observed)  # exact in float32
    origins = np.flatnonzero(observed & (ticks > 1500))
    target = ticks[origins] + 77
    forecast = SeasonalNaive(300.5, (0.1,)).forecast(data, origins, target)
    np.testing.assert_allclose(forecast[:, 0], 5 - target / 64, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_on_a_weekly_season_with_holes_the_rival_is_as_good_as_the_same_weekday_when_last_observed(seed: int) -> None:
    daily, first, horizons = weekly_with_holes(seed, noise=2.5), 720, (1, 3, 7, 14)
    fitted = fit_seasonal([select_rows(daily, slice(first))], 7.0, horizons)
    for horizon in horizons:
        origins = np.arange(first, len(daily.ticks) - horizon)
        targets = origins + horizon
        weekday = mean_absolute_error(same_weekday_last_observed(daily, origins, horizon), daily, targets)
        made, driftless = (
            s.forecast(daily, origins, daily.ticks[targets]) for s in (fitted, SeasonalNaive(7, (None,)))
        )
        assert mean_absolute_error(made, daily, targets) <= 1.1 * weekday
        assert mean_absolute_error(made, daily, targets) <= mean_absolute_error(driftless, daily, targets)


def test_a_hole_one_period_back_is_filled_from_the_same_phase_further_back_and_drift_counts_all_those_periods() -> None:
    daily = weekly_with_holes(4, noise=0.0, slope=1 / 8)
    origins = np.arange(200, 880)
    forecast = SeasonalNaive(7.0, (1.0,)).forecast(daily, origins, daily.ticks[origins] + 10)
    whole = np.array([20.0, 22.0, 21.0, 25.0, 30.0, 5.0, 2.0])[(daily.ticks[origins] + 10) % 7]
    np.testing.assert_allclose(forecast[:, 0], whole + (origins + 10) / 8, rtol=0, atol=1e-9)


def test_a_phase_that_was_never_observed_is_interpolated_between_its_neighbours() -> None:
    days = np.arange(70)
    daily = record(days, (days % 7).astype(float), days % 7 != 3)
    seasonal = SeasonalNaive(7.0, (None,))
    assert seasonal.forecast(daily, np.array([60]), np.array([63 + 3]))[0, 0] == pytest.approx(3.0)
    assert seasonal.forecast(daily, np.array([60]), np.array([63 + 6]))[0, 0] == 6.0


def test_drift_is_the_continuous_time_moving_average_of_changes_over_a_period() -> None:
    data = record(np.array([0, 10, 13, 20, 31]), np.array([1.0, 2.0, 2.5, 4.0, 3.0]))
    first, second, third = 2.0 - 1.0, 2.5 - 1.3, 4.0 - 2.0  # at t = 10, 13, 20, the past interpolated
    drift = first + (1 - np.exp(-3 / 5)) * (second - first)
    drift += (1 - np.exp(-7 / 5)) * (third - drift)
    forecast = SeasonalNaive(10.0, (0.5,)).forecast(data, np.array([3]), np.array([21]))
    assert forecast[0, 0] == pytest.approx(2.0 + 0.5 / 3 + drift, abs=1e-12)


@given(seed=st.integers(0, 10_000), origin=st.integers(0, 79), horizon=st.integers(1, 900))
def test_a_forecast_does_not_depend_on_what_comes_after_its_origin(seed: int, origin: int, horizon: int) -> None:
    ticks, rng = irregular(seed, 80), np.random.default_rng(seed)
    x, mask = rng.normal(size=(80, 2)), rng.random((80, 2)) < 0.6
    other_x, other_mask = x.copy(), mask.copy()
    other_x[origin + 1 :], other_mask[origin + 1 :] = 1e6, True
    seasonal, at = SeasonalNaive(311.7, (0.2, None)), np.array([origin])
    target, a, b = ticks[at] + horizon, record(ticks, x, mask), record(ticks, other_x, other_mask)
    np.testing.assert_array_equal(seasonal.forecast(a, at, target), seasonal.forecast(b, at, target))
    np.testing.assert_array_equal(last_value(a, at), last_value(b, at))


def test_missing_rows_and_absent_rows_are_the_same_to_both_rivals() -> None:
    ticks, rng = irregular(5), np.random.default_rng(5)
    x, kept = drifting_season(ticks, 500.0), rng.random(400) < 0.5
    holes, thinned = record(ticks, np.where(kept, x, np.nan), kept), select_rows(record(ticks, x), kept)
    rows = np.flatnonzero(kept)
    seasonal, every = SeasonalNaive(500.0, (0.25,)), np.arange(len(rows))
    np.testing.assert_array_equal(last_value(holes, rows), last_value(thinned, every))
    np.testing.assert_array_equal(
        seasonal.forecast(holes, rows, ticks[rows] + 40), seasonal.forecast(thinned, every, ticks[rows] + 40)
    )


def test_last_value_holds_each_channel_until_it_is_seen_again_and_is_nan_before() -> None:
    x = np.array([[0.0, 9.0], [1.0, 0.0], [0.0, 8.0], [2.0, 0.0]])
    data = record(np.arange(4), x, x != 0)
    expected = np.array([[np.nan, 9], [1, 9], [1, 8], [2, 8]])
    np.testing.assert_array_equal(last_value(data, np.arange(4)), expected)


def test_seasonal_naive_is_the_last_value_before_a_period_was_seen_and_for_a_silent_channel_nan() -> None:
    data = record(np.arange(5), np.ones((5, 2)) * np.arange(5)[:, None], np.array([[1, 0]] * 5))
    forecast = SeasonalNaive(100.0, (0.1, 0.1)).forecast(data, np.arange(5), np.arange(5) + 1)
    np.testing.assert_array_equal(forecast[:, 0], np.arange(5))
    assert np.isnan(forecast[:, 1]).all()


def test_smoothing_is_long_for_a_noisy_steady_drift_and_short_for_a_quiet_changing_one() -> None:
    ticks, rng = np.arange(0, 6000, 5), np.random.default_rng(3)
    noisy = drifting_season(ticks, 365.0) + rng.normal(0, 0.3, len(ticks))
    changing = np.cumsum(rng.normal(0, 0.3, len(ticks)))
    both = record(ticks, np.stack([noisy, changing], axis=1), np.ones((len(ticks), 2)))
    long, short = fit_seasonal([both], 365.0, (5, 50)).smoothing
    assert long in SMOOTHING_GRID[SMOOTHING_GRID.index(1 / 4) :]
    assert short in SMOOTHING_GRID[1 : SMOOTHING_GRID.index(1 / 8)]


def test_smoothing_of_a_record_shorter_than_its_period_is_the_default() -> None:
    assert fit_seasonal([record(np.arange(0), np.zeros(0))], 9.0, (1,)).smoothing == (DEFAULT_SMOOTHING,)
    assert fit_seasonal([record(np.arange(5), np.zeros(5))], 9.0, (7,)).smoothing == (DEFAULT_SMOOTHING,)


def test_horizon_pairs_are_all_rows_exactly_one_horizon_apart_and_no_others() -> None:
    ticks = np.array([0, 7, 14, 22, 28, 35])
    origins, targets = horizon_pairs(ticks, ticks, 7)
    assert list(zip(origins, targets, strict=True)) == [(0, 1), (1, 2), (4, 5)]


def test_mean_absolute_error_counts_only_observed_targets_that_were_forecast() -> None:
    data = record(np.arange(3), np.array([[1.0, 5.0], [2.0, 6.0], [4.0, 7.0]]), np.array([[1, 0], [1, 0], [0, 0]]))
    error = mean_absolute_error(np.array([[1.5, 0.0], [np.nan, 0.0], [9.0, 0.0]]), data, np.arange(3))
    np.testing.assert_array_equal(error, [0.5, np.nan])


def test_a_season_without_length_is_refused() -> None:
    with pytest.raises(InputError, match="period"):
        fit_seasonal([record(np.arange(5), np.zeros(5))], 0.0, (1,))


def test_ridge_reproduces_a_linear_recurrence() -> None:
    rows = np.arange(600)
    x = 4 + 0.01 * rows + np.sin(0.3 * rows) + np.cos(0.05 * rows)
    ridge = fit_ridge(x, RidgeDesign(period=2 * np.pi / 0.05, lags=10), 3, 400)
    origins = np.arange(400, 597)
    np.testing.assert_allclose(ridge.forecast(x, origins), x[origins + 3], atol=2e-3)
    x[500:] = np.nan
    assert ridge.forecast(x, np.array([499]))[0] == pytest.approx(
        ridge.forecast(np.nan_to_num(x, nan=77.0), np.array([499]))[0]
    )


def test_ridge_without_enough_rows_says_so() -> None:
    with pytest.raises(InputError, match="fewer lags"):
        fit_ridge(np.arange(50.0), RidgeDesign(52.0, lags=60), 1, 50)


def test_naive_rivals_on_weekly_co2_reach_their_published_figures(co2: Series) -> None:
    """Last fifth of the data. Last value: 0.405/1.109/2.946/3.779 ppm at 1/4/13/26 weeks, as published. Seasonal:
    the published 0.465/0.494/0.581/0.729 took the nearest week; interpolating to the exact date is a harder rival.
    """
    first = int(0.8 * len(co2.ticks))
    assert date.fromordinal(int(co2.ticks[first])) == date(1993, 4, 3)
    seasonal = fit_seasonal([select_rows(co2, slice(first))], 365.25, HORIZONS)
    last_errors, seasonal_errors = [], []
    for horizon in HORIZONS:
        origins, targets = horizon_pairs(co2.ticks[first:], co2.ticks, horizon)
        origins = origins + first
        last_errors.append(mean_absolute_error(last_value(co2, origins), co2, targets)[0])
        made = seasonal.forecast(co2, origins, co2.ticks[targets])
        seasonal_errors.append(mean_absolute_error(made, co2, targets)[0])
    np.testing.assert_allclose(last_errors, [0.405, 1.109, 2.946, 3.779], atol=6e-4)
    np.testing.assert_allclose(seasonal_errors, [0.40, 0.47, 0.53, 0.69], atol=0.02)
    assert np.all(np.array(seasonal_errors) <= [0.465, 0.494, 0.581, 0.729])


def test_ridge_on_weekly_co2_reaches_its_published_figures(co2: Series) -> None:
    x = np.where(co2.mask[:, 0] != 0, co2.x[:, 0], np.nan)
    first, errors = int(0.8 * len(x)), []
    for horizon in (1, 26):
        ridge = fit_ridge(x, RidgeDesign(period=365.25 / 7, lags=156), horizon, first)
        origins = np.arange(first, len(x) - horizon)
        errors.append(float(np.abs(ridge.forecast(x, origins) - x[origins + horizon]).mean()))
    np.testing.assert_allclose(errors, [0.283, 0.501], atol=0.01)
