from decimal import Decimal, getcontext
from itertools import pairwise

import numpy as np
import pytest

from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.errors import InputError, TimeError

NANOSECONDS = TimeSpec(ticks_per_model_unit=1e8, frequencies=(2.0, 0.25))
DAY = 86_400 * 10**9


@pytest.mark.parametrize("days", [0, 1, 7, 30, 365])
def test_dt_and_phase_do_not_depend_on_the_day_a_stream_starts(days: int) -> None:
    """The same gaps from origins a year apart: not one byte differs."""
    here = Clock(NANOSECONDS)
    there = Clock(TimeSpec(ticks_per_model_unit=1e8, frequencies=(2.0, 0.25), origin=days * DAY))
    ticks = np.cumsum(np.random.default_rng(0).integers(1, 10**7, 200)).tolist()
    for before, after in pairwise(ticks):
        start = days * DAY
        assert there.units((start + after) - (start + before)) == here.units(after - before)
        assert there.phase(start + after).tobytes() == here.phase(after).tobytes()


def test_a_10_ms_gap_keeps_its_digits_after_100_years() -> None:
    clock = Clock(NANOSECONDS)
    start = 100 * 365 * DAY
    assert np.float32(clock.units((start + 10_000_000) - start)) == np.float32(0.1)


def test_phase_is_all_sines_then_all_cosines() -> None:
    phase = Clock(NANOSECONDS).phase(3 * 10**8)
    assert phase.dtype == np.float32
    np.testing.assert_allclose(phase, [np.sin(6), np.sin(0.75), np.cos(6), np.cos(0.75)], atol=1e-7)


def test_phase_after_a_year_agrees_with_decimal_arithmetic() -> None:
    """2.0 rad per 0.1 s for a year is 6e8 rad; reduced with 50 digits, then compared."""
    getcontext().prec = 50
    pi = Decimal("3.14159265358979323846264338327950288419716939937510")
    tick = 365 * DAY + 123_456_789
    angle = float((Decimal(2) * Decimal(tick) / Decimal(10**8)) % (2 * pi))
    phase = Clock(NANOSECONDS).phase(tick)
    np.testing.assert_allclose(phase[[0, 2]], [np.sin(angle), np.cos(angle)], atol=2e-7)


@pytest.mark.parametrize("value", [5, np.int64(5), np.int32(5), np.uint64(5)])
def test_integers_of_any_kind_are_ticks(value: int) -> None:
    assert Clock(NANOSECONDS).tick(value) == 5
    assert type(Clock(NANOSECONDS).tick(value)) is int


@pytest.mark.parametrize("value", [True, 5.0, np.float64(5), "5", None, np.bool_(1), np.datetime64(5, "s"), [5]])
def test_what_is_no_integer_is_refused_with_the_tick_s_length(value: object) -> None:
    with pytest.raises(InputError, match=r"expected an integer; give it in ticks of 1e-09 s$"):
        Clock(NANOSECONDS).tick(value)


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1, 10**30])
def test_ticks_beyond_64_bits_are_refused(value: int) -> None:
    with pytest.raises(TimeError, match="does not fit 64 bits"):
        Clock(NANOSECONDS).tick(value)


def test_abstract_ticks_are_described_by_their_unit() -> None:
    assert Clock(TimeSpec(unit="step", ticks_per_column_unit=4, tick_seconds=None)).describe() == "ticks of 1/4 step"
