"""The safety factor: how small the solver's estimate must be for a result to be trusted.

What is wanted: of the calls that a runtime does not flag, at most one in a hundred lies beyond the tolerance, on every
kind of call. A factor f is tried by doing what a runtime with it would do, and counting: n unflagged calls, k of them
beyond tolerance. Were the true share 1 % or more, so few would be seen with probability P(Bin(n, 0.01) <= k) at most
(an exact binomial test; it holds too where the chances differ from call to call: Hoeffding 1956, On the distribution
of the number of successes in independent trials). Where that is below a level, "f misses too often" is rejected at it.
This is Learn then Test (Angelopoulos, Bates, Candès, Jordan, Lei 2021, arXiv:2110.01052), with these choices:

    kinds     f must be rejected on each kind, so the largest of their probabilities counts, and needs no correction
              (intersection-union test, Berger 1982)
    factors   a fixed order: from 0.5 upwards as long as each is rejected at 2.5 %, which needs no correction. Where
              0.5 itself is not: from the smallest that leaves enough calls unflagged (no true error is looked at for
              that) upwards, at 2.5 % again. By the union bound the chance to take a factor with a share above 1 % is
              at most 5 %

Before that, each bucket gets a ratio of true to estimated error, without which one factor must suit the bucket whose
estimate understates most: finer graphs overstate theirs many times, since the flow forgets the errors of its first
steps, and would be rejected for nothing (on gaps of 0.05 to 5 units twice the evaluations). The ratio is one over the
largest estimate up to which at most 0.5 % of the calls that this bucket crosses at once are beyond tolerance, on the
kind where that is least. The ratios are read from the half that the factor is chosen on, which makes the test above
somewhat optimistic, as do records too short to give enough calls, which are read more than once. What is measured on
the other half knows neither, and is what the manifest publishes.

Conformal prediction (Vovk, Gammerman, Shafer 2005) would take a quantile of the true errors instead; it cannot be had
here, since f decides which buckets run and so which errors there are. Two things the promise leans on: calls count as
independent, while those of one chain resemble each other, and calls to come must be like those of the three kinds. So
the factor is chosen on one half of the streams and what it keeps is measured on the other, once; only these counts are
published, and where they show less than 99 % the model counts as uncalibrated.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from odestream.export.adaptive_flow import REFERENCE, AdaptiveFlow, Crossed, reference, true_errors
from odestream.export.calibration_samples import KINDS, Samples, make_samples, plentiful, synthetic_streams
from odestream.export.plan import source
from odestream.export.threads import one_thread
from odestream.models.cell import Cell
from odestream.models.held_out import WALKED_STEPS, HeldOut
from odestream.runtime.contract.manifest import Calibration, CoverageRow, Manifest, SolverSpec
from odestream.runtime.contract.tableau import tableau
from odestream.runtime.errors import ExportError

TARGET, CONFIDENCE = 0.99, 0.95
BEYOND = 0.005  # share of a bucket's calls that may be beyond tolerance where its ratio is read
FEWEST_CALLS = 100  # of a kind and bucket, to read a ratio from
RATIOS = (1 / 8, 8.0)  # least and largest
LARGE, SMALL = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0), (0.1, 0.15, 0.2, 0.3, 0.4)
LEVEL = (1 - CONFIDENCE) / 2  # of either climb
ENOUGH = 370  # unflagged calls without a miss that a factor can be judged by at this level
DRAWS = 3  # of gaps for every state where there is one bucket: many of its calls are flagged, and few are left to judge
UNKNOWN_FACTOR = 1.0  # of a method without an estimate
HELD_OUT, SYNTHETIC = "held-out", "synthetic"
SEED = 0
CHOOSE, MEASURE = 0, 1

Floats = NDArray[np.float64]


class Outcome(NamedTuple):
    """What came of some calls of one kind: err as a runtime reports it and the true error, [N] each, in units of the
    tolerance; whether flagged [N]; accepted and rejected runs by bucket."""

    kind: str
    err: Floats
    error: Floats
    flagged: NDArray[np.bool_]
    accepted: Counter[int]
    rejected: Counter[int]

    @property
    def unflagged(self) -> int:
        """Calls that are not flagged."""
        return int((~self.flagged).sum())

    @property
    def misses(self) -> int:
        """Unflagged calls beyond tolerance."""
        return int((self.error[~self.flagged] > 1).sum())

    @property
    def share(self) -> float:
        """Of the unflagged calls, those within tolerance; 0 where all are flagged."""
        return 1 - self.misses / self.unflagged if self.unflagged else 0.0

    def row(self, method: str) -> CoverageRow:
        """As the manifest says it."""
        trusted, distrusted = self.error[~self.flagged], self.error[self.flagged]
        runs = self.accepted + self.rejected
        evaluations = sum(count * tableau(method).evaluations(steps) for steps, count in runs.items())
        return CoverageRow(
            kind=self.kind,
            calls=len(self.err),
            flagged=len(distrusted),
            within=self.unflagged - self.misses,
            worst=float(trusted.max(initial=0.0)),
            worst_flagged=float(distrusted.max(initial=0.0)),
            buckets={str(steps): count for steps, count in sorted(self.accepted.items())},
            rejected={str(steps): count for steps, count in sorted(self.rejected.items())},
            evaluations=evaluations / max(1, len(self.err)),
        )


class Calibrated(NamedTuple):
    """A factor and the ratios by bucket, what the manifest says of them, and the measured calls behind that."""

    factor: float
    ratios: tuple[float, ...]
    record: Calibration
    measured: tuple[Outcome, ...]


class Judge:
    """Calls of one kind beside their reference answers, ready to be tried by any factor and ratios."""

    def __init__(self, cell: Cell, manifest: Manifest, samples: Samples) -> None:
        solver = _solver(manifest)
        self.samples, self._tolerances = samples, (solver.rtol, solver.atol)
        self._flow = AdaptiveFlow(cell, manifest, samples)
        self._flow.prepare()
        units = samples.gap / manifest.time.ticks_per_model_unit
        self._expected = reference(cell, samples, units)

    def outcome(self, factor: float, ratios: tuple[float, ...] = (), rows: NDArray[np.int64] | None = None) -> Outcome:
        """What comes of the calls `rows` (whole chains, all unless given) with a safety factor and ratios."""
        rows = np.arange(len(self.samples.gap)) if rows is None else rows
        crossed = self._flow.cross(dataclasses.replace(self._flow.rule, factor=factor, ratios=ratios), rows)
        return _outcome(self.samples.kind, crossed, self._errors(crossed, rows))

    def trusted_estimate(self, steps: int) -> tuple[float, bool]:
        """Largest estimate of bucket `steps` up to which at most BEYOND of the calls to choose on are beyond tolerance.

        And whether some estimate above it was seen: where none was, it only says how far the calls went.
        """
        rows, err, after = self._flow.prepared(self.half(CHOOSE), steps)
        if len(rows) < FEWEST_CALLS:
            return 0.0, False
        order = np.argsort(err)
        error = true_errors(self.samples.h[rows], after, self._expected[rows], *self._tolerances)
        wrong = (error[order] > 1) | ~np.isfinite(err[order])
        kept = np.flatnonzero((np.cumsum(wrong) <= BEYOND * np.arange(1, len(rows) + 1)) & np.isfinite(err[order]))
        return float(err[order][kept[-1]]) if len(kept) else 0.0, not len(kept) or kept[-1] < len(rows) - 1

    def half(self, side: int) -> NDArray[np.int64]:
        """The calls to choose on (0) or to measure on (1)."""
        return np.flatnonzero(self.samples.half == side)

    def _errors(self, crossed: Sequence[Crossed], rows: NDArray[np.int64]) -> Floats:
        if not crossed:
            return np.empty(0)
        places, after = torch.from_numpy(rows), torch.stack([one.h for one in crossed])
        return true_errors(self.samples.h[places], after, self._expected[places], *self._tolerances)


def calibrate(
    cell: Cell,
    manifest: Manifest,
    held_out: HeldOut | None,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Calibrated:
    """Choose the factor for `cell` as deployed by `manifest` and measure it; see the module.

    held_out: streams of the run; without enough of them, streams are made up. tick: told what is done, of how much.
    Raises GapError where the bundle could not cross the gaps of its own data.
    """
    with one_thread():
        return _calibrate(cell, manifest, held_out, tick)


def refuse_uncalibrated(factor: float, record: Calibration) -> None:
    """ExportError, naming the worst kind, unless the target is reached."""
    if record.reached:
        return
    raise ExportError(
        f"no safety factor is known to keep {TARGET:.0%} of the unflagged calls within tolerance: "
        f"{_shortcoming(factor, record.rows)}; export buckets of more steps, a looser --rtol and --atol, or pass "
        "--allow-uncalibrated"
    )


def _shortcoming(factor: float, rows: Sequence[CoverageRow]) -> str:
    """Of what kind too many calls were wrong, or too few left unflagged to tell."""
    worst = min(rows, key=lambda row: covered(row) if row.calls > row.flagged else 1.0)
    fewest = min(rows, key=lambda row: row.calls - row.flagged)
    left = fewest.calls - fewest.flagged
    if left < ENOUGH and (left == 0 or covered(worst) >= TARGET):
        return (
            f"these buckets are so coarse for it that even {factor:g} flags {fewest.flagged:,} of {fewest.calls:,} "
            f"calls of the kind {fewest.kind!r}, and leaves too few to judge by ({left})"
        )
    return (
        f"with {factor:g}, the best, {worst.within:,} of {worst.calls - worst.flagged:,} of the kind {worst.kind!r} do "
        f"({covered(worst):.2%}), and {worst.flagged:,} more are flagged"
    )


def covered(row: CoverageRow) -> float:
    """Of the unflagged calls, the share within tolerance; 0 where all are flagged."""
    return row.within / (row.calls - row.flagged) if row.calls > row.flagged else 0.0


def binomial_tail(misses: int, count: int, rate: float) -> float:
    """P(Bin(count, rate) <= misses), for 0 < rate < 1; in logarithms, since the terms leave float64's range."""
    logs = [
        math.lgamma(count + 1)
        - math.lgamma(i + 1)
        - math.lgamma(count - i + 1)
        + i * math.log(rate)
        + (count - i) * math.log1p(-rate)
        for i in range(min(misses, count) + 1)
    ]
    return min(1.0, math.fsum(math.exp(log) for log in logs))


