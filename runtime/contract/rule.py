"""The rule of bucketed-adaptive solving: which bucket to try, and what to do with what came of it.

A bucket is a graph with N solver steps. Pure functions of numbers, so that a runtime, the calibration at export and
a test apply the same rule:

    choose   before a call: the smallest stable bucket whose predicted error fits
             err_prev · (gap/gap_prev · N_prev/N)^(p+1) <= factor, with p the order of the error estimate
    judge    after it: accept where err <= factor; otherwise re-run from the untouched state in the bucket one above
             N·(err/factor)^(1/(p+1)), at most twice; then split the gap into halves, each of which the rule is
             applied to anew, down to a limit; then flag

A result that is returned with err above the factor is flagged, always.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from odestream.runtime.errors import InputError

MAX_RERUNS = 2
"""Re-runs of one piece of a gap before it is split."""
MAX_HALVINGS = 3
"""How often a piece may be halved: one gap becomes at most 8 pieces for its error's sake."""

_ROUNDING = 1 - 1e-9
"""So that a bucket which fits exactly is not missed by the last digit."""


class Accepted(NamedTuple):
    """A stream's last accepted call: its gap (in the unit of the rule's limits), its solver steps and its err."""

    gap: float
    steps: int
    err: float


class Verdict(Enum):
    """What happens to a call's result."""

    ACCEPT = "accept"
    RERUN = "rerun"
    SPLIT = "split"
    FLAG = "flag"


class Decision(NamedTuple):
    """A verdict, and for RERUN the bucket to run in; 0 otherwise."""

    verdict: Verdict
    steps: int


_ACCEPT, _SPLIT, _FLAG = (Decision(v, 0) for v in (Verdict.ACCEPT, Verdict.SPLIT, Verdict.FLAG))


@dataclass(frozen=True)
class BucketRule:
    """The rule over some buckets of a model.

    buckets: solver steps, increasing. default: the one taken where nothing is known, among them.
    factor: largest err that is accepted. order: p, of the error estimate; 0 where the method has none.
    limits: longest gap that each bucket may cross in one call, in any unit, increasing. splits: whether a gap may be
    split, which takes a model that can let time pass without an observation.

    Raises InputError for buckets that do not increase, a default that is not among them, a factor that is not above
    0, limits that do not match, and several buckets without an error estimate.
    """

    buckets: tuple[int, ...]
    default: int
    factor: float
    order: int
    limits: tuple[float, ...]
    splits: bool = True

    def __post_init__(self) -> None:
        check_buckets(self.buckets)
        if self.default not in self.buckets:
            raise InputError(f"default bucket {self.default} is not among {self.buckets}; choose one of them")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise InputError(f"safety factor {self.factor}; give a finite number above 0")
        rising = all(limit >= 0 for limit in self.limits) and list(self.limits) == sorted(self.limits)
        if len(self.limits) != len(self.buckets) or not rising:
            raise InputError(f"limits {self.limits} do not fit buckets {self.buckets}; give one each, increasing")
        if len(self.buckets) > 1 and self.order < 1:
            raise InputError(
                f"the method has no error estimate, so nothing can choose among buckets {self.buckets}; "
                "give a single bucket, or a method with an estimate such as bosh32"
            )

    @property
    def adaptive(self) -> bool:
        """Whether there is anything to choose: a single bucket is run once, and split only where stability asks."""
        return len(self.buckets) > 1

    def choose(self, gap: float, previous: Accepted | None) -> int:
        """The bucket to try first for `gap`, which must not exceed the largest limit.

        Without a previous call, or where its gap or err was 0, the default (or the smallest stable one above it).
        Where no bucket is predicted to fit, the largest. A gap of 0 takes the smallest: nothing flows.
        """
        buckets = self.buckets
        if gap <= 0 or len(buckets) == 1:
            return buckets[0]
        if previous is None:
            wanted = float(self.default)
        else:
            gap_before, steps, err = previous
            if gap_before > 0 and err > 0:
                wanted = steps * (gap / gap_before) * (err / self.factor) ** (1.0 / (self.order + 1)) * _ROUNDING
            else:
                wanted = float(self.default)
        stable, fits = bisect_left(self.limits, gap), bisect_left(buckets, wanted)
        place = max(stable, fits)
        return buckets[place] if place < len(buckets) else buckets[-1]

    def judge(self, err: float, steps: int, reruns: int, halvings: int) -> Decision:
        """What to do with a result of `err` from bucket `steps`.

        reruns: of this piece so far. halvings: how often the gap was halved to make this piece. An err of NaN is
        never accepted.
        """
        if err <= self.factor:
            return _ACCEPT
        if len(self.buckets) == 1:
            return _FLAG
        if reruns < MAX_RERUNS and steps < self.buckets[-1]:
            return Decision(Verdict.RERUN, self._above(steps, err))
        return _SPLIT if self.splits and halvings < MAX_HALVINGS else _FLAG

    def _above(self, steps: int, err: float) -> int:
        """One bucket above the smallest that the formula expects to fit."""
        excess = err / self.factor
        if not math.isfinite(excess):
            return self.buckets[-1]
        fits = bisect_left(self.buckets, steps * excess ** (1.0 / (self.order + 1)) * _ROUNDING)
        return self.buckets[min(max(fits, bisect_left(self.buckets, steps)) + 1, len(self.buckets) - 1)]


def check_buckets(buckets: Sequence[int]) -> None:
    """InputError unless `buckets` are increasing step counts from 1."""
    if not buckets or buckets[0] < 1 or sorted(set(buckets)) != list(buckets):
        raise InputError(f"buckets are {tuple(buckets)}; give increasing numbers of solver steps, from 1")


def check_tolerances(rtol: float, atol: float) -> None:
    """InputError unless both tolerances are finite and above 0."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; give a finite number above 0, such as 1e-3")
