"""Forecasts of a record made walking forward through its last part, by an exported bundle and by its rivals.

An origin is an observed row at or after the first test time; a forecast made there knows all rows up to it. It is
scored where the full record has a value exactly one horizon later, whether or not the forecaster was shown that row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from odestream.models.ridge import Ridge, RidgeDesign, fit_ridge
from odestream.models.rivals import (
    fit_seasonal,
    horizon_pairs,
    last_value,
    mean_absolute_error,
    select_rows,
)
from odestream.runtime import Model
from odestream.runtime.contract.manifest import TaskSpec
from odestream.runtime.table import Series, Table, read_table

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Forecaster = Callable[[Series, Rows, Rows], Floats]
"""(what it is shown, rows at which it forecasts [Q], ticks for which it does [Q]) -> forecasts [Q, X]."""

DATA = Path(__file__).parent / "data" / "co2_weekly.csv"
TASK = TaskSpec("forecast", inputs=("co2_ppm",), targets=("co2_ppm",), time="time")
PERIOD_DAYS = 365.25
HORIZON_WEEKS = (1, 4, 13, 26)
TEST_FRACTION = 0.2
RIDGE_YEARS = (1, 2, 3)  # of weekly lags; each horizon takes what is best on its validation rows


@dataclass(frozen=True)
class Record:
    """The weekly CO2 record. series: its rows, one a week. week: ticks. first: the first test row."""

    series: Series
    week: int
    first: int

    @property
    def first_tick(self) -> int:
        """Time of the first test row, 3 April 1993."""
        return int(self.series.ticks[self.first])

    @property
    def horizons(self) -> tuple[int, ...]:
        """The horizons in ticks."""
        return tuple(weeks * self.week for weeks in HORIZON_WEEKS)


def load_record() -> Record:
    """Read the shipped record; its test part begins where the trainer's does."""
    table: Table = read_table(DATA, TASK)
    (series,) = table.series
    return Record(series, int(np.diff(series.ticks).min()), int((1 - TEST_FRACTION) * len(series.ticks)))


def thin(record: Record, share: float, seed: int) -> Series:
    """The record without a random `share` of its test rows; everything before them stays."""
    kept = np.random.default_rng(seed).random(len(record.series.ticks)) >= share
    kept[: record.first] = True
    return select_rows(record.series, kept)


def score(forecasters: Mapping[str, Forecaster], record: Record, shown: Series) -> dict[str, list[float]]:
    """Mean absolute error of each forecaster at each of the record's horizons; all at the same origins."""
    observed = shown.mask[:, 0] > 0
    errors: dict[str, list[float]] = {name: [] for name in forecasters}
    for horizon in record.horizons:
        origins, targets = horizon_pairs(shown.ticks, record.series.ticks, horizon)
        counted = observed[origins] & (shown.ticks[origins] >= record.first_tick)
        origins, targets = origins[counted], targets[counted]
        for name, forecast in forecasters.items():
            made = forecast(shown, origins, record.series.ticks[targets])
            errors[name].append(float(mean_absolute_error(made, record.series, targets)[0]))
    return errors


def bundle_forecaster(model: Model) -> Forecaster:
    """The bundle streaming through the rows, asked at each origin."""

    def forecast(shown: Series, origins: Rows, target_ticks: Rows) -> Floats:
        return stream_forecasts(model, shown, origins, target_ticks)[0][:, None]

    return forecast


def stream_forecasts(model: Model, shown: Series, origins: Rows, target_ticks: Rows) -> tuple[Floats, Floats]:
    """Means and standard deviations [Q] of one channel; origins are in increasing order, and may repeat."""
    stream = model.stream()
    answers = []
    row = 0
    for origin, target in zip(origins, target_ticks, strict=True):
        while row <= origin:
            stream.step(shown.x[row], t=int(shown.ticks[row]), mask=shown.mask[row])
            row += 1
        answers.append(stream.predict(int(target)).y)
    y = np.array(answers, np.float64).reshape(-1, 2)
    return y[:, 0], np.exp(0.5 * y[:, 1])


def rivals(record: Record) -> dict[str, Forecaster]:
    """Last value, seasonal naive with smoothed drift, and ridge regression; all fitted before the first test row."""
    training = select_rows(record.series, slice(record.first))
    period = PERIOD_DAYS / 7 * record.week
    return {
        "last value": lambda shown, origins, _: last_value(shown, origins),
        "seasonal naive": fit_seasonal([training], period, record.horizons).forecast,
        "ridge regression": _ridge_forecaster(record),
    }


def _ridge_forecaster(record: Record) -> Forecaster:
    grid = record.series.ticks
    fits = {weeks * record.week: _fit_ridge(record, weeks) for weeks in HORIZON_WEEKS}

    def forecast(shown: Series, origins: Rows, target_ticks: Rows) -> Floats:
        (horizon,) = set((target_ticks - shown.ticks[origins]).tolist())
        return fits[horizon].forecast(_on_grid(shown, grid), np.searchsorted(grid, shown.ticks[origins]))[:, None]

    return forecast


def _fit_ridge(record: Record, weeks: int) -> Ridge:
    x = _on_grid(record.series, record.series.ticks)
    year = PERIOD_DAYS / 7
    fits = [fit_ridge(x, RidgeDesign(year, round(years * year)), weeks, record.first) for years in RIDGE_YEARS]
    return min(fits, key=lambda fit: fit.validation_error)


def _on_grid(shown: Series, grid: Rows) -> Floats:
    """One channel's values on the weekly grid, NaN where it was not shown."""
    x = np.full(len(grid), np.nan)
    x[np.searchsorted(grid, shown.ticks)] = np.where(shown.mask[:, 0] > 0, shown.x[:, 0], np.nan)
    return x


def figures(values: Sequence[float]) -> list[str]:
    """Errors as text, in ppm."""
    return [f"{value:.3f}" for value in values]
