"""Which gaps one call may cross, and how a longer one is cut.

An explicit solver diverges beyond its stability bound, and a float32 angle ω·dt loses its digits after many
periods; both are held here, before a call, in integer ticks.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from odestream.runtime.clock import Clock
from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import BucketRule
from odestream.runtime.contract.tableau import longest_gap, tableau
from odestream.runtime.errors import CompatError, GapError, InputError

MAX_PERIODS = 1000
"""Periods of the fastest frequency that one call may cross: float32 then errs by 8.5e-4 rad."""

_DEFAULT_MAX_CALLS = 1024
_NO_LIMIT = 1 << 64
_LARGEST_FLOAT32 = 3.4e38
_ROUNDING = 1 + 1e-12
"""So that a gap of exactly the bound is one call."""


class GapRule:
    """The rule of one graph of a bundle, for bucket `label`, the largest that a stream has.

    limit: most ticks that one call crosses. max_calls: most calls for one gap, 1 where the model takes no mask
    (it then cannot let time pass without an observation). Raises CompatError where not even one tick can be crossed.
    """

    def __init__(self, manifest: Manifest, clock: Clock, label: str) -> None:
        self.limit = _limit(manifest, label)
        if self.limit < 1:
            raise CompatError(
                f"no bucket fits {manifest.name}: the largest bucket, {label}, crosses {_longest(manifest, label):.2g} "
                f"of a tick in a call ({clock.describe()}); export it with more solver steps, or count finer ticks"
            )
        solver = manifest.solver
        self.splits = manifest.spec.input("mask") is not None
        self.max_calls = (solver.max_calls if solver else _DEFAULT_MAX_CALLS) if self.splits else 1
        self._clock = clock

    def cut(self, last: int, now: int) -> list[int]:
        """The ticks at which the pieces of the gap from `last` to `now` end; the last of them is `now`.

        Raises GapError where the gap needs more than `max_calls` calls.
        """
        gap = now - last
        if gap > self.limit * self.max_calls:
            raise GapError(self._refusal(last, now))
        calls = -(-gap // self.limit)
        return [last + gap * (index + 1) // calls for index in range(calls)]

    def _refusal(self, last: int, now: int) -> str:
        longest = self.limit * self.max_calls
        better = "with more solver steps" if self.splits else "a model with a mask input, whose gaps can be split"
        remedy = f"start a new stream after such a gap (odestream run: --on-gap reset), or export {better}"
        return (
            f"t = {now} lies {now - last} ticks after the stream's last time {last}, more than the {longest} that "
            f"{self.max_calls} call(s) can cross ({self._clock.describe()}); {remedy}"
        )


def bucket_rule(manifest: Manifest, clock: Clock, buckets: Sequence[int] | None = None) -> BucketRule:
    """The rule of a stream over `buckets` of a bundle, its limits in ticks; over all of them unless given.

    A method without an error estimate runs in its default bucket. Raises InputError for buckets that the bundle does
    not have, that do not increase, or among which nothing could choose.
    """
    solver = manifest.solver
    if solver is None:
        if buckets is not None:
            raise InputError(f"buckets {tuple(buckets)} are given, but the model has no solver; leave them out")
        return BucketRule((1,), 1, 1.0, 0, (_limit(manifest, NO_SOLVER),))
    if buckets is None:
        chosen = solver.buckets if solver.error_estimate else (solver.default_bucket,)
    else:
        chosen = _whole_numbers(buckets)
    unknown = [bucket for bucket in chosen if bucket not in solver.buckets]
    if unknown:
        raise InputError(
            f"bucket {unknown[0]} is not in the bundle; choose among {', '.join(map(str, solver.buckets))}"
        )
    order = tableau(solver.method).error_order if solver.error_estimate else 0
    limits = tuple(_limit(manifest, str(bucket)) for bucket in chosen)
    default = next((bucket for bucket in chosen if bucket >= solver.default_bucket), max(chosen, default=0))
    splits = manifest.spec.input("mask") is not None
    ratios = (
        tuple(solver.error_ratios[solver.buckets.index(bucket)] for bucket in chosen) if solver.error_ratios else ()
    )
    return BucketRule(chosen, default, solver.safety_factor, order, limits, splits, ratios)


def _whole_numbers(buckets: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(operator.index(bucket) for bucket in buckets)
    except TypeError as cause:
        raise InputError(f"buckets: received {buckets!r}, expected whole numbers; give them as (1, 4)") from cause


def _limit(manifest: Manifest, label: str) -> int:
    """Most ticks in one call, rounded down so that no piece of a cut gap exceeds a bound."""
    ticks = _longest(manifest, label) * _ROUNDING
    return math.floor(ticks) if ticks < _NO_LIMIT else _NO_LIMIT


def _longest(manifest: Manifest, label: str) -> float:
    """The longest gap of one call in ticks."""
    longest = _LARGEST_FLOAT32
    solver, time = manifest.solver, manifest.time
    if manifest.spec.input("dt") is None:
        return math.inf
    if solver is not None:
        longest = min(longest, longest_gap(int(label), solver.stiffness, solver.method))
    fastest = max(time.frequencies, default=0.0) if manifest.spec.input("phase") is not None else 0.0
    if fastest > 0:
        longest = min(longest, MAX_PERIODS * 2 * math.pi / fastest)
    return longest * time.ticks_per_model_unit
