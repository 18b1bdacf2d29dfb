"""What a stream gives and what it is: the records that streams, cores, batchers and snapshots hand to each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from odestream.runtime.arena import Arena
from odestream.runtime.contract.rule import Accepted


class Output(msgspec.Struct, frozen=True, eq=False, gc=False):
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

    def add(self, other: Counters, sign: int = 1) -> None:
        """Count what `other` has done as well; with sign -1, take it off."""
        for name in ("steps", "flagged", "split", "rerun"):
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for into, histogram in ((self.buckets, other.buckets), (self.rejected, other.rejected)):
            for label, count in histogram.items():
                into[label] = into.get(label, 0) + sign * count


@dataclass(frozen=True)
class StreamState:
    """All that a stream is: its arena (one row), the tick of its last call (None before the first), its counters, and
    what is known of its calls over gaps, from which the next bucket is chosen.

    held: what a fleet keeps for it, the last finite value of each channel (see `policies`); a stream has none.
    """

    arena: Arena
    tick: int | None
    counters: Counters
    previous: Accepted | None = None
    held: tuple[float | None, ...] = ()
