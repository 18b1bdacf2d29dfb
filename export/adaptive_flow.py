"""The bucketed-adaptive flow in torch, for many chains of calls at once: what a runtime would do, in batches.

A chain is followed by a generator that reads like the runtime's own loop over one stream. Where it needs a result that
nobody has worked out yet, it pauses; the results that all chains wait for are then worked out together, one batch a
bucket, and kept, so that following the same calls by another safety factor costs next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import linear

from odestream.export.calibration_samples import Rows, Samples, rotated
from odestream.models.cell import Cell
from odestream.models.field import FieldWeights, derivative, drive, rotate
from odestream.models.flow import ode_flow
from odestream.runtime.clock import Clock
from odestream.runtime.contract.manifest import Manifest
from odestream.runtime.contract.rule import MAX_HALVINGS, SPLIT_FIRST, Accepted, BucketRule, Verdict
from odestream.runtime.errors import ExportError
from odestream.runtime.gaps import GapRule, bucket_rule
from odestream.runtime.solving import Crossing

Floats = NDArray[np.float64]

REFERENCE = "torchdiffeq dopri5 in float64, rtol 1e-9, atol 1e-11"
_REFERENCE_RTOL, _REFERENCE_ATOL = 1e-9, 1e-11
_TOGETHER = 192  # calls of like length that share the reference's step size
_OVERFLOW = 1e30  # stands for an error that is not finite, which JSON cannot say


class Place:
    """Where a piece of a gap starts from: h [D] of call `row`, `offset` ticks after the call's beginning.

    after: (gap, steps) -> err and the place that a run ended at.
    """

    __slots__ = ("after", "h", "offset", "row")

    def __init__(self, row: int, offset: int, h: Tensor) -> None:
        self.row, self.offset, self.h = row, offset, h
        self.after: dict[tuple[int, int], tuple[float, Place]] = {}


class Asked(NamedTuple):
    """A run that is needed: from where, over how many ticks, in which bucket."""

    place: Place
    gap: int
    steps: int


class Crossed(NamedTuple):
    """What became of a call: see `Crossing`; h [D] after it."""

    err: float
    flagged: bool
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]
    h: Tensor


Waiting = Generator[Asked, None, None]
Settled = Generator[Asked, None, tuple[Verdict, "Place"]]


class AdaptiveFlow:
    """Crosses the gaps of some calls as a runtime with the bundle of `manifest` would; its rule is that of a runtime.

    Raises GapError where a gap needs more calls than the bundle allows.
    """

    def __init__(self, cell: Cell, manifest: Manifest, samples: Samples) -> None:
        clock = Clock(manifest.time)
        self.rule = bucket_rule(manifest, clock)
        self.samples = samples
        self._cell, self._weights, self._clock = cell, cell.field.weights(), clock
        self._limits = GapRule(manifest, clock, str(self.rule.buckets[-1]))
        self._places = [Place(row, 0, h) for row, h in enumerate(torch.unbind(samples.h))]

    @torch.inference_mode()
    def prepare(self) -> None:
        """Work out every call's first piece in every bucket that is stable for it: big batches are cheap ones."""
        rule, wanted = self.rule, list[Asked]()
        for place, gap in zip(self._places, self.samples.gap.tolist(), strict=True):
            first = self._limits.cut(0, gap)[0]
            stable = (n for n, limit in zip(rule.buckets, rule.limits, strict=True) if first <= limit)
            wanted += [Asked(place, first, steps) for steps in stable]
        self._work_out(wanted)

    def prepared(self, rows: Rows, steps: int) -> tuple[Rows, Floats, Tensor]:
        """Of the calls `rows`, those that bucket `steps` crosses stably at once: which, err [n] and h [n, D] after."""
        ends = [(row, self._places[row].after.get((int(self.samples.gap[row]), steps))) for row in rows.tolist()]
        made = [(row, *end) for row, end in ends if end is not None]
        after = [place.h for _, _, place in made]
        there = np.array([row for row, _, _ in made], np.int64)
        return there, np.array([err for _, err, _ in made]), torch.stack(after) if after else self.samples.h[:0]

    @torch.inference_mode()
    def cross(self, rule: BucketRule, rows: NDArray[np.int64]) -> list[Crossed]:
        """What becomes of the calls `rows` (whole chains) by `rule`, in their order."""
        made: dict[int, Crossed] = {}
        chains = np.split(rows, np.flatnonzero(np.diff(self.samples.chain[rows])) + 1)
        waiting = [self._follow(chain.tolist(), rule, made) for chain in chains]
        while waiting:
            asked, still = list[Asked](), list[Waiting]()
            for chain in waiting:
                need = next(chain, None)
                if need is not None:
                    asked.append(need)
                    still.append(chain)
            self._work_out(asked)
            waiting = still
        return [made[row] for row in rows.tolist()]

    def _follow(self, rows: Sequence[int], rule: BucketRule, made: dict[int, Crossed]) -> Waiting:
        """The calls of one chain, of which each knows the one before."""
        previous: Accepted | None = None
        for row in rows:
            crossing, place = Crossing(previous), self._places[row]
            pieces = [(end, 0) for end in reversed(self._limits.cut(0, int(self.samples.gap[row])))]
            while pieces:
                end, halvings = pieces.pop()
                start, gap = place.offset, end - place.offset
                verdict, after = yield from self._settle(crossing, place, gap, rule, halvings)
                if verdict is Verdict.SPLIT:
                    pieces += [(end, halvings + 1), (start + gap // 2, halvings + 1)]
                else:
                    place = after
            previous = crossing.previous
            made[row] = Crossed(
                crossing.err, crossing.flagged, tuple(crossing.accepted), tuple(crossing.rejected), place.h
            )

    def _settle(self, crossing: Crossing, place: Place, gap: int, rule: BucketRule, halvings: int) -> Settled:
        """Run and re-run one piece."""
        steps, reruns = rule.choose(gap, crossing.previous, halvings if gap > 1 else MAX_HALVINGS), 0
        if steps == SPLIT_FIRST:
            return Verdict.SPLIT, place
        while True:
            if (gap, steps) not in place.after:
                yield Asked(place, gap, steps)
            err, after = place.after[gap, steps]
            decision = crossing.weigh(rule, gap, err, steps, reruns, halvings)
            if decision.verdict is not Verdict.RERUN:
                return decision.verdict, after
            steps, reruns = decision.steps, reruns + 1

    def _work_out(self, wanted: Iterable[Asked]) -> None:
        groups: dict[int, list[Asked]] = {}
        for asked in wanted:
            groups.setdefault(asked.steps, []).append(asked)
        for steps, group in groups.items():
            rows = torch.tensor([a.place.row for a in group])
            h = torch.stack([a.place.h for a in group])
            offset = np.array([self._clock.units(a.place.offset) for a in group])[:, None]
            dt = torch.tensor([[self._clock.units(a.gap)] for a in group])
            after, err = self._flow(h, rows, offset, dt, steps)
            finite = torch.isfinite(after).all(dim=-1) & torch.isfinite(err[:, 0])
            errors = torch.where(finite, err[:, 0], math.inf).tolist()
            for asked, error, end in zip(group, errors, torch.unbind(after), strict=True):
                place = asked.place
                reached = Place(place.row, place.offset + asked.gap, end)
                place.after[asked.gap, asked.steps] = error, reached

    def _flow(self, h: Tensor, rows: Tensor, offset: Floats, dt: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        config, (_, _, u, phase, *_) = self._cell.config, self.samples
        moved = None if phase is None else rotated(phase[rows], offset, config.frequencies)
        return ode_flow(
            h,
            u[rows],
            moved,
            dt,
            self._weights,
            method=config.method,
            steps=steps,
            rtol=config.rtol,
            atol=config.atol,
        )


@torch.inference_mode()
def reference(cell: Cell, samples: Samples, units: Floats) -> Tensor:
    """h [N, D] after each call in float64, `units` [N] model units later, by the reference solver.

    Calls of like length are solved together, since a batch shares one step size.
    """
    from torchdiffeq import odeint  # brings scipy along, half a second that no other way needs

    w = FieldWeights(*(None if t is None else t.double() for t in cell.field.weights()))  # type: ignore[arg-type]
    order, found = np.argsort(units, kind="stable"), torch.empty(samples.h.shape, dtype=torch.float64)
    for place in range(0, len(order), _TOGETHER):
        rows = torch.from_numpy(order[place : place + _TOGETHER])
        phase = None if samples.phase is None else samples.phase[rows].double()
        field = _exact_field(samples.u[rows].double(), phase, torch.from_numpy(units[rows.numpy()])[:, None], w)
        start, ends = samples.h[rows].double(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        try:
            found[rows] = odeint(field, start, ends, rtol=_REFERENCE_RTOL, atol=_REFERENCE_ATOL, method="dopri5")[-1]
        except AssertionError as cause:  # what torchdiffeq raises where it cannot go on
            raise ExportError(
                f"the reference solver cannot cross a calibration call ({cause}): a state of the held-out streams is "
                "not finite or the field is too steep; look for outliers in their x, or train again"
            ) from cause
    return found


def _exact_field(u: Tensor, phase: Tensor | None, dt: Tensor, w: FieldWeights) -> Callable[[Tensor, Tensor], Tensor]:
    """dh/ds = dt·f(s, h) for s from 0 to 1; what stays constant is worked out once, a third of the time."""
    constant = drive(u, w)

    def field(s: Tensor, h: Tensor) -> Tensor:
        fixed = constant
        if phase is not None and w.time is not None and w.frequencies is not None:
            fixed = constant + linear(rotate(phase, s * dt * w.frequencies), w.time)
        return dt * derivative(h, fixed, w)

    return field


def true_errors(before: Tensor, after: Tensor, expected: Tensor, rtol: float, atol: float) -> Floats:
    """RMS_i((h − h_ref)_i / (atol + rtol·max(|h₀|, |h_ref|)_i)) of each row, h₀, h, h_ref [N, D]; finite."""
    allowed = atol + rtol * torch.maximum(before.double().abs(), expected.abs())
    ratio = (after.double() - expected) / allowed
    errors: Floats = torch.sqrt(torch.mean(ratio * ratio, dim=-1)).numpy()
    return np.nan_to_num(errors, nan=_OVERFLOW, posinf=_OVERFLOW)