def _calibrate(
    cell: Cell, manifest: Manifest, held_out: HeldOut | None, tick: Callable[[int, int], None]
) -> Calibrated:
    solver, total = _solver(manifest), len(KINDS) + 3
    tick(0, total)
    streams, origin = _streams(cell, manifest, held_out)
    judges = list[Judge]()
    draws = 1 if len(solver.buckets) > 1 else DRAWS
    for samples in make_samples(cell, manifest.time, streams, SEED, draws):
        tick(1 + len(judges), total)
        judges.append(Judge(cell, manifest, samples))
    tick(total - 2, total)
    ratios = tuple(_ratio(judges, steps) for steps in solver.buckets) if solver.error_estimate else ()
    factor, held = _choose(judges, ratios) if solver.error_estimate else (UNKNOWN_FACTOR, False)
    tick(total - 1, total)
    measured = tuple(judge.outcome(factor, ratios, judge.half(MEASURE)) for judge in judges)
    record = Calibration(
        target=TARGET,
        confidence=CONFIDENCE,
        reached=held and all(outcome.share >= TARGET for outcome in measured),
        reference=REFERENCE,
        source=origin,
        chosen_on=sum(len(judge.half(CHOOSE)) for judge in judges) if solver.error_estimate else 0,
        rows=tuple(outcome.row(solver.method) for outcome in measured),
    )
    tick(total, total)
    return Calibrated(factor, ratios, record, measured)


