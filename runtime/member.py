"""One stream of a fleet: the stream, and what its policies need to remember of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from odestream.runtime.errors import InputError
from odestream.runtime.history import Block, Checkpoint, History, Seen
from odestream.runtime.intake import as_array
from odestream.runtime.model import Model
from odestream.runtime.policies import REPLAY, Filler, Policies
from odestream.runtime.records import Output, StreamState
from odestream.runtime.session import Stream

LONGEST_NAME = 16_383
"""Characters of a stream's name; four bytes each at most, which a log counts in 16 bits."""


class Observation(msgspec.Struct, frozen=True, eq=False):
    """One row for the stream of that name; x, t and mask as in `Stream.step`.

    `msgspec.structs.replace` makes a changed copy.
    """

    stream: str
    x: ArrayLike
    t: int | None = None
    mask: ArrayLike | None = None


def check_name(name: object) -> None:
    """InputError for what names no stream: no text, text that UTF-8 cannot write, or too much of it."""
    if not isinstance(name, str):
        raise InputError(f"streams: a name is {name!r} ({type(name).__name__}); give text")
    if len(name) > LONGEST_NAME:
        raise InputError(f"streams: a name has more than {LONGEST_NAME} characters; give it a shorter one")
    try:
        name.encode()
    except UnicodeEncodeError as cause:
        raise InputError(f"streams: the name {name!r} is no text of Unicode; give one that UTF-8 can write") from cause


class Member:
    """A stream under policies. used: when it last took a row, by the monotonic clock, in seconds."""

    def __init__(
        self,
        model: Model,
        policies: Policies,
        buckets: Sequence[int] | None,
        state: StreamState | None = None,
        origin: str = "new",
    ) -> None:
        self.stream = Stream(model, state, buckets, origin)
        self.used = time.monotonic()
        self._filler = Filler(model.manifest, policies.on_missing, () if state is None else state.held)
        self._history = History(self._checkpoint(), policies.window) if policies.on_late == REPLAY else None

    def fill(self, row: Observation) -> tuple[ArrayLike, ArrayLike | None]:
        """The row's x and mask as the stream is to see them."""
        return self._filler.fill(row.x, row.mask)

    def is_late(self, t: object) -> bool:
        """Whether a row of that time must be put among those that came before."""
        if self._history is None or isinstance(t, bool) or not isinstance(t, int | np.integer):
            return False
        last = self.stream.last_tick
        return last is not None and bool(t <= last)

    def step(self, row: Observation) -> Output:
        """Take a row by itself."""
        x, mask = self.fill(row)
        output = self.stream.step(x, row.t, mask)
        self.accepted(row, x, mask)
        return output

    def accepted(self, row: Observation, x: ArrayLike, mask: ArrayLike | None) -> None:
        """The stream has taken `row`, whose values were filled to `x` and `mask`."""
        self.used = time.monotonic()
        self._filler.remember(x, mask)
        if self._history is not None:
            tick = self.stream.last_tick or 0
            self._history.append(_seen(row, tick), self._checkpoint)

    def insert(self, row: Observation) -> Output:
        """Take a late row in its place; after an error the stream is as it was."""
        if self._history is None or row.t is None:
            raise ValueError("a row is late only in the history of a stream")
        before = self._checkpoint()
        try:
            output = self._history.insert(_seen(row, int(row.t)), self._load, self._again, self._checkpoint)
        except BaseException:
            self._load(before)
            raise
        self.used = time.monotonic()
        return output

    def past(self) -> Sequence[Block]:
        """What late rows may come before, thinned as a log keeps it; empty where none are taken."""
        return () if self._history is None else self._history.thinned()

    def recall(self, past: Sequence[Block]) -> None:
        """Take late rows as a log has what they may come before, of this member or another of the same stream."""
        if self._history is not None:
            self._history.recall(past)

    def save(self) -> StreamState:
        """A copy of the stream and of the values that it holds."""
        return replace(self.stream.save(), held=self._filler.held)

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.stream.save(), self._filler.held)

    def _load(self, checkpoint: Checkpoint) -> None:
        self.stream.load(checkpoint.state)
        self._filler.held = checkpoint.held

    def _again(self, seen: Seen) -> Output:
        x, mask = self._filler.fill(seen.x, seen.mask)
        output = self.stream.step(x, seen.tick, mask)
        self._filler.remember(x, mask)
        return output


def _seen(row: Observation, tick: int) -> Seen:
    """The row with values of its own; InputError where they cannot be read."""
    mask = None if row.mask is None else as_array("mask", row.mask).copy()
    return Seen(tick, as_array("x", row.x).copy(), mask)
