"""One stream: a conversation with a model, one observation after another.

A step is: check the input, cut the gap where one call may not cross it, run, check that everything is finite,
swap the state. Whatever fails on the way leaves state, clock and counters as they were.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Arena, Layout, all_finite
from odestream.runtime.clock import Clock
from odestream.runtime.errors import InputError, OdestreamError, SessionBusy, StateError, TimeError
from odestream.runtime.gaps import GapRule
from odestream.runtime.intake import Intake

if TYPE_CHECKING:
    from odestream.runtime.model import Model

UNNAMED = ""
"""The name of a stream that is alone: in a snapshot of it, and in a table without a stream column."""

TOLERANCE = 1.0
"""An `err` above this, in units of the solver's tolerance, flags the step."""


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What a call gave; the arrays are the caller's own.

    y: `[Y]` float32 (forecast: X means, then X log-variances, in raw units; classify and tokens: logits).
    err: solver error in units of its tolerance, the largest of the pieces; None where the method has no estimate.
    gates: `[G]`, named by the manifest's gate_names; None where the model gives none.
    bucket: solver steps of a call, None without a solver. flagged: err above 1. calls: calls the gap was cut into.
    """

    y: NDArray[np.float32]
    err: float | None
    gates: NDArray[np.float32] | None
    bucket: int | None
    flagged: bool
    calls: int


@dataclass(slots=True)
class Counters:
    """What a stream has done.

    steps: observations accepted. flagged: those whose err was above tolerance. split: those whose gap needed
    several calls. buckets: graph label → calls, predictions not counted.
    """

    steps: int = 0
    flagged: int = 0
    split: int = 0
    buckets: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Counters:
        """An independent copy."""
        return replace(self, buckets=dict(self.buckets))


@dataclass(frozen=True)
class StreamState:
    """All that a stream is: its arena (one row), the tick of its last call (None before the first), its counters."""

    arena: Arena
    tick: int | None
    counters: Counters


class Stream:
    """One conversation with a model; made by `Model.stream` and `Model.restore`.

    Times are integer ticks (see the manifest's `time`). A stream is not for two threads at once: the second gets
    SessionBusy. Methods raise InputError for unusable values, TimeError for times that do not advance or lie too
    far ahead, StateError where a result is not finite; after any of them the stream is as it was.
    """

    def __init__(self, model: Model, state: StreamState | None = None) -> None:
        manifest = model.manifest
        self.model = model
        self._lock = threading.Lock()
        self._closed = False
        self._clock = Clock(manifest.time)
        self._label = manifest.default_graph
        self._bucket = manifest.solver.default_bucket if manifest.solver else None
        self._gaps = GapRule(manifest, self._clock, self._label)
        self._binding = model.bind()
        self._intake = Intake(manifest, self._binding)
        self._dt = self._binding.inputs["dt"][0] if "dt" in self._binding.inputs else None
        self._phase = self._binding.inputs["phase"][0] if "phase" in self._binding.inputs else None
        self._reader = _OutputReader(model)
        self._last: int | None = None
        self._counters = Counters(buckets=dict.fromkeys(manifest.graphs, 0))
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
        rows = _rows("x", x)
        times = [None] * len(rows) if t is None else _matching("t", t, len(rows))
        masks = [None] * len(rows) if mask is None else _matching("mask", mask, len(rows))
        self._enter()
        try:
            before = self._save()
            outputs: list[Output] = []
            try:
                for row, time, seen in zip(rows, times, masks, strict=True):
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
                return [self._foresee(time) for time in _rows("t", t)]
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
        now = self._next_tick() if t is None else self._clock.tick(t)
        last = self._last
        if last is None:
            last = now
            self._set_phase(now)
        elif now <= last:
            raise TimeError(
                f"t = {now} does not advance past the stream's last time {last} ({self._clock.describe()}); "
                "send each time once and in order"
            )
        self._intake.observe(x, mask)
        if now - last > self._gaps.limit:
            output = self._observe_split(last, now, x, mask)
        else:
            output = self._call(now - last)
            self._binding.swap()
        self._accept(now, output)
        return output

    def _accept(self, now: int, output: Output) -> None:
        self._last = now
        self._set_phase(now)
        counters = self._counters
        counters.steps += 1
        counters.flagged += output.flagged
        counters.split += output.calls > 1
        counters.buckets[self._label] += output.calls

    def _call(self, gap: int) -> Output:
        """One run of the graph over `gap` ticks from inputs and arena; the new state is not accepted here."""
        if self._dt is not None:
            self._dt[0] = self._clock.units(gap)
        binding = self._binding
        binding.run(self._label)
        if not (all_finite(binding.next_arena) and all_finite(binding.flat_outputs)):
            raise StateError(self._reader.describe_not_finite(binding.next_arena))
        return self._reader.read(binding.flat_outputs, self._bucket)

    def _observe_split(self, last: int, now: int, x: ArrayLike, mask: ArrayLike | None) -> Output:
        ends = self._gaps.cut(last, now)
        before = self._binding.arena.copy()
        try:
            start, worst = self._flow(last, ends[:-1])
            self._intake.observe(x, mask)
            output = self._call(now - start)
        except BaseException:
            self._rewind(before)
            raise
        self._binding.swap()
        return _with_pieces(output, worst, len(ends))

    def _flow(self, last: int, ends: Sequence[int]) -> tuple[int, float]:
        """Let time pass over the pieces that end at `ends`, keeping each state; where it ends and the largest err."""
        worst = 0.0
        self._intake.nothing()
        for end in ends:
            output = self._call(end - last)
            self._binding.swap()
            self._set_phase(end)
            last, worst = end, max(worst, output.err or 0.0)
        return last, worst

    def _foresee(self, t: object) -> Output:
        now = self._clock.tick(t)
        last = now if self._last is None else self._last
        if now < last:
            raise TimeError(f"t = {now} lies before the stream's last time {last}; predict that time or a later one")
        self._intake.nothing()
        if self._last is None:
            self._set_phase(now)
        if now - last <= self._gaps.limit:
            return self._call(now - last)
        ends = self._gaps.cut(last, now)
        before = self._binding.arena.copy()
        try:
            start, worst = self._flow(last, ends[:-1])
            return _with_pieces(self._call(now - start), worst, len(ends))
        finally:
            self._rewind(before)

    def _rewind(self, arena: Arena) -> None:
        """Back to an earlier state, whose time is still the stream's last."""
        self._binding.arena[...] = arena
        if self._last is not None:
            self._set_phase(self._last)

    def _next_tick(self) -> int:
        """The time of an observation given without one: one model unit after the last."""
        if self._dt is not None and not self._intake.takes_tokens:
            raise InputError(f"t is missing; give the observation's time as an integer, in {self._clock.describe()}")
        if self._last is None:
            return self._clock.time.origin
        return self._last + max(1, round(self._clock.time.ticks_per_model_unit))

    def _set_phase(self, tick: int) -> None:
        if self._phase is not None:
            self._clock.phase_into(tick, self._phase)

    def _save(self) -> StreamState:
        return StreamState(self._binding.arena.copy(), self._last, self._counters.copy())

    def _load(self, state: StreamState) -> None:
        self._last = state.tick
        self._counters = state.counters.copy()
        self._rewind(state.arena)


class _OutputReader:
    """Takes an Output out of the flat outputs of one stream; places are looked up once."""

    def __init__(self, model: Model) -> None:
        manifest = model.manifest
        layout = Layout(manifest.spec.outputs, 1)
        self._state = Layout(manifest.spec.state, 1)
        self._place = {
            tensor.name: slice(layout.offsets[tensor.name], layout.offsets[tensor.name] + tensor.size)
            for tensor in manifest.spec.outputs
        }
        self._y = self._place["y"]
        self._gates = self._place.get("gates")
        estimates = manifest.solver is None or manifest.solver.error_estimate
        self._err = layout.offsets.get("err") if estimates else None

    def read(self, flat: Arena, bucket: int | None) -> Output:
        """A copy of one call's outputs."""
        flat = flat.copy()
        err = None if self._err is None else float(flat[self._err])
        gates = None if self._gates is None else flat[self._gates]
        return Output(flat[self._y], err, gates, bucket, err is not None and err > TOLERANCE, 1)

    def describe_not_finite(self, arena: Arena) -> str:
        """The sentence of a StateError, naming the members that are not finite."""
        members = [f"state {name}" for name, view in self._state.views(arena).items() if not np.isfinite(view).all()]
        what = ", ".join(members) or "an output"
        return f"{what} became NaN or infinite; the step was discarded, check that x is in the training data's unit"


def _with_pieces(output: Output, worst: float, calls: int) -> Output:
    """The last piece's output with the largest err of all pieces."""
    err = None if output.err is None else max(output.err, worst)
    return replace(output, err=err, flagged=err is not None and err > TOLERANCE, calls=calls)


def _rows(name: str, values: object) -> Sequence[Any]:
    """A sequence of rows; arrays stay arrays, so that their rows keep their dtype."""
    if hasattr(values, "__array__"):
        values = np.asarray(values)
        if values.ndim == 0:
            raise InputError(f"{name}: received a single value, expected a sequence; use step for one observation")
        return values  # type: ignore[return-value]
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputError(f"{name}: received {type(values).__name__}, expected a sequence; give a list or an array")
    return values


def _matching(name: str, values: object, count: int) -> Sequence[Any]:
    rows = _rows(name, values)
    if len(rows) != count:
        raise InputError(f"{name}: received {len(rows)} rows, expected {count} as x; give one per observation")
    return rows
