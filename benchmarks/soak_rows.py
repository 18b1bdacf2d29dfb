"""Rows for the soak's streams, and what two runs over the same rows are compared by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from odestream.runtime import Model, Output
from odestream.runtime.fleet import Answer, Fleet
from odestream.runtime.member import Observation
from odestream.runtime.records import StreamState

TICK = 10_000_000  # 100 Hz in ticks of 1 ns
BLOCK = 1000
"""Calls that are drawn at once."""


class Rows:
    """Calls of one row for each stream: the same seed gives the same rows, from any call on."""

    def __init__(self, model: Model, streams: int, seed: int = 0) -> None:
        x = model.bundle.vectors().inputs["x"]
        self._values: NDArray[Any] = x.reshape(-1, *x.shape[2:])
        self.names = [f"s{i}" for i in range(streams)]
        self._seed = seed
        self._first = model.manifest.time.origin
        self._known = -1
        self._block = self._values[:0]

    def arrays(self, number: int) -> tuple[NDArray[Any], int]:
        """The call of that number: `x [streams, X]`, and the tick of all its rows."""
        block, place = divmod(number, BLOCK)
        if block != self._known:
            picks = np.random.default_rng([self._seed, block])
            self._block = self._values[picks.integers(0, len(self._values), (BLOCK, len(self.names)))]
            self._known = block
        return self._block[place], self._first + number * TICK

    def call(self, number: int) -> list[Observation]:
        """The same, as a fleet takes it."""
        x, t = self.arrays(number)
        return [Observation(name, values, t) for name, values in zip(self.names, x, strict=True)]

    def calls(self, first: int = 0) -> Iterator[list[Observation]]:
        """All calls from one on."""
        number = first
        while True:
            yield self.call(number)
            number += 1


def answered(answers: Sequence[Answer]) -> NDArray[np.uint8]:
    """The bytes of y and err of each answer, `[B, 4·Y + 8]`; an error among them is raised: the rows are sound."""
    outputs: list[Output] = []
    for answer in answers:
        if not isinstance(answer, Output):
            raise answer
        outputs.append(answer)
    y = np.concatenate([output.y for output in outputs]).reshape(len(outputs), -1)
    err = np.array([output.err for output in outputs], np.float64)[:, None]
    return np.concatenate([y.view(np.uint8), err.view(np.uint8)], axis=1)


def digests(states: dict[str, StreamState]) -> list[str]:
    """Of each stream, by name, all that it is."""
    facts = (
        (s.arena.tobytes(), repr((name, s.tick, s.counters, s.previous)).encode()) for name, s in sorted(states.items())
    )
    return [hashlib.sha256(arena + rest).hexdigest() for arena, rest in facts]


def steps(fleet: Fleet) -> int:
    """Calls that every stream of the fleet has had."""
    return min((state.counters.steps for state in fleet.states().values()), default=0)
