"""What a trainer makes of a table: splits, clock, scales and calls."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.data import centre_and_scale, load_table, load_text, number_columns, phases
from odestream.models.forecasting import nearest_rows
from odestream.models.sequences import calls_of, calls_of_bytes, longest_call, running_statistics, stack, stiffest
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import TaskSpec, TimeSpec
from odestream.runtime.errors import InputError
from odestream.runtime.table import Series
from tests.helpers.problems import tiny_config
from tests.helpers.tables import classes_csv, seasonal_csv

FORECAST = TaskSpec("forecast", ("level", "other"), ("level",), (), "time")
CLASSES = TaskSpec("classify", ("value",), ("kind",), (), "time", "stream")


def series_of(times: list[int], channels: int = 1) -> Series:
    count = len(times)
    x = np.arange(count * channels, dtype=np.float32).reshape(count, channels)
    return Series("", np.array(times, np.int64), x, np.ones_like(x), np.full(count, -1))


def test_a_forecast_is_split_by_time_and_nothing_is_taken_from_validation_or_test(tmp_path: Path) -> None:
    path = seasonal_csv(tmp_path / "a.csv")
    whole = load_table(path, FORECAST, Settings(period=20.0))
    part = whole.parts[0]
    count = len(part.series.ticks)
    assert part.test == int(0.8 * count)
    assert part.validation == int(0.8 * part.test)
    lines = path.read_text().splitlines()
    spoilt = [line if i <= part.validation else f"{line.split(',')[0]},9999,9999" for i, line in enumerate(lines)]
    (tmp_path / "b.csv").write_text("\n".join(spoilt) + "\n")
    other = load_table(tmp_path / "b.csv", FORECAST, Settings(period=20.0))
    assert centre_and_scale(other) == centre_and_scale(whole)
    assert other.time == whole.time


def test_the_clock_counts_ten_median_gaps_and_the_season_closes_after_a_period(tmp_path: Path) -> None:
    data = load_table(seasonal_csv(tmp_path / "a.csv"), FORECAST, Settings(period=20.0))
    per_second = data.time.ticks_per_column_unit
    assert data.time.ticks_per_model_unit == 10 * per_second
    ticks = np.array([data.time.origin, data.time.origin + 20 * per_second])
    first, after_a_period = phases(ticks, data.time)
    np.testing.assert_allclose(first, after_a_period, atol=1e-6)
    np.testing.assert_allclose(first, [0, 0, 0, 0, 1, 1, 1, 1])


def test_a_period_for_dates_is_in_days(tmp_path: Path) -> None:
    rows = [f"2020-{1 + d // 28:02d}-{1 + d % 28:02d},{math.sin(d)}" for d in range(300)]
    (tmp_path / "a.csv").write_text("day,v\n" + "\n".join(rows) + "\n")
    data = load_table(tmp_path / "a.csv", TaskSpec("forecast", ("v",), ("v",), (), "day"), Settings(period=7.0))
    units_per_week = 7 * 86_400 * data.time.ticks_per_column_unit / data.time.ticks_per_model_unit
    assert data.time.frequencies[0] * units_per_week == pytest.approx(2 * math.pi)


def test_phases_equal_those_of_the_host_clock() -> None:
    time = TimeSpec(ticks_per_model_unit=7e9, origin=-123, frequencies=(0.3, 1.7))
    ticks = np.array([0, 5, 10**15, -(10**12)])
    np.testing.assert_allclose(phases(ticks, time), [Clock(time).phase(int(t)) for t in ticks], atol=1e-7)


def test_phases_of_a_record_of_three_centuries_equal_those_of_the_host_clock(tmp_path: Path) -> None:
    rows = [f"{year}-07-01,{math.sin(2 * math.pi * year / 11)}" for year in range(1700, 2025)]
    (tmp_path / "a.csv").write_text("year,spots\n" + "\n".join(rows) + "\n")
    task = TaskSpec("forecast", ("spots",), ("spots",), (), "year")
    data = load_table(tmp_path / "a.csv", task, Settings(period=11 * 365.25))
    ticks = data.parts[0].series.ticks
    expected = [Clock(data.time).phase(int(tick)) for tick in ticks]
    np.testing.assert_allclose(phases(ticks, data.time), expected, atol=1e-7)


def test_phases_of_ticks_more_than_64_bits_from_the_origin_equal_those_of_the_host_clock() -> None:
    for origin in (-(1 << 63), 0, (1 << 63) - 1):
        time = TimeSpec(ticks_per_model_unit=1e18, origin=origin, frequencies=(0.3, 1.7))
        ticks = np.array([-(1 << 63), -1, 0, 1, (1 << 63) - 1])
        np.testing.assert_allclose(phases(ticks, time), [Clock(time).phase(int(t)) for t in ticks], atol=1e-7)


def test_streams_of_one_class_each_are_split_whole_and_every_class_is_in_every_part(tmp_path: Path) -> None:
    data = load_table(classes_csv(tmp_path / "a.csv", streams=30), CLASSES, Settings(test_fraction=0.2))
    groups: dict[str, list[int]] = {"fit": [], "validation": [], "test": []}
    for part in data.parts:
        count = len(part.series.ticks)
        kind = {(count, count): "fit", (0, count): "validation", (0, 0): "test"}[(part.validation, part.test)]
        groups[kind].append(int(part.series.labels[0]))
    assert {kind: sorted(set(labels)) for kind, labels in groups.items()} == {kind: [0, 1, 2] for kind in groups}
    assert len(groups["test"]) == 6
    again = load_table(tmp_path / "a.csv", CLASSES, Settings(test_fraction=0.2))
    assert [p.test for p in again.parts] == [p.test for p in data.parts]
    other = load_table(tmp_path / "a.csv", CLASSES, Settings(test_fraction=0.2, seed=1))
    assert [p.test for p in other.parts] != [p.test for p in data.parts]


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="left to train on"):
        load_table(seasonal_csv(tmp_path / "a.csv", rows=12), FORECAST, Settings())


def test_number_columns_are_those_whose_first_filled_cell_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t,a,b,c,d\n1,,x,3,\n2,5,1,oops,\n")
    assert number_columns(tmp_path / "a.csv", {"t"}) == ("a", "c")
    with pytest.raises(InputError, match="no column of numbers"):
        number_columns(tmp_path / "a.csv", {"t", "a", "c"})


def test_a_text_is_split_by_position(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    text = load_text(tmp_path / "a.txt", Settings())
    assert text.training + text.validation + text.test == bytes(range(256))
    assert len(text.test) == 256 - int(0.8 * 256)
    (tmp_path / "b.txt").write_bytes(b"short")
    with pytest.raises(InputError, match="longer text"):
        load_text(tmp_path / "b.txt", Settings())


@given(
    gaps=st.lists(st.integers(1, 10_000), min_size=1, max_size=20),
    longest=st.floats(0.5, 5.0),
)
def test_no_call_is_longer_than_allowed_and_every_row_arrives_at_its_time(gaps: list[int], longest: float) -> None:
    time = TimeSpec(ticks_per_model_unit=1000.0, frequencies=(1.0,))
    series = series_of([0, *np.cumsum(gaps).tolist()])
    calls = calls_of(series, np.arange(len(series.ticks)), time, longest)
    dt = np.asarray(calls.inputs["dt"])[:, 0]
    brought = calls.rows >= 0
    assert dt[0] == 0
    assert float(dt.max()) <= longest * (1 + 1e-6) + 1 / 1000  # a tick of rounding
    np.testing.assert_array_equal(calls.ticks[brought], series.ticks)
    np.testing.assert_array_equal(np.asarray(calls.inputs["x"])[brought], series.x)
    assert not np.asarray(calls.inputs["mask"])[~brought].any()
    if max(gaps) <= 64 * longest * 1000:
        np.testing.assert_allclose(dt.sum() * 1000, series.ticks[-1], rtol=1e-5)


def test_longest_call_is_stable_for_the_stiffest_field_that_training_can_reach() -> None:
    config = tiny_config()
    cell = Cell(config)
    with torch.no_grad():
        cell.field.log_decay.fill_(50.0)
        cell.field.hidden.mul_(100.0)
        cell.field.output.normal_(std=100.0)
    cell.field.constrain()
    assert cell.field.stiffness() == pytest.approx(stiffest(config), rel=1e-4)
    assert longest_call(config, 4) == pytest.approx(4 * 2.512745 / stiffest(config))


def test_running_statistics_equal_those_that_steps_carry() -> None:
    config = tiny_config()
    cell = Cell(config)
    random = np.random.default_rng(0)
    series = series_of(np.cumsum(random.integers(1, 900, 12)).tolist(), channels=2)
    calls = calls_of(series, np.arange(12), TimeSpec(ticks_per_model_unit=1000.0, frequencies=(0.7, 1.9)), 0.5)
    norms, inputs, state = running_statistics(cell, [calls])[0], stack([calls]), cell.initial_state(1)
    assert len(calls) > 12
    for t in range(len(calls)):
        torch.testing.assert_close(norms[t : t + 1], state["norm"])
        _, state = cell.step({name: value[t] for name, value in inputs.items()}, state)


def test_bytes_are_labelled_with_the_next_byte() -> None:
    calls = calls_of_bytes(b"abc")
    assert calls.labels.tolist() == [98, 99, -1]
    assert np.asarray(calls.inputs["dt"])[:, 0].tolist() == [0, 1, 1]


def test_nearest_rows_are_those_of_a_search_through_all() -> None:
    random = np.random.default_rng(1)
    series = series_of(np.unique(random.integers(0, 1000, 40)).tolist())
    wanted = random.uniform(-50, 1050, 200)
    rows, found = nearest_rows(series, wanted, 10.0)
    distance = np.abs(series.ticks[None, :] - wanted[:, None])
    np.testing.assert_allclose(np.abs(series.ticks[rows] - wanted), distance.min(axis=1))
    np.testing.assert_array_equal(found, distance.min(axis=1) <= 10.0)
