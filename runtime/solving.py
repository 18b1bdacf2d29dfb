"""Crossing a gap: the bucket rule applied to one stream's binding.

The state that a crossing starts from stays in the arena until a result is accepted, so a re-run costs no copy. Only
where a gap is split, for stability or for its error, are states in between accepted; the state before is then copied
first, and put back if anything fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from odestream.runtime.arena import Arena, Layout, all_finite
from odestream.runtime.backends import Binding
from odestream.runtime.clock import Clock
from odestream.runtime.contract.checks import NO_SOLVER
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import Accepted, BucketRule, Verdict
from odestream.runtime.errors import StateError
from odestream.runtime.gaps import GapRule

Write = Callable[[], None]
"""Writes x and mask of a call into the binding's inputs."""


@dataclass(slots=True)
class Crossing:
    """What has become of a gap so far.

    previous: the last accepted call of the stream, from which the next bucket is chosen. err: largest of the accepted
    pieces. flagged: whether one of them was above the factor. accepted, rejected: bucket of each call.
    """

    previous: Accepted | None
    err: float = 0.0
    flagged: bool = False
    accepted: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)


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

    def try_once(self, crossing: Crossing, gap: int) -> bool:
        """Cross `gap` in one call, in as many buckets as the rule asks for; False where it asks for a split.

        The result is in the binding's outputs and next arena, not yet accepted there.
        """
        self.set_gap(gap)
        return self._settle(crossing, gap, self.rule.choose(gap, crossing.previous), 0)

    def weigh(self, crossing: Crossing, gap: int, steps: int, reruns: int, halvings: int = 0) -> tuple[Verdict, int]:
        """Judge the result that a run in bucket `steps` has left in the binding; see `BucketRule.judge`.

        Raises StateError where it is not finite.
        """
        binding = self._binding
        if not (all_finite(binding.next_arena) and all_finite(binding.flat_outputs)):
            raise StateError(self._describe_not_finite(binding.next_arena))
        err = 0.0 if self._err is None else float(binding.flat_outputs[self._err])
        decision = self.rule.judge(err, steps, reruns, halvings)
        verdict = decision.verdict
        if verdict is Verdict.SPLIT and gap < 2:
            verdict = Verdict.FLAG
        if verdict is Verdict.ACCEPT or verdict is Verdict.FLAG:
            crossing.accepted.append(steps)
            crossing.flagged |= verdict is Verdict.FLAG
            crossing.err = max(crossing.err, err)
            if gap > 0:  # a call over no time says nothing of the next one
                crossing.previous = Accepted(gap, steps, err)
        else:
            crossing.rejected.append(steps)
            if verdict is Verdict.SPLIT:  # what is known of the whole tells where the halves begin
                crossing.previous = Accepted(gap, steps, err)
        return verdict, decision.steps

    def cross(self, crossing: Crossing, last: int, now: int, nothing: Write, arrive: Write, halved: bool) -> None:
        """Cross from tick `last` to `now` in several calls, of which only the last sees what `arrive` writes.

        halved: the gap was tried in one call and must be split for its error; else it is cut for stability. All
        pieces but the last are accepted in the binding. Whoever calls this puts the state back after an error.
        """
        if halved:
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
            if not self._settle(crossing, gap, self.rule.choose(gap, crossing.previous), halvings):
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
            if verdict is not Verdict.RERUN:
                return verdict is not Verdict.SPLIT
            steps, reruns = wanted, reruns + 1

    def _describe_not_finite(self, arena: Arena) -> str:
        """The sentence of a StateError, naming the members that are not finite."""
        members = [f"state {name}" for name, view in self._state.views(arena).items() if not np.isfinite(view).all()]
        what = ", ".join(members) or "an output"
        return f"{what} became NaN or infinite; the step was discarded, check that x is in the training data's unit"
