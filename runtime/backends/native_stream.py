"""A stream of the C library: clock, guards, bucket rule and state lie there, and a step is one call.

What comes in is copied into buffers of the stream's own, whose addresses the call is given. float32 is checked by the
library; anything else goes through `Intake` first. A failure comes back as a status, and becomes the error that
`odestream.runtime.core` would raise.
"""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Arena, Layout, aligned, initial
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import Accepted, BucketRule
from odestream.runtime.core import checked, does_not_advance, lies_before, next_tick
from odestream.runtime.errors import CompatError, InputError, OdestreamError, StateError
from odestream.runtime.gaps import GapRule
from odestream.runtime.intake import Intake
from odestream.runtime.kernels.configuration import ELSEWHERE
from odestream.runtime.kernels.library import (
    BAD_MASK,
    BAD_TIME,
    BAD_VALUE,
    LONG_GAP,
    NOT_FINITE,
    Given,
    Progress,
    Solving,
)
from odestream.runtime.records import Counters, Output, StreamState

if TYPE_CHECKING:
    from odestream.runtime.backends.native import NativeModel

FLOAT32, BOOL = np.dtype(np.float32), np.dtype(np.bool_)
_FLOATS = {float}
_MOST = (1 << 64) - 1  # of a uint64
_MOST_CALLS = (1 << 31) - 1  # of an int32
_RESULT = struct.Struct("=d4i")  # of an odestream_output, after its two pointers


