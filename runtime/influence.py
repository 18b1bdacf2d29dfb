"""Which memories an answer read: each place is emptied in turn, and the answer compared with the one that was given.

This asks the model itself and needs no second definition of how it reads. A forecast is made before its row is seen, so
what it knows of the memories was read with the row before: places are emptied before that one. Places are told by the
names that odestream's cell gives its members: strengths `ws` of the working and `es` of the episodic memory (0 is
empty), heads of the long-term matrix `m`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from odestream.runtime.arena import Layout
from odestream.runtime.member import Observation
from odestream.runtime.model import Model
from odestream.runtime.records import Output, StreamState
from odestream.runtime.session import Stream

MEMORIES = {"ws": "working", "es": "episodic", "m": "long-term"}


@dataclass(frozen=True)
class Influence:
    """What one place of a memory meant to an answer.

    member, place: where it lies. strength: what it held (of a head: its norm). change: largest change of the answer
    without it, in predicted standard deviations of a forecast, otherwise in units of y.
    """

    member: str
    place: int
    strength: float
    change: float


def influences(
    model: Model, before: StreamState, rows: Sequence[Observation], buckets: Sequence[int] | None = None
) -> list[Influence]:
    """The places that the answer to the last of `rows` depended on, the most influential first.

    before: the stream before the first of them, which is where places are emptied.
    """
    layout = Layout(model.manifest.spec.state, 1)
    whole = _answer(Stream(model, before, buckets), rows)
    found = []
    for member in (name for name in MEMORIES if name in layout.shapes):
        for place in range(layout.shapes[member][1]):
            arena = before.arena.copy()
            held = layout.views(arena)[member][0, place : place + 1]
            strength = float(np.linalg.norm(held))
            if strength > 0:
                held[...] = 0
                without = _answer(Stream(model, replace(before, arena=arena), buckets), rows)
                found.append(Influence(member, place, strength, _change(model, whole, without)))
    return sorted((each for each in found if each.change > 0), key=lambda each: -each.change)


def _answer(stream: Stream, rows: Sequence[Observation]) -> Output:
    return [stream.step(row.x, row.t, row.mask) for row in rows][-1]


def _change(model: Model, whole: Output, without: Output) -> float:
    difference = np.abs(whole.y.astype(np.float64) - without.y)
    if model.manifest.task.kind != "forecast":
        return float(difference.max())
    means = len(difference) // 2
    return float((difference[:means] / np.exp(0.5 * whole.y[means:].astype(np.float64))).max())