def _choose(judges: Sequence[Judge], ratios: tuple[float, ...]) -> tuple[float, bool]:
    """The factor, and whether it holds; else the one with the best worst kind."""
    tried: dict[float, list[Outcome]] = {}

    def outcomes(factor: float) -> list[Outcome]:
        if factor not in tried:
            tried[factor] = [judge.outcome(factor, ratios, judge.half(CHOOSE)) for judge in judges]
        return tried[factor]

    def climb(factors: Sequence[float]) -> float | None:
        held = None
        for factor in factors:
            if any(binomial_tail(o.misses, o.unflagged, 1 - TARGET) > LEVEL for o in outcomes(factor)):
                break
            held = factor
        return held

    found = climb(LARGE)
    if found is None:
        judged = (f for f in SMALL if all(o.unflagged >= ENOUGH for o in outcomes(f)))
        first = next(judged, SMALL[-1])
        found = climb(SMALL[SMALL.index(first) :])
    if found is not None:
        return found, True
    return max(tried, key=lambda factor: (min(o.share for o in tried[factor]), -factor)), False


def _ratio(judges: Sequence[Judge], steps: int) -> float:
    """What the estimate of bucket `steps` is multiplied by: 1 where nothing was seen to go wrong below 1."""
    found = [judge.trusted_estimate(steps) for judge in judges]
    bounds = [estimate for estimate, bounded in found if bounded]
    trusted = min(bounds) if bounds else max(1.0, *(estimate for estimate, _ in found))
    return float(np.clip(1 / max(trusted, 1e-9), *RATIOS))


def _streams(cell: Cell, manifest: Manifest, held_out: HeldOut | None) -> tuple[HeldOut, str]:
    if held_out is not None and plentiful(held_out):
        return held_out, HELD_OUT
    origin = source(cell, manifest.spec, manifest.solver, manifest.time)
    return synthetic_streams(origin, max(WALKED_STEPS, *_solver(manifest).buckets), SEED), SYNTHETIC


def _solver(manifest: Manifest) -> SolverSpec:
    if manifest.solver is None:
        raise ExportError("a module without a solver has no safety factor; leave the calibration out")
    return manifest.solver


def _outcome(kind: str, crossed: Sequence[Crossed], errors: Floats) -> Outcome:
    accepted = Counter(steps for one in crossed for steps in one.accepted)
    rejected = Counter(steps for one in crossed for steps in one.rejected)
    err, flagged = np.array([one.err for one in crossed]), np.array([one.flagged for one in crossed], np.bool_)
    return Outcome(kind, err, errors, flagged, accepted, rejected)