class NativeCore:
    """See `odestream.runtime.backends.StreamCore`.

    rule: over the stream's buckets. pointer: the library's stream. x, mask: the buffers that `take` fills. reader:
    makes outputs of what the library wrote.
    """

    def __init__(self, model: NativeModel, manifest: Manifest, rule: BucketRule) -> None:
        self.model, self.rule = model, rule
        self.clock = Clock(manifest.time)
        self._library = model.library
        self.pointer = _create(model, manifest, rule)
        free = weakref.finalize(self, self._library.odestream_stream_destroy, self.pointer)
        free.atexit = False  # a daemon thread may be inside the library then
        self._progress: Progress = self._library.odestream_stream_progress(self.pointer).contents
        self._step, self._predict = self._library.odestream_stream_step, self._library.odestream_stream_predict
        inputs: Mapping[str, NDArray[Any]] = {
            t.name: aligned((1, *t.shape), t.dtype) for t in manifest.spec.inputs if t.name in ("x", "mask")
        }
        self._intake = Intake(manifest, inputs)
        self._checked_mask = inputs["mask"][0]
        self.x, self.mask = inputs["x"].reshape(-1), aligned(self._checked_mask.shape, np.float32)
        self._x_at, self._mask_at = self.x.ctypes.data, self.mask.ctypes.data
        self._shape = None if self._intake.takes_tokens else self._intake.shape
        self._pack, self._x_bytes = struct.Struct(f"{self.x.size}f").pack_into, self.x.data
        self._gaps = GapRule(manifest, self.clock, str(rule.buckets[-1]))
        self._labels = tuple(str(bucket) for bucket in rule.buckets)
        self._others = Counters(buckets=dict.fromkeys(manifest.graphs, 0), rejected=dict.fromkeys(manifest.graphs, 0))
        self._state = Layout(manifest.spec.state, 1)
        self.reader = OutputReader(manifest, rule)
        self._flat = aligned((self.reader.width,), np.float32)
        self._given = self.reader.place(self._flat.ctypes.data)
        self._given_at = ctypes.addressof(self._given)
        self._result = memoryview(self._given).cast("B")

    @property
    def last(self) -> int | None:
        """Tick of the last accepted call, None before the first."""
        return self._progress.tick if self._progress.begun else None

    @property
    def counters(self) -> Counters:
        """A copy of the counters."""
        progress, counters = self._progress, self._others.copy()
        for name in ("steps", "flagged", "split", "rerun"):
            setattr(counters, name, getattr(progress, name))
        for index, label in enumerate(self._labels):
            counters.buckets[label] = progress.accepted[index]
            counters.rejected[label] = progress.rejected[index]
        return counters

    def observe(self, x: ArrayLike, t: object, mask: ArrayLike | None) -> Output:
        """See `Stream.step`."""
        now = self.tick(t)
        seen = self.take(now, x, mask)
        if status := self._step(self.pointer, now, self._x_at, seen, self._given_at):
            raise self.failure(status, now, x, mask)
        return self.reader.read(self._flat.copy(), _RESULT.unpack_from(self._result, 16))

    def foresee(self, t: object) -> Output:
        """See `Stream.predict`, for one time."""
        now = self.clock.tick(t)
        if status := self._predict(self.pointer, now, self._given_at):
            if status == BAD_TIME:
                raise lies_before(now, self.last)
            raise self.failure(status, now, 0, None)
        return self.reader.read(self._flat.copy(), _RESULT.unpack_from(self._result, 16))

    def save(self) -> StreamState:
        """A copy of everything that the stream is."""
        arena, progress = self._state.empty(), self._progress
        ctypes.memmove(arena.ctypes.data, self._library.odestream_stream_state(self.pointer), arena.nbytes)
        previous = None
        if progress.previous_gap:
            previous = Accepted(progress.previous_gap, progress.previous_steps, progress.previous_err)
        return StreamState(arena, self.last, self.counters, previous)

    def load(self, state: StreamState) -> None:
        """Become what was saved."""
        arena, last = checked(state, self._state.size, self.clock)
        progress = self._progress_of(state, last)
        if self._library.odestream_stream_load(self.pointer, arena.ctypes.data, ctypes.byref(progress)):
            raise StateError(f"{self._error()}; load a state that was saved")
        self._others = state.counters.copy()

    def tick(self, t: object) -> int:
        """The tick of a call."""
        if t is None:
            t = next_tick(self.clock, self.last, self._intake.takes_tokens)
        return self.clock.tick(t)

    def take(self, now: int, x: ArrayLike, mask: ArrayLike | None) -> int | None:
        """Copy an observation into the stream's buffers; the mask's address, None where all was seen.

        float32 and lists of floats are checked by the library. Anything else is checked here, after the time, which
        comes first in both.
        """
        if type(x) is np.ndarray and x.dtype is FLOAT32 and x.shape == self._shape:
            if mask is None:
                self.x[...] = x
                return None
            if type(mask) is np.ndarray and mask.dtype in (FLOAT32, BOOL) and mask.shape == self._shape:
                self.x[...] = x
                self.mask[...] = mask
                return self._mask_at
        if isinstance(x, list) and mask is None and self._take_floats(x):
            return None
        last = self.last
        if last is not None and now <= last:
            raise does_not_advance(self.clock, now, last)
        self._intake.observe(x, mask)
        self.mask[...] = self._checked_mask  # which the intake may leave as it was, knowing what it holds
        return self._mask_at

    def _take_floats(self, x: list[Any]) -> bool:
        """Copy a float for each channel; False where the list holds anything else, or more than float32 can."""
        if self._shape is None or set(map(type, x)) != _FLOATS:
            return False
        try:
            self._pack(self._x_bytes, 0, *x)
        except (struct.error, OverflowError):
            return False
        return True

    def failure(self, status: int, now: int, x: ArrayLike, mask: ArrayLike | None) -> OdestreamError:
        """What a call failed at."""
        last = self.last
        try:
            if status in (BAD_VALUE, BAD_MASK):
                self._intake.observe(x, mask)
            if status == LONG_GAP and last is not None:
                self._gaps.cut(last, now)
        except OdestreamError as error:
            return error
        if status == BAD_TIME and last is not None:
            return does_not_advance(self.clock, now, last)
        return StateError(self._error()) if status == NOT_FINITE else InputError(self._error())

    def _error(self) -> str:
        message: bytes = self._library.odestream_stream_error(self.pointer)
        return message.decode()

    def _progress_of(self, state: StreamState, last: int | None) -> Progress:
        progress, counters, previous = Progress(), state.counters, state.previous
        progress.begun, progress.tick = int(last is not None), last or 0
        if previous is not None:
            progress.previous_gap, progress.previous_steps = _counted(int(previous.gap)), _counted(previous.steps)
            progress.previous_err = previous.err
        for name in ("steps", "flagged", "split", "rerun"):
            setattr(progress, name, _counted(getattr(counters, name)))
        for index, label in enumerate(self._labels):
            progress.accepted[index] = _counted(counters.buckets.get(label, 0))
            progress.rejected[index] = _counted(counters.rejected.get(label, 0))
        return progress


