"""Crossing a gap: the bucket rule applied to one stream's binding.

The state that a crossing starts from stays in the arena until a result is accepted, so a re-run costs no copy. Only
where a gap is split, for stability or for its error, are states in between accepted; the state before is then copied
first, and put back if anything fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from odestream.runtime.arena import Arena, Layout
from odestream.runtime.backends import Binding
from odestream.runtime.clock import Clock
from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import MAX_HALVINGS, SPLIT_FIRST, Accepted, BucketRule, Decision, Verdict
from odestream.runtime.errors import StateError
from odestream.runtime.gaps import GapRule

Write = Callable[[], None]
"""Writes x and mask of a call into the binding's inputs."""

_ACCEPT, _RERUN, _SPLIT, _FLAG = Verdict  # looked up once: they are compared at every call


@dataclass(slots=True)
class Crossing:
    """What has become of a gap so far.

    previous: what is known of the stream's calls, from which the next bucket is chosen. last, now: the ticks between
    which the gap lies, for a GapSolver. err: largest error of the accepted pieces (see `BucketRule.error`). flagged:
    whether one of them was above the factor. accepted, rejected: bucket of each call.
    """

    previous: Accepted | None
    last: int = 0
    now: int = 0
    err: float = 0.0
    flagged: bool = False
    accepted: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()

    def weigh(self, rule: BucketRule, gap: int, err: float, steps: int, reruns: int, halvings: int) -> Decision:
        """What `rule` says of a run of `gap` ticks in bucket `steps`, taken down; see `BucketRule.judge`."""
        decision = rule.judge(err, steps, reruns, halvings)
        verdict = decision.verdict
        if verdict is _SPLIT and gap < 2:
            decision, verdict = Decision(_FLAG, 0), _FLAG
        if verdict is _ACCEPT or verdict is _FLAG:
            self.accepted += (steps,)
            if verdict is _FLAG:
                self.flagged = True
            self.err = max(self.err, rule.error(err, steps))
        else:
            self.rejected += (steps,)
        # A call over no time says nothing of the next one; what is known of a whole tells where its halves begin.
        if gap > 0 and verdict is not _RERUN:
            self.previous = rule.remember(self.previous, gap, steps, err)
        return decision


class GapSolver:
    """Crosses gaps of one stream; times are ticks.

    labels: bucket → name of its graph. longest: most ticks that one call crosses.
    """

    def __init__(self, manifest: Manifest, clock: Clock, binding: Binding, rule: BucketRule) -> None:
        self.rule = rule
        self.labels = {n: str(n) if manifest.solver else NO_SOLVER for n in rule.buckets}
        self.longest = rule.limits[-1]
        self._gaps = GapRule(manifest, clock, self.labels[rule.buckets[-1]])
        self._clock = clock
        self._binding = binding
        self._dt = binding.inputs["dt"][0] if "dt" in binding.inputs else None
        self._phase = binding.inputs["phase"][0] if "phase" in binding.inputs else None
        estimates = manifest.solver is None or manifest.solver.error_estimate
        self._err = Layout(manifest.spec.outputs, 1).offsets.get("err") if estimates else None
        self._state = Layout(manifest.spec.state, 1)

    def set_phase(self, tick: int) -> None:
        """The phase of the next call, whose gap begins at `tick`."""
        if self._phase is not None:
            self._clock.phase_into(tick, self._phase)

    def set_gap(self, gap: int) -> None:
        """The dt of the next call."""
        if self._dt is not None:
            self._dt[0] = self._clock.units(gap)

    def begin(self, crossing: Crossing) -> int:
        """Set dt of a gap to be crossed in one call; the bucket to try first, 0 where it takes several calls."""
        gap = crossing.now - crossing.last
        if gap > self.longest:
            return 0
        if self._dt is not None:
            self._dt[0] = self._clock.units(gap)
        return self.rule.choose(gap, crossing.previous, 0 if gap > 1 else MAX_HALVINGS)

    def try_once(self, crossing: Crossing) -> bool:
        """Cross the gap in one call, in as many buckets as the rule asks for; False where it takes several calls.

        The result is in the binding's outputs and next arena, not yet accepted there.
        """
        steps = self.begin(crossing)
        return steps > 0 and self._settle(crossing, crossing.now - crossing.last, steps, 0)

    def weigh(self, crossing: Crossing, gap: int, steps: int, reruns: int, halvings: int = 0) -> Decision:
        """Judge the result that a run in bucket `steps` has left in the binding; see `BucketRule.judge`.

        One that is not finite has an infinite err: more steps may cure it. Raises StateError where nothing is left
        to try.
        """
        binding = self._binding
        finite = binding.finite()
        err = 0.0 if self._err is None else float(binding.flat_outputs[self._err])
        decision = crossing.weigh(self.rule, gap, err if finite else math.inf, steps, reruns, halvings)
        if decision.verdict is _FLAG and not finite:
            raise StateError(self._describe_not_finite(binding.next_arena))
        return decision

    def cross(self, crossing: Crossing, nothing: Write, arrive: Write) -> None:
        """Cross the gap in several calls, of which only the last sees what `arrive` writes.

        A gap that one call may cross is split for its error, tried before or not; a longer one is cut for stability.
        All pieces but the last are accepted in the binding. Whoever calls this puts the state back after an error.
        """
        last, now = crossing.last, crossing.now
        if now - last <= self.longest:
            middle = last + (now - last) // 2
            pieces = [(now, 1), (middle, 1)]
        else:
            pieces = [(end, 0) for end in reversed(self._gaps.cut(last, now))]
        start, binding = last, self._binding
        while pieces:
            end, halvings = pieces.pop()
            (arrive if end == now else nothing)()
            gap = end - start
            self.set_gap(gap)
            steps = self.rule.choose(gap, crossing.previous, halvings if gap > 1 else MAX_HALVINGS)
            if steps == SPLIT_FIRST or not self._settle(crossing, gap, steps, halvings):
                pieces += [(end, halvings + 1), (start + gap // 2, halvings + 1)]
            elif end != now:
                binding.swap()
                self.set_phase(end)
                start = end

    def _settle(self, crossing: Crossing, gap: int, steps: int, halvings: int) -> bool:
        """Run and re-run one piece, dt, x and mask being set; False where it must be split."""
        binding, reruns = self._binding, 0
        while True:
            binding.run(self.labels[steps])
            verdict, wanted = self.weigh(crossing, gap, steps, reruns, halvings)
            if verdict is not _RERUN:
                return verdict is not _SPLIT
            steps, reruns = wanted, reruns + 1

    def _describe_not_finite(self, arena: Arena) -> str:
        """The sentence of a StateError, naming the members that are not finite."""
        members = [f"state {name}" for name, view in self._state.views(arena).items() if not np.isfinite(view).all()]
        what = ", ".join(members) or "an output"
        return f"{what} became NaN or infinite; the step was discarded, check that x is in the training data's unit"
