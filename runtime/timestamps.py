"""Times as text to integer ticks and back, exactly.

A tick is the host's unit of time. Numbers are scaled in decimal arithmetic and dates in integers, so that a
time column keeps every digit it was written with: `0.1` seconds is 100,000,000 ticks of 1 ns, not 100,000,000.00000001.
Halves of a tick round to the even neighbour.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.errors import InputError, TimeError

NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "day": 86_400 * 10**9,
    "week": 604_800 * 10**9,
    "year": 31_557_600 * 10**9,  # the Julian year of 365.25 days
}
STEP = "step"
UNITS = (*NANOSECONDS, STEP)
TICKS_PER_STEP = 1_000_000  # an abstract step is divisible, so that a long gap can be split inside it
MAX_TICKS = 2**63 - 1


def parse_time(text: str, spec: TimeSpec) -> int:
    """Ticks of a time cell, by `spec`: a number of `spec.unit`, or an ISO date with optional time, fraction and zone.

    Dates without a zone are UTC; their ticks count from 1970-01-01T00:00 UTC. TimeError where the text is neither,
    is not finite, or does not fit into 64 bits; InputError where it is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"a time is {text!r} ({type(text).__name__}), expected text; give it as a table writes it")
    text = text.strip()
    if not text:
        raise TimeError("the time is empty; give every row a time")
    ticks = _iso_ticks(text, spec) if spec.kind == "iso" else _number_ticks(text, spec)
    if abs(ticks) > MAX_TICKS:
        raise TimeError(f"time {text!r} does not fit into 64 bits of {_tick_name(spec)}; check the time column's unit")
    return ticks


def format_time(ticks: int, spec: TimeSpec) -> str:
    """The time as its column would write it; `parse_time` gives the same ticks back. Dates are in UTC."""
    if spec.kind == "iso":
        return _format_iso(ticks, spec)
    return _shortest(ticks, spec)


def time_spec(texts: Iterable[str], unit: str = "s") -> TimeSpec:
    """How to count a time column: its kind from the first filled cell, its tick from the span of all cells.

    texts: the column's cells. unit: of a column of numbers, one of `UNITS`; dates need none. The tick is the finest
    of 1 ns, 1 µs, 1 ms and 1 s that leaves room in 64 bits, for every time and for the span between any two (1 ns
    holds 290 years between 1700 and 2240, or within ±290 years of a number); a `step` has no length in seconds.
    `ticks_per_model_unit` is one column unit (one second for dates), the origin 0, and there are no frequencies:
    whoever trains replaces them. InputError for an unknown unit, TimeError for a cell that is no time.
    """
    if unit not in UNITS:
        raise InputError(f"unknown time unit {unit!r}; choose one of {', '.join(UNITS)}")
    cells = (text.strip() for text in texts)
    first = next((text for text in cells if text), None)
    if first is None:
        raise TimeError("the time column is empty; give every row a time")
    if _NUMBER.fullmatch(first):
        return _number_spec(first, cells, unit)
    if _ISO.fullmatch(first):
        return _iso_spec(first, cells)
    raise TimeError(
        f"time {first!r} is neither a number nor a date such as 2024-05-31 or 2024-05-31T12:00:00Z; rewrite the column"
    )


def step_spec() -> TimeSpec:
    """The clock of a table without a time column: one abstract step a row."""
    return TimeSpec("number", STEP, TICKS_PER_STEP, None, float(TICKS_PER_STEP))


_EXACT = decimal.Context(prec=400, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, rounding=decimal.ROUND_HALF_EVEN)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,9})?", re.ASCII)
_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d+))?)?\s*(Z|z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII
)
_MAX_LENGTH = 300  # characters of a time cell; keeps the exact arithmetic exact
_EPOCH = datetime(1970, 1, 1)
_TICKS = ((1, 1e-9), (10**3, 1e-6), (10**6, 1e-3), (10**9, 1.0))  # length in ns and in s
_ROOM_NS = 290 * NANOSECONDS["year"]  # of the ±292.27 years that 64 bits of 1 ns hold


