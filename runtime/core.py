"""The step of one stream over an engine's binding: clock, guards, bucket rule, counters.

A step is: check the input, cross the gap by the bucket rule (choose, run, check that everything is finite, then
accept, re-run, split or flag), swap the state. Whatever fails on the way leaves state, clock and counters as they
were. (A signal's exception between the last few lines of an accepted step may leave its counters uncounted.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from odestream.runtime.arena import Arena, Layout
from odestream.runtime.backends import Binding
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import Accepted
from odestream.runtime.errors import InputError, StateError, TimeError
from odestream.runtime.gaps import bucket_rule
from odestream.runtime.guards import advance
from odestream.runtime.intake import Intake
from odestream.runtime.records import Counters, Output, StreamState
from odestream.runtime.solving import Crossing, GapSolver


class EngineCore:
    """State, clock and counters of one stream over any engine's binding of one row; not for two threads at once.

    binding: the stream's own buffers. solver: crosses its gaps. After any error the core is as it was.
    """

    def __init__(self, manifest: Manifest, binding: Binding, buckets: Sequence[int] | None = None) -> None:
        self.binding = binding
        self._clock = Clock(manifest.time)
        self.solver = GapSolver(manifest, self._clock, binding, bucket_rule(manifest, self._clock, buckets))
        self._intake = Intake(manifest, binding.inputs)
        self._untimed = self._intake.takes_tokens or "dt" not in binding.inputs
        self._reader = _OutputReader(manifest)
        self._size = Layout(manifest.spec.state, 1).size
        self._last: int | None = None
        self._previous: Accepted | None = None
        self._counters = Counters(buckets=dict.fromkeys(manifest.graphs, 0), rejected=dict.fromkeys(manifest.graphs, 0))

    @property
    def last(self) -> int | None:
        """Tick of the last accepted call, None before the first."""
        return self._last

    @property
    def counters(self) -> Counters:
        """A copy of the counters."""
        return self._counters.copy()

    def observe(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Output:
        """See `Stream.step`."""
        crossing = self.arrive(x, t, mask)
        if not self.solver.try_once(crossing):
            self.cross(crossing, x, mask)
        return self.accept(crossing)

    def foresee(self, t: object) -> Output:
        """See `Stream.predict`, for one time."""
        now = self._clock.tick(t)
        last = now if self._last is None else self._last
        if now < last:
            raise lies_before(now, last)
        self._intake.nothing()
        if self._last is None:
            self.solver.set_phase(now)
        crossing = Crossing(self._previous, last, now)
        if self.solver.try_once(crossing):
            return self._reader.read(self.binding.flat_outputs, crossing)
        before = self.binding.arena.copy()
        try:
            self.solver.cross(crossing, self._intake.nothing, self._intake.nothing)
            return self._reader.read(self.binding.flat_outputs, crossing)
        finally:
            self._rewind(before)

    def save(self) -> StreamState:
        """A copy of everything that the stream is."""
        return StreamState(self.binding.arena.copy(), self._last, self._counters.copy(), self._previous)

    def load(self, state: StreamState) -> None:
        """Become what was saved."""
        arena, last = checked(state, self._size, self._clock)
        self.binding.set_state(arena)
        self._last = last
        self._previous = state.previous
        self._counters = state.counters.copy()
        if last is not None:
            self.solver.set_phase(last)

    def arrive(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Crossing:
        """Check an observation and write it into the inputs; the gap over which the flow runs."""
        intake, last = self._intake, self._last
        if mask is None and last is not None and advance(x, intake.row, t, last):
            if not intake.mask_is_ones:
                intake.see_all()
            return Crossing(self._previous, last, t)  # type: ignore[arg-type]
        now = self._clock.tick(next_tick(self._clock, last, self._untimed) if t is None else t)
        if last is None:
            last = now
            self.solver.set_phase(now)
        elif now <= last:
            raise does_not_advance(self._clock, now, last)
        intake.observe(x, mask)
        return Crossing(self._previous, last, now)

    def accept(self, crossing: Crossing) -> Output:
        """Take over what the binding holds for the end of the gap."""
        output = self._reader.read(self.binding.flat_outputs, crossing)
        self.binding.swap()
        self._last = crossing.now
        self._previous = crossing.previous
        self.solver.set_phase(crossing.now)
        counters, labels = self._counters, self.solver.labels
        counters.steps += 1
        counters.flagged += crossing.flagged
        counters.split += len(crossing.accepted) > 1
        for steps in crossing.accepted:
            counters.buckets[labels[steps]] += 1
        if crossing.rejected:
            counters.rerun += 1
            for steps in crossing.rejected:
                counters.rejected[labels[steps]] += 1
        return output

    def cross(self, crossing: Crossing, x: ArrayLike, mask: ArrayLike | None) -> None:
        """Cross in several calls what one cannot; the observation was checked when it arrived."""
        before = self.binding.arena.copy()
        try:
            self.solver.cross(crossing, self._intake.nothing, lambda: self._intake.observe(x, mask))
        except BaseException:
            self._rewind(before)
            raise

    def _rewind(self, arena: Arena) -> None:
        """Back to an earlier state, whose time is still the stream's last."""
        self.binding.set_state(arena)
        if self._last is not None:
            self.solver.set_phase(self._last)


