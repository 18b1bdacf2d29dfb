"""One stream: a conversation with a model, one observation after another.

A stream keeps a core (see `odestream.runtime.backends.StreamCore`) for one caller at a time, and makes of its steps
what people ask for: many rows at once, all or nothing, predictions for several times, snapshots.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from odestream.runtime.arena import Layout
from odestream.runtime.errors import OdestreamError, SessionBusy
from odestream.runtime.intake import matching, rows
from odestream.runtime.records import Counters, Output, StreamState

if TYPE_CHECKING:
    from odestream.runtime.model import Model

UNNAMED = ""
"""The name of a stream that is alone: in a snapshot of it, and in a table without a stream column."""


class Stream:
    """One conversation with a model; made by `Model.stream` and `Model.restore`.

    Times are integer ticks (see the manifest's `time`). A stream is not for two threads at once: the second gets
    SessionBusy. Methods raise InputError for unusable values, TimeError for times that do not advance or lie too
    far ahead, StateError where a result is not finite; after any of them the stream is as it was.

    origin: where its state comes from: `new`, or which generation of which snapshot and why.
    """

    def __init__(
        self,
        model: Model,
        state: StreamState | None = None,
        buckets: Sequence[int] | None = None,
        origin: str = "new",
    ) -> None:
        self.model = model
        self.origin = origin
        self._lock = threading.Lock()
        self._closed = False
        self._core = model.core(buckets)
        if state is not None:
            self._core.load(state)

    @property
    def last_tick(self) -> int | None:
        """Tick of the last accepted call, None before the first."""
        return self._core.last

    @property
    def counters(self) -> Counters:
        """A copy of the stream's counters."""
        return self._core.counters

    def step(self, x: ArrayLike, t: int | None = None, mask: ArrayLike | None = None) -> Output:
        """Take one observation and return what the model says at its time.

        x: `[X]`, raw (one token for a token model). t: its time in ticks, after the last one; may be left out for
        tokens and for models without dt (then one model time unit later). mask: `[X]` of 0 and 1, None when all
        channels were observed; x may hold anything where it is 0.
        """
        self._enter()
        try:
            return self._core.observe(x, t, mask)
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
            before = self._core.save()
            outputs: list[Output] = []
            try:
                for row, time, seen in zip(given, times, masks, strict=True):
                    outputs.append(self._core.observe(row, time, seen))
            except BaseException as error:
                self._core.load(before)
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
                return [self._core.foresee(time) for time in rows("t", t)]
            return self._core.foresee(t)
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
            return self._core.save()
        finally:
            self._lock.release()

    def load(self, state: StreamState) -> None:
        """Become what was saved, of this stream or of another one of its model."""
        self._enter()
        try:
            self._core.load(state)
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
