"""The rule of bucketed-adaptive solving: which bucket to try, and what to do with what came of it.

A bucket is a graph with N solver steps. Pure functions of numbers, so that a runtime, the calibration at export and
a test apply the same rule. With p the order of the method's estimate, which falls as N^−(p+1), and ratio_N what the
estimate of bucket N is multiplied by to tell the true error (calibrated; 1 where nothing is known):

    choose   before a call: the smallest stable bucket whose predicted error fits,
             ratio_N · err_prev · (gap/gap_prev · N_prev/N)^(p+1) <= factor; where none does, a split at once
    judge    after it: accept where ratio_N · err <= factor; otherwise re-run from the untouched state in the bucket one
             above the formula, at most twice; then split the gap into halves, each of which the rule is applied to
             anew, down to a limit; then flag

A result that is returned with an error above the factor is flagged, always.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from odestream.runtime.errors import InputError

MAX_RERUNS = 2
"""Re-runs of one piece of a gap before it is split."""
MAX_HALVINGS = 3
"""How often a piece may be halved: one gap becomes at most 8 pieces for its error's sake."""
MOST_STEPS = 256
"""Of a bucket: a larger graph takes minutes to export, and splitting the gap gives the same."""
SPLIT_FIRST = 0
"""What `choose` gives where no bucket is expected to fit."""

_FADING = 0.9
"""To the power p+1, how slowly a stream forgets that it was harder to solve than its last call: calls alternate
between hard and easy, and the easy one alone foretells the hard one badly. Measured on log-uniform gaps of three
trained models, before buckets had ratios: re-runs 15, 6, 22 % of the steps with the last call alone, 5, 4, 11 % so,
evaluations no more."""

_ROUNDING = 1 - 1e-9
"""So that a bucket which fits exactly is not missed by the last digit."""


class Accepted(NamedTuple):
    """What is known of a stream's calls so far, as if of the last: a gap (in the unit of the rule's limits), the solver
    steps it took and the method's own estimate, without a ratio."""

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
    factor: largest error that is accepted. order: p, of the error estimate; 0 where the method has none.
    limits: longest gap that each bucket may cross in one call, in any unit, increasing. splits: whether a gap may be
    split, which takes a model that can let time pass without an observation. ratios: by bucket; all 1 unless given.
    capacities: N·(factor/ratio_N)^(1/(p+1)); a bucket fits where this reaches N·err^(1/(p+1)).

    Raises InputError for buckets that do not increase, a default that is not among them, a factor or ratio that is not
    above 0, limits that do not match, and several buckets without an error estimate.
    """

    buckets: tuple[int, ...]
    default: int
    factor: float
    order: int
    limits: tuple[float, ...]
    splits: bool = True
    ratios: tuple[float, ...] = ()
    capacities: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._check()
        ratios = self.ratios or (1.0,) * len(self.buckets)
        power = 1.0 / (self.order + 1)
        each = (n * (self.factor / ratio) ** power for n, ratio in zip(self.buckets, ratios, strict=True))
        object.__setattr__(self, "ratios", ratios)
        object.__setattr__(self, "capacities", tuple(each))

    def _check(self) -> None:
        check_buckets(self.buckets)
        if self.default not in self.buckets:
            raise InputError(f"default bucket {self.default} is not among {self.buckets}; choose one of them")
        if not (self.factor > 0 and math.isfinite(self.factor)):
            raise InputError(f"safety factor {self.factor}; give a finite number above 0")
        if not all(ratio > 0 and math.isfinite(ratio) for ratio in self.ratios):
            raise InputError(f"ratios {self.ratios}; give finite numbers above 0")
        if self.ratios and len(self.ratios) != len(self.buckets):
            raise InputError(f"ratios {self.ratios} do not fit buckets {self.buckets}; give one each")
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

    def choose(self, gap: float, previous: Accepted | None, halvings: int) -> int:
        """The bucket to try first for `gap`, which must not exceed the largest limit.

        halvings: how often the gap was halved before. Without a previous call, or where its gap or err was 0, the
        default (or the smallest stable one above it). A gap of 0 takes the smallest: nothing flows. Where no bucket is
        predicted to fit, SPLIT_FIRST if the gap may be halved once more, else the largest.
        """
        buckets = self.buckets
        if gap <= 0 or len(buckets) == 1:
            return buckets[0]
        stable = bisect_left(self.limits, gap)
        if previous is not None:
            gap_before, steps, err = previous
            if gap_before > 0 and err > 0:
                fits = self._fits(steps * (gap / gap_before) * err ** (1.0 / (self.order + 1)) * _ROUNDING, stable)
                if fits < len(buckets):
                    return buckets[fits]
                return SPLIT_FIRST if self.splits and halvings < MAX_HALVINGS else buckets[-1]
        return buckets[min(max(stable, bisect_left(buckets, self.default)), len(buckets) - 1)]

    def _fits(self, wanted: float, first: int) -> int:
        """Place of the smallest bucket from `first` on whose capacity reaches `wanted`; beyond all if none."""
        capacities = self.capacities
        for place in range(first, len(capacities)):
            if capacities[place] >= wanted:
                return place
        return len(capacities)

    def error(self, err: float, steps: int) -> float:
        """The error that the estimate `err` of bucket `steps` stands for, in units of the tolerance."""
        return err * self.ratios[bisect_left(self.buckets, steps)]

    def judge(self, err: float, steps: int, reruns: int, halvings: int) -> Decision:
        """What to do with a result whose estimate is `err` from bucket `steps`.

        reruns: of this piece so far. halvings: how often the gap was halved to make this piece. An err of NaN is
        never accepted.
        """
        place = bisect_left(self.buckets, steps)
        if err * self.ratios[place] <= self.factor:
            return _ACCEPT
        last = len(self.buckets) - 1
        if last == 0:
            return _FLAG
        if reruns < MAX_RERUNS and place < last:
            return Decision(Verdict.RERUN, self._above(steps, err, place))
        return _SPLIT if self.splits and halvings < MAX_HALVINGS else _FLAG

    def remember(self, previous: Accepted | None, gap: float, steps: int, err: float) -> Accepted:
        """What is known after a call over `gap` that was not run again: this call, or the one before if it was harder.

        The harder one is kept as the estimate that it foretold for this call, and fades.
        """
        power = self.order + 1
        if previous is not None and previous.gap > 0 and err > 0 and 0 < previous.err < math.inf:
            foretold = previous.err * (_FADING * gap / previous.gap * previous.steps / steps) ** power
            err = max(err, foretold)
        return Accepted(gap, steps, err)

    def _above(self, steps: int, err: float, place: int) -> int:
        """One bucket above the smallest that the formula expects to fit."""
        if not math.isfinite(err):
            return self.buckets[-1]
        fits = self._fits(steps * err ** (1.0 / (self.order + 1)) * _ROUNDING, place)
        return self.buckets[min(fits + 1, len(self.buckets) - 1)]


def check_buckets(buckets: Sequence[int]) -> None:
    """InputError unless `buckets` are increasing step counts from 1."""
    if not buckets or buckets[0] < 1 or sorted(set(buckets)) != list(buckets):
        raise InputError(f"buckets are {tuple(buckets)}; give increasing numbers of solver steps, from 1")
    if buckets[-1] > MOST_STEPS:
        raise InputError(f"bucket {buckets[-1]} unrolls more than {MOST_STEPS} solver steps; give fewer")


def check_tolerances(rtol: float, atol: float) -> None:
    """InputError unless both tolerances are finite and above 0."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; give a finite number above 0, such as 1e-3")