def next_tick(clock: Clock, last: int | None, untimed: bool) -> int:
    """The time of an observation given without one: one model unit after the last.

    untimed: whether observations may be given so; InputError where they may not. It may lie beyond 64 bits.
    """
    if not untimed:
        raise InputError(f"t is missing; give the observation's time as an integer, in {clock.describe()}")
    return clock.time.origin if last is None else last + max(1, round(clock.time.ticks_per_model_unit))


def checked(state: StreamState, size: int, clock: Clock) -> tuple[Arena, int | None]:
    """What a stream of `size` values may take over: the state's arena and tick.

    StateError for another number of values, TimeError for a tick beyond 64 bits.
    """
    arena = np.ascontiguousarray(state.arena, np.float32).reshape(-1)
    if arena.size != size:
        raise StateError(f"a state has {arena.size} values, expected {size}; load one of this model")
    return arena, None if state.tick is None else clock.tick(state.tick)


def does_not_advance(clock: Clock, now: int, last: int) -> TimeError:
    """The error of an observation at or before the last one."""
    return TimeError(
        f"t = {now} does not advance past the stream's last time {last} ({clock.describe()}); "
        "send each time once and in order"
    )


def lies_before(now: int, last: int | None) -> TimeError:
    """The error of a prediction for a time before the last observation."""
    return TimeError(f"t = {now} lies before the stream's last time {last}; predict that time or a later one")


class _OutputReader:
    """Takes an Output out of the flat outputs of one stream; places are looked up once."""

    def __init__(self, manifest: Manifest) -> None:
        layout = Layout(manifest.spec.outputs, 1)
        self._place = {
            tensor.name: slice(layout.offsets[tensor.name], layout.offsets[tensor.name] + tensor.size)
            for tensor in manifest.spec.outputs
        }
        self._y = self._place["y"]
        self._gates = self._place.get("gates")
        self._solves = manifest.solver is not None
        self._estimates = "err" in self._place and (manifest.solver is None or manifest.solver.error_estimate)

    def read(self, flat: Arena, crossing: Crossing) -> Output:
        """A copy of the last call's outputs, with what became of the gap."""
        flat = flat.copy()
        err = crossing.err if self._estimates else None
        gates = None if self._gates is None else flat[self._gates]
        bucket = crossing.accepted[-1] if self._solves else None
        calls, reruns = len(crossing.accepted), len(crossing.rejected)
        return Output(flat[self._y], err, gates, bucket, crossing.flagged, calls, reruns)
