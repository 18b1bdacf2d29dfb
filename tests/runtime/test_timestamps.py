"""Times as text: exact against integer arithmetic and the standard library's own calendar."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.errors import InputError, TimeError
from odestream.runtime.timestamps import MAX_TICKS, NANOSECONDS, UNITS, format_time, parse_time, step_spec, time_spec

ISO_NS = TimeSpec(kind="iso")
ISO_US = TimeSpec("iso", "s", 10**6, 1e-6, 1e6)
SECONDS = TimeSpec()


@given(st.integers(-MAX_TICKS, MAX_TICKS), st.sampled_from(UNITS))
def test_number_survives_formatting_and_parsing(ticks: int, unit: str) -> None:
    spec = step_spec() if unit == "step" else TimeSpec("number", unit, NANOSECONDS[unit], 1e-9)
    assert parse_time(format_time(ticks, spec), spec) == ticks


@given(st.integers(-MAX_TICKS, MAX_TICKS))
def test_date_survives_formatting_and_parsing(ticks: int) -> None:
    assert parse_time(format_time(ticks, ISO_NS), ISO_NS) == ticks


@given(st.integers(-(10**9), 10**9), st.integers(0, 10**9 - 1))
def test_number_of_nine_decimals_is_exact(whole: int, nanoseconds: int) -> None:
    exact = abs(whole) * 10**9 + nanoseconds
    text = f"{abs(whole)}.{nanoseconds:09d}"
    assert parse_time(text, SECONDS) == exact
    assert parse_time("-" + text, SECONDS) == -exact


@given(st.datetimes(), st.integers(-14 * 60 + 1, 14 * 60 - 1))
def test_datetime_with_zone_agrees_with_the_standard_library(moment: datetime, minutes: int) -> None:
    zoned = moment.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    since = moment - datetime(1970, 1, 1) - timedelta(minutes=minutes)
    assert parse_time(zoned.isoformat(), ISO_US) == since // timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01", 0),
        ("1970-01-02", 86_400),
        ("1969-12-31 23:59", -60),
        ("1970-01-01T00:00:01Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01T01:00:00+0100", 0),
        ("1970-01-01T01:00:00 +01", 0),
        ("1969-12-31T20:30:00-03:30", 0),
        ("1970-01-01T00:00:00.5", Fraction(1, 2)),
        ("1970-01-01T00:00:00,123456789z", Fraction(123_456_789, 10**9)),
        (" 2000-03-01 ", 951_868_800),
    ],
)
def test_iso_forms(text: str, seconds: Fraction) -> None:
    assert parse_time(text, ISO_NS) == seconds * 10**9


def test_halves_of_a_tick_round_to_even() -> None:
    assert [parse_time(f"{n}.5e-9", SECONDS) for n in range(4)] == [0, 2, 2, 4]
    assert [parse_time(f"1970-01-01T00:00:00.000000{n}5", ISO_US) for n in range(4)] == [0, 0, 0, 0]
    assert [parse_time(f"1970-01-01T00:00:00.000000{n}", ISO_US) for n in (5, 15)] == [0, 0]
    assert [parse_time(f"1970-01-01T00:00:00.00000{n}5", ISO_US) for n in range(4)] == [0, 2, 2, 4]


@pytest.mark.parametrize(
    "text", ["", "  ", "nan", "inf", "-Infinity", "1_000", "١", "1,5", "0x10", "1e", "noon", "1" * 301]
)
def test_number_refuses(text: str) -> None:
    with pytest.raises(TimeError, match=r"write it as digits|give every row a time"):
        parse_time(text, SECONDS)


@pytest.mark.parametrize("text", ["1e10", "-1e10", "9223372036.854775808", "1e999999999", "9" * 300])
def test_number_beyond_64_bits_is_refused(text: str) -> None:
    with pytest.raises(TimeError, match="64 bits of ticks of 1e-09 s; check"):
        parse_time(text, SECONDS)


def test_number_at_the_edge_of_64_bits_is_read() -> None:
    assert parse_time("9223372036.854775807", SECONDS) == MAX_TICKS
    assert parse_time("1e-999999999", SECONDS) == 0


@pytest.mark.parametrize(
    "text", ["", "20240531", "2024-5-31", "2024-02-30", "2024-01-01T24:01", "2024-01-01T00:00:00+99:00", "12.5"]
)
def test_date_refuses(text: str) -> None:
    with pytest.raises(TimeError, match=r"write it so|correct the date|give every row a time"):
        parse_time(text, ISO_NS)


def test_date_beyond_64_bits_is_refused() -> None:
    with pytest.raises(TimeError, match="64 bits"):
        parse_time("9999-12-31", ISO_NS)


@pytest.mark.parametrize(
    ("cells", "unit", "expected"),
    [
        (["", "2020-01-01", "2240-12-31"], "s", ("iso", "s", 10**9, 1e-9)),
        (["2020-01-01", "2241-01-01"], "s", ("iso", "s", 10**6, 1e-6)),
        (["1699-12-31", ""], "day", ("iso", "s", 10**6, 1e-6)),
        (["1700-01-01", "2010-01-01"], "s", ("iso", "s", 10**6, 1e-6)),
        (["-200", "200"], "year", ("number", "year", 31_557_600 * 10**6, 1e-6)),
        (["0", "-1.5"], "s", ("number", "s", 10**9, 1e-9)),
        (["1700", "1960.5"], "year", ("number", "year", 31_557_600 * 10**6, 1e-6)),
        (["-289"], "year", ("number", "year", 31_557_600 * 10**9, 1e-9)),
        (["4.5e9"], "year", ("number", "year", 31_557_600, 1.0)),
        (["7"], "ns", ("number", "ns", 1, 1e-9)),
        (["7"], "step", ("number", "step", 10**6, None)),
    ],
)
def test_clock_is_chosen_from_the_column(cells: list[str], unit: str, expected: tuple[object, ...]) -> None:
    spec = time_spec(cells, unit)
    assert (spec.kind, spec.unit, spec.ticks_per_column_unit, spec.tick_seconds) == expected
    ticks = [parse_time(text, spec) for text in cells if text]
    assert max(ticks) - min(ticks) <= MAX_TICKS


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.sampled_from([u for u in UNITS if u not in ("ns", "us", "step")]))
def test_chosen_clock_keeps_a_thousandth_of_the_unit(values: list[float], unit: str) -> None:
    spec = time_spec([repr(v) for v in values], unit)
    for value in values:
        read = Fraction(parse_time(repr(value), spec), spec.ticks_per_column_unit)
        assert abs(read - Fraction(repr(value))) <= Fraction(1, 1000)


@pytest.mark.parametrize("cells", [[], ["", " "], ["noon"], ["1", "noon"], ["2020-01-01", "1"], ["1e30"], ["nan"]])
def test_no_clock_from_a_bad_column(cells: list[str]) -> None:
    with pytest.raises(TimeError):
        time_spec(cells, "s")


def test_unknown_unit_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="'month'; choose one of ns, us, ms, s, min, h, day, week, year, step"):
        time_spec(["1"], "month")


def test_a_time_that_is_no_text_is_refused_in_words() -> None:
    with pytest.raises(InputError, match=r"^a time is 2002.0 \(float\), expected text; give it as a table writes it$"):
        parse_time(2002.0, step_spec())  # type: ignore[arg-type]
