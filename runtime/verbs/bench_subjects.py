"""What `odestream bench` measures: a stream as it is used, and the bare engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from odestream.runtime import Counters, Model
from odestream.runtime.backends import Binding
from odestream.runtime.contract.vectors import Vectors
from odestream.runtime.timestamps import MAX_TICKS
from odestream.runtime.verbs.latency import Subject
from odestream.runtime.verbs.tally import total

GAPS_PER_UNIT = 10  # a model's time unit is ten of its training gaps


class Walk:
    """A stream on the vectors' first stream, over and over, at the usual gap.

    Weekly steps fill a clock of nanoseconds within seconds, so the stream begins anew before its clock ends.
    """

    def __init__(self, model: Model, buckets: Sequence[int] | None) -> None:
        self._model, self._buckets = model, buckets
        self._vectors = model.bundle.vectors()
        self._gap = max(1, round(model.manifest.time.ticks_per_model_unit / GAPS_PER_UNIT))
        self._stream = model.stream(buckets)
        self._ended = Counters()
        self._arguments: list[Any] = []

    @property
    def counters(self) -> Counters:
        """What the solver did, warm-up included."""
        return total([self._ended, self._stream.counters])

    def prepare(self, i: int) -> None:
        """The next observation and its time."""
        vectors, row = self._vectors, i % self._vectors.steps
        last = self._stream.last_tick
        if last is not None and last > MAX_TICKS - self._gap:
            self._ended, self._stream, last = self.counters, self._model.stream(self._buckets), None
        now = self._model.manifest.time.origin if last is None else last + self._gap
        mask = vectors.inputs.get("mask")
        self._arguments[:] = [vectors.inputs["x"][row, 0], now, None if mask is None else mask[row, 0]]

    def step(self) -> object:
        """The call that is timed."""
        return self._stream.step(*self._arguments)


def subjects(
    model: Model, walks: Sequence[Walk], batches: Sequence[int], buckets: Sequence[int] | None, rate: float
) -> list[Subject]:
    """Stream.step at both paces; the engine for each batch in its usual bucket, and for one row in every other."""
    solver, vectors = model.manifest.solver, model.bundle.vectors()
    streams = [
        Subject("Stream.step", 1, pace, walk.prepare, walk.step) for walk, pace in zip(walks, (None, rate), strict=True)
    ]
    if solver is None:
        return streams + [_engine_subject(model, vectors, batch, None) for batch in batches]
    among = tuple(buckets or solver.buckets)
    usual = solver.default_bucket if solver.default_bucket in among else among[0]
    sizes = [(usual, batch) for batch in batches] + [(bucket, 1) for bucket in among if bucket != usual]
    return streams + [_engine_subject(model, vectors, batch, bucket) for bucket, batch in sizes]


def _engine_subject(model: Model, vectors: Vectors, batch: int, steps: int | None) -> Subject:
    """The engine alone, on `batch` streams taken from the vectors' in turn; each result is accepted."""
    binding = model.bind(batch)
    columns = np.arange(batch) % vectors.batch
    inputs = {name: values[:, columns] for name, values in vectors.inputs.items()}

    def prepare(i: int) -> None:
        for name, values in inputs.items():
            np.copyto(binding.inputs[name], values[i % vectors.steps])

    label = model.manifest.default_graph if steps is None else str(steps)
    return Subject("engine", batch, None, prepare, _engine_call(binding, label), steps)


def _engine_call(binding: Binding, label: str) -> Callable[[], None]:
    def call() -> None:
        binding.run(label)
        binding.swap()

    return call
