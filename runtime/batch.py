"""Several streams of one model stepped together: one engine call for all rows that run in the same bucket."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from odestream.runtime.backends import Rows
from odestream.runtime.errors import InputError, OdestreamError, SessionBusy
from odestream.runtime.intake import matching, rows
from odestream.runtime.records import Output
from odestream.runtime.session import Stream

if TYPE_CHECKING:
    from odestream.runtime.model import Model

LARGEST = 64
"""Rows of one engine call, unless told otherwise."""


class Batcher:
    """Steps streams of one model together; any of them, and any number, at each call.

    largest: most rows of one engine call; a group of more rows takes several. An engine that steps streams by itself
    takes any number.
    A Batcher is not for two threads at once: the second gets SessionBusy, as with a stream.
    """

    def __init__(self, model: Model, largest: int = LARGEST) -> None:
        if largest < 1:
            raise InputError(f"largest is {largest}, expected at least 1 row; leave it out for {LARGEST}")
        self._model = model
        self._lock = threading.Lock()
        self._batch = model.batch(largest)

    def step(
        self, streams: Sequence[Stream], x: ArrayLike, t: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> list[Output | OdestreamError]:
        """Take one observation for each stream: `x [B, X]`, `t [B]`, `mask [B, X]`, rows as in `Stream.step`.

        Each answer is that of the stream's own step, within the backend's tolerance (`contract.tolerances`: the order
        of a sum may depend on the number of rows; an err that close to the safety factor may also decide otherwise).
        A row that fails has its error as its answer, and its stream is as it was; the others advance. Raises
        InputError, before any row, for a stream given twice or of another model and for lengths that differ.
        """
        given = rows("x", x)
        times = [None] * len(given) if t is None else matching("t", t, len(given))
        masks = [None] * len(given) if mask is None else matching("mask", mask, len(given))
        self._refuse(streams, len(given))
        if not self._lock.acquire(blocking=False):
            raise SessionBusy("the batcher is in use by another thread; give each thread a batcher of its own")
        try:
            return self._step(streams, given, times, masks)
        finally:
            self._lock.release()

    def _refuse(self, streams: Sequence[Stream], count: int) -> None:
        if len(streams) != count:
            raise InputError(f"x: received {count} rows for {len(streams)} streams; give one for each")
        if len(set(map(id, streams))) != count:
            raise InputError("streams: one is given twice; step it once now and again in the next call")
        if {id(stream.model) for stream in streams} - {id(self._model)}:
            raise InputError(f"streams: one is not of this model ({self._model.manifest.name}); batch it with its own")

    def _step(self, streams: Sequence[Stream], x: Rows, t: Rows, mask: Rows) -> list[Output | OdestreamError]:
        refused: dict[int, SessionBusy] = {}
        entered: list[Stream] = []
        try:
            for row, stream in enumerate(streams):
                if (refusal := _refusal(stream)) is None:
                    entered.append(stream)
                else:
                    refused[row] = refusal
            cores = [stream._core for stream in entered]
            if not refused:
                return self._batch.step(cores, x, t, mask)
            given = [row for row in range(len(streams)) if row not in refused]
            found = self._batch.step(cores, *([values[row] for row in given] for values in (x, t, mask)))
        finally:
            for stream in entered:
                stream._lock.release()
        answers = dict(zip(given, found, strict=True)) | refused
        return [answers[row] for row in range(len(streams))]


def _refusal(stream: Stream) -> SessionBusy | None:
    """Take a stream for the call, or say why not."""
    try:
        stream._enter()
    except SessionBusy as error:
        return error
    return None