def _number_ticks(text: str, spec: TimeSpec) -> int:
    if len(text) > _MAX_LENGTH or not _NUMBER.fullmatch(text):
        raise TimeError(f"time {_clip(text)!r} is not a finite number of {spec.unit}; write it as digits")
    with decimal.localcontext(_EXACT):
        scaled = Decimal(text) * spec.ticks_per_column_unit
        if scaled.adjusted() > 20:  # int() of 1e999999999 would take all memory
            return MAX_TICKS + 1
        return int(scaled.to_integral_value())


def _iso_ticks(text: str, spec: TimeSpec) -> int:
    tick = Fraction(repr(spec.tick_seconds or 1.0))
    return round(_iso_seconds(text) / tick)


def _iso_seconds(text: str) -> Fraction:
    """Seconds since 1970-01-01T00:00 UTC, exact."""
    match = _ISO.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    if match is None:
        raise TimeError(f"time {_clip(text)!r} is not a date such as 2024-05-31 or 2024-05-31T12:00:00Z; write it so")
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        moment = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
        offset = _zone_seconds(zone)
    except ValueError as cause:
        raise TimeError(f"time {text!r} does not exist ({cause}); correct the date") from cause
    since = moment - _EPOCH
    whole = since.days * 86_400 + since.seconds - offset
    return whole + (Fraction(int(fraction), 10 ** len(fraction)) if fraction else Fraction(0))


def _zone_seconds(zone: str | None) -> int:
    if zone is None or zone in "Zz":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(f"no zone {zone}")
    return (-1 if zone[0] == "-" else 1) * (hours * 3600 + minutes * 60)


def _number_spec(first: str, rest: Iterable[str], unit: str) -> TimeSpec:
    if unit == STEP:
        return step_spec()
    with decimal.localcontext(_EXACT):
        numbers = [_decimal(text) for text in (first, *rest) if text]
        smallest, largest = min(numbers), max(numbers)
        reach = max(-smallest, largest, largest - smallest) * NANOSECONDS[unit]
    for tick, seconds in _TICKS:
        if tick <= NANOSECONDS[unit] and reach < tick * _ROOM_NS:
            per_unit = NANOSECONDS[unit] // tick
            return TimeSpec("number", unit, per_unit, seconds, float(per_unit))
    raise TimeError(
        f"the time column of {unit} reaches {reach:.3g} ns, beyond 64 bits; subtract an origin or check the unit"
    )


def _iso_spec(first: str, rest: Iterable[str]) -> TimeSpec:
    seconds = [_iso_seconds(text) for text in (first, *rest) if text]
    start, end = min(seconds), max(seconds)
    fits = start >= _NS_FROM and end < _NS_UNTIL and (end - start) * 10**9 < _ROOM_NS
    tick, length = _TICKS[0 if fits else 1]
    return TimeSpec("iso", "s", 10**9 // tick, length, float(10**9 // tick))


_NS_FROM = (date(1700, 1, 1) - _EPOCH.date()).days * 86_400
_NS_UNTIL = (date(2241, 1, 1) - _EPOCH.date()).days * 86_400


def _decimal(text: str) -> Decimal:
    if len(text) > _MAX_LENGTH or not _NUMBER.fullmatch(text):
        raise TimeError(f"time {_clip(text)!r} is not a finite number as the first one is; correct the cell")
    return Decimal(text)


def _shortest(ticks: int, spec: TimeSpec) -> str:
    """The fewest significant digits that read back as the same ticks; 45 always do."""
    text = ""
    for digits in range(1, 46):
        value = decimal.Context(prec=digits).divide(Decimal(ticks), Decimal(spec.ticks_per_column_unit))
        text = format(value, "f")
        if _number_ticks(text, spec) == ticks:
            break
    return text


def _format_iso(ticks: int, spec: TimeSpec) -> str:
    seconds, nanoseconds = divmod(round(ticks * Fraction(repr(spec.tick_seconds or 1.0)) * 10**9), 10**9)
    try:
        moment = _EPOCH + timedelta(days=seconds // 86_400, seconds=seconds % 86_400)
    except OverflowError:
        return f"{seconds} s since 1970"
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{moment.isoformat()}{fraction}Z"


def _tick_name(spec: TimeSpec) -> str:
    return "ticks" if spec.tick_seconds is None else f"ticks of {spec.tick_seconds:g} s"


def _clip(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