class OutputReader:
    """Makes an Output of what the library wrote: y and gates in a row, and an `odestream_output`.

    width: floats of y and gates.
    """

    def __init__(self, manifest: Manifest, rule: BucketRule) -> None:
        sizes = {tensor.name: tensor.size for tensor in manifest.spec.outputs}
        self.width = sizes["y"] + sizes["gates"]
        self._y, self._gates = slice(0, sizes["y"]), slice(sizes["y"], self.width)
        self._offset = 4 * sizes["y"]
        self._estimates = rule.order > 0

    def place(self, address: int) -> Given:
        """An `odestream_output` whose values go to `address`."""
        return Given(y=address, gates=address + self._offset)

    def read(self, flat: Arena, result: tuple[Any, ...]) -> Output:
        """flat: `[width]`, the caller's own from now on. result: an `odestream_output` after its pointers."""
        err, bucket, flagged, calls, reruns = result
        return Output(
            flat[self._y], err if self._estimates else None, flat[self._gates], bucket, flagged != 0, calls, reruns
        )

    def read_all(self, flat: Arena, results: Iterable[list[Any]]) -> Iterator[Output]:
        """The same for each row of `[B, width]`; results: of an `odestream_output` after its pointers, each `[B]`."""
        estimates = self._estimates
        columns = flat[:, self._y], flat[:, self._gates], *results
        for y, gates, err, bucket, flagged, calls, reruns in zip(*columns, strict=True):
            yield Output(y, err if estimates else None, gates, bucket, flagged != 0, calls, reruns)


def _create(model: NativeModel, manifest: Manifest, rule: BucketRule) -> int:
    """The library's stream; it keeps nothing of what is handed to it here."""
    time, count, start = manifest.time, len(rule.buckets), initial(manifest.spec.state, 1)
    frequencies = time.frequencies if manifest.spec.input("phase") is not None else ()
    max_calls = manifest.solver.max_calls if manifest.solver is not None else 1
    solving = Solving(
        ticks_per_unit=time.ticks_per_model_unit,
        origin=time.origin,
        frequency=(ctypes.c_double * max(1, len(frequencies)))(*frequencies),
        initial=start.ctypes.data,
        buckets=count,
        bucket=(ctypes.c_int32 * count)(*rule.buckets),
        limit=(ctypes.c_uint64 * count)(*(_counted(int(limit)) for limit in rule.limits)),
        ratio=(ctypes.c_double * count)(*rule.ratios),
        factor=rule.factor,
        order=rule.order,
        max_calls=min(max_calls, _MOST_CALLS),
        default_bucket=rule.default,
    )
    pointer: int | None = model.library.odestream_stream_create(model.pointer, ctypes.byref(solving))
    if not pointer:
        raise CompatError(
            f"native cannot stream {manifest.name} ({model.library.odestream_last_error().decode()}); {ELSEWHERE}"
        )
    return pointer


def _counted(value: int) -> int:
    """A count that the library's own type can hold."""
    return min(value, _MOST)
