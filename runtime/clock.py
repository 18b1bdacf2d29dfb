"""From integer ticks to what a graph sees of time: `dt` and `phase`.

Differences are taken between integers and only then become model units, so that a stream may run for years: a
float32 of absolute seconds loses most 100 Hz gaps within a week. Phases are computed in float64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from odestream.runtime.contract.manifest import TimeSpec
from odestream.runtime.errors import InputError, TimeError

_INT64 = 1 << 63


class Clock:
    """Converts one model's ticks; `time` is the manifest's TimeSpec."""

    def __init__(self, time: TimeSpec) -> None:
        self.time = time
        self._frequencies = np.asarray(time.frequencies, np.float64)
        self._angles = np.zeros_like(self._frequencies)

    def units(self, gap: int) -> float:
        """A gap in ticks as model time units."""
        return gap / self.time.ticks_per_model_unit

    def phase_into(self, tick: int, row: NDArray[np.float32]) -> None:
        """Write `[sin(ω·τ)…, cos(ω·τ)…]` with τ = (tick − origin) in model units into `row`, shape `[2K]`."""
        count = len(self._angles)
        np.multiply(self._frequencies, self.units(tick - self.time.origin), self._angles)
        np.sin(self._angles, out=row[:count])
        np.cos(self._angles, out=row[count:])

    def phase(self, tick: int) -> NDArray[np.float32]:
        """The phase of `tick`, shape `[2K]`."""
        row = np.zeros(2 * len(self._angles), np.float32)
        self.phase_into(tick, row)
        return row

    def tick(self, value: object) -> int:
        """`value` as a tick; InputError unless it is an integer, TimeError if it is not finite or fits no 64 bits."""
        if type(value) is not int:
            value = self._integer(value)
        if not -_INT64 <= value < _INT64:
            raise TimeError(
                f"t = {value} does not fit 64 bits; count {self.describe()} from an origin nearer to the data"
            )
        return value

    def describe(self) -> str:
        """The tick's length in words."""
        time = self.time
        if time.tick_seconds is None:
            return f"ticks of 1/{time.ticks_per_column_unit} {time.unit}"
        return f"ticks of {time.tick_seconds:g} s"

    def _integer(self, value: object) -> int:
        if isinstance(value, np.integer):
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return int(value)
        endless = isinstance(value, float | np.floating) and not math.isfinite(value)
        kind = TimeError if endless else InputError
        raise kind(f"t: received {value!r} ({type(value).__name__}), expected an integer; give it in {self.describe()}")
