"""One stream: a conversation with a model, one observation after another.

A step is: check the input, cross the gap by the bucket rule (choose, run, check that everything is finite, then
accept, re-run, split or flag), swap the state. Whatever fails on the way leaves state, clock and counters as they
were. (A signal's exception between the last few lines of an accepted step may leave its counters uncounted.)
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Arena, Layout
from odestream.runtime.clock import Clock
from odestream.runtime.contract.rule import Accepted
from odestream.runtime.errors import InputError, OdestreamError, SessionBusy, TimeError
from odestream.runtime.gaps import bucket_rule
from odestream.runtime.intake import Intake, matching, rows
from odestream.runtime.solving import Crossing, GapSolver

if TYPE_CHECKING:
    from odestream.runtime.model import Model

UNNAMED = ""
"""The name of a stream that is alone: in a snapshot of it, and in a table without a stream column."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What a call gave; the arrays are the caller's own.

    y: `[Y]` float32 (forecast: X means, then X log-variances, in raw units; classify and tokens: logits).
    err: estimated solver error in units of its tolerance, the largest of the pieces: the graph's estimate times the
    bundle's calibrated ratio for its bucket; None where the method has no estimate.
    gates: `[G]`, named by the manifest's gate_names; None where the model gives none.
    bucket: solver steps of the (last) accepted call, None without a solver. flagged: whether err is above the
    bundle's safety factor although everything was tried. calls: calls the gap was cut into. reruns: calls that were
    run and rejected on the way.
    """

    y: NDArray[np.float32]
    err: float | None
    gates: NDArray[np.float32] | None
    bucket: int | None
    flagged: bool
    calls: int
    reruns: int


@dataclass(slots=True)
class Counters:
    """What a stream has done; predictions are not counted.

    steps: observations accepted. flagged: those whose err was above the safety factor. split: those whose gap needed
    several calls. rerun: those of which a call was rejected. buckets: graph label → accepted calls, rejected: label →
    rejected ones.
    """

    steps: int = 0
    flagged: int = 0
    split: int = 0
    rerun: int = 0
    buckets: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Counters:
        """An independent copy."""
        return replace(self, buckets=dict(self.buckets), rejected=dict(self.rejected))


@dataclass(frozen=True)
class StreamState:
    """All that a stream is: its arena (one row), the tick of its last call (None before the first), its counters, and
    what is known of its calls over gaps, from which the next bucket is chosen."""

    arena: Arena
    tick: int | None
    counters: Counters
    previous: Accepted | None = None


class Stream:
    """One conversation with a model; made by `Model.stream` and `Model.restore`.

    Times are integer ticks (see the manifest's `time`). A stream is not for two threads at once: the second gets
    SessionBusy. Methods raise InputError for unusable values, TimeError for times that do not advance or lie too
    far ahead, StateError where a result is not finite; after any of them the stream is as it was.
    """

    def __init__(self, model: Model, state: StreamState | None = None, buckets: Sequence[int] | None = None) -> None:
        manifest = model.manifest
        self.model = model
        self._lock = threading.Lock()
        self._closed = False
        self._clock = Clock(manifest.time)
        rule = bucket_rule(manifest, self._clock, buckets)
        self._binding = model.bind()
        self._solver = GapSolver(manifest, self._clock, self._binding, rule)
        self._intake = Intake(manifest, self._binding)
        self._timed = "dt" in self._binding.inputs
        self._reader = _OutputReader(model)
        self._last: int | None = None
        self._previous: Accepted | None = None
        self._counters = Counters(buckets=dict.fromkeys(manifest.graphs, 0), rejected=dict.fromkeys(manifest.graphs, 0))
        if state is not None:
            self._load(state)

    @property
    def last_tick(self) -> int | None:
        """Tick of the last accepted call, None before the first."""
        return self._last

    @property
    def counters(self) -> Counters:
        """A copy of the stream's counters."""
        return self._counters.copy()

    def step(self, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """Take one observation and return what the model says at its time.

        x: `[X]`, raw (one token for a token model). t: its time in ticks, after the last one; may be left out for
        tokens and for models without dt (then one model time unit later). mask: `[X]` of 0 and 1, None when all
        channels were observed; x may hold anything where it is 0.
        """
        self._enter()
        try:
            return self._observe(x, t, mask)
        finally:
            self._lock.release()

    def steps(self, x: ArrayLike, t: ArrayLike | None = None, mask: ArrayLike | None = None) -> list[Output]:
        """Take T observations: `x [T, X]`, `t [T]`, `mask [T, X]`; the same results, bit for bit, as one by one.

        All or nothing: an error names the row, counted from 0, and leaves the stream as it was before the call.
        """
        given = rows("x", x)
        times = [None] * len(given) if t is None else matching("t", t, len(given))
        masks = [None] * len(given) if mask is None else matching("mask", mask, len(given))
        self._enter()
        try:
            before = self._save()
            outputs: list[Output] = []
            try:
                for row, time, seen in zip(given, times, masks, strict=True):
                    outputs.append(self._observe(row, time, seen))
            except BaseException as error:
                self._load(before)
                if isinstance(error, OdestreamError):
                    raise type(error)(f"row {len(outputs)}: {error}") from error
                raise
            return outputs
        finally:
            self._lock.release()

    @overload
    def predict(self, t: int) -> Output: ...
    @overload
    def predict(self, t: Sequence[int] | NDArray[np.integer]) -> list[Output]: ...
    def predict(self, t: int | Sequence[int] | NDArray[np.integer]) -> Output | list[Output]:
        """What the model expects at time `t`, or at each of several times in any order; the stream is unchanged.

        `t` may equal the last time, and may be any before the first observation. InputError where the model takes
        no mask: it cannot let time pass without an observation.
        """
        self._enter()
        try:
            if isinstance(t, Sequence) or (isinstance(t, np.ndarray) and t.ndim):
                return [self._foresee(time) for time in rows("t", t)]
            return self._foresee(t)
        finally:
            self._lock.release()

    def snapshot(self) -> bytes:
        """The stream as bytes that `Model.restore` resumes bit for bit, in another process or on another machine."""
        return self.model.snapshot_streams({UNNAMED: self})

    def state(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the state: member name → array of its shape."""
        layout = Layout(self.model.manifest.spec.state, 1)
        return {name: view[0].copy() for name, view in layout.views(self.save().arena).items()}

    def save(self) -> StreamState:
        """A copy of everything that the stream is."""
        self._enter()
        try:
            return self._save()
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the stream; every later call raises SessionBusy."""
        self._closed = True

    def _enter(self) -> None:
        """Take the stream for one call; whoever calls this releases the lock."""
        if not self._lock.acquire(blocking=False):
            raise SessionBusy("the stream is in use by another thread; give each thread a stream of its own")
        if self._closed or self.model.closed:
            self._lock.release()
            raise SessionBusy("the stream or its model is closed; make a new one from an open model")

    def _observe(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Output:
        crossing = self._arrive(x, t, mask)
        if not self._solver.try_once(crossing):
            self._cross_to_observation(crossing, x, mask)
        return self._accept(crossing)

    def _arrive(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Crossing:
        """Check an observation and write it into the inputs; the gap over which the flow runs."""
        now = self._next_tick() if t is None else self._clock.tick(t)
        last = self._last
        if last is None:
            last = now
            self._solver.set_phase(now)
        elif now <= last:
            raise TimeError(
                f"t = {now} does not advance past the stream's last time {last} ({self._clock.describe()}); "
                "send each time once and in order"
            )
        self._intake.observe(x, mask)
        return Crossing(self._previous, last, now)

    def _accept(self, crossing: Crossing) -> Output:
        """Take over what the binding holds for the end of the gap."""
        output = self._reader.read(self._binding.flat_outputs, crossing)
        self._binding.swap()
        self._last = crossing.now
        self._previous = crossing.previous
        self._solver.set_phase(crossing.now)
        counters, labels = self._counters, self._solver.labels
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

    def _cross_to_observation(self, crossing: Crossing, x: ArrayLike, mask: ArrayLike | None) -> None:
        """Cross in several calls what one cannot; the observation was checked when it arrived."""
        before = self._binding.arena.copy()
        try:
            self._solver.cross(crossing, self._intake.nothing, lambda: self._intake.observe(x, mask))
        except BaseException:
            self._rewind(before)
            raise

    def _foresee(self, t: object) -> Output:
        now = self._clock.tick(t)
        last = now if self._last is None else self._last
        if now < last:
            raise TimeError(f"t = {now} lies before the stream's last time {last}; predict that time or a later one")
        self._intake.nothing()
        if self._last is None:
            self._solver.set_phase(now)
        crossing = Crossing(self._previous, last, now)
        if self._solver.try_once(crossing):
            return self._reader.read(self._binding.flat_outputs, crossing)
        before = self._binding.arena.copy()
        try:
            self._solver.cross(crossing, self._intake.nothing, self._intake.nothing)
            return self._reader.read(self._binding.flat_outputs, crossing)
        finally:
            self._rewind(before)

    def _rewind(self, arena: Arena) -> None:
        """Back to an earlier state, whose time is still the stream's last."""
        self._binding.arena[...] = arena
        if self._last is not None:
            self._solver.set_phase(self._last)

    def _next_tick(self) -> int:
        """The time of an observation given without one: one model unit after the last."""
        if self._timed and not self._intake.takes_tokens:
            raise InputError(f"t is missing; give the observation's time as an integer, in {self._clock.describe()}")
        if self._last is None:
            return self._clock.time.origin
        return self._last + max(1, round(self._clock.time.ticks_per_model_unit))

    def _save(self) -> StreamState:
        return StreamState(self._binding.arena.copy(), self._last, self._counters.copy(), self._previous)

    def _load(self, state: StreamState) -> None:
        self._last = state.tick
        self._previous = state.previous
        self._counters = state.counters.copy()
        self._rewind(state.arena)


class _OutputReader:
    """Takes an Output out of the flat outputs of one stream; places are looked up once."""

    def __init__(self, model: Model) -> None:
        manifest = model.manifest
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
