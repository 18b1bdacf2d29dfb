"""Solvers of this project in torch: every tableau in every bucket, and an exponential method on trial.

A gap beyond the stability bound of a bucket is crossed in several calls, as a runtime does it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adaptive_probe import Flow
from odestream.models.cell import Cell
from odestream.models.field import SILU_SLOPE, FieldWeights, drive, rotate
from odestream.models.flow import integrate, unrolled_flow
from odestream.runtime.contract.tableau import tableau
from work_precision_points import Errors, Floats

_TOGETHER = 64  # gaps of like length that share the reference's step size
_SERIES = 3e-2  # below, φ functions lose digits to cancellation and their series does not


@dataclass(frozen=True)
class Gaps:
    """What the flow sees of n gaps: h [n, D], u [n, D], phase [n, 2K] or None, dt [n, 1] in model units."""

    h: Tensor
    u: Tensor
    phase: Tensor | None
    dt: Tensor

    @staticmethod
    def of(flows: Sequence[Flow], w: FieldWeights) -> Gaps:
        """From probed flows, in float32 as they were deployed."""

        def stacked(name: str) -> Tensor:
            return torch.tensor(np.stack([np.atleast_1d(getattr(f, name)) for f in flows]), dtype=torch.float32)

        phase = None if w.time is None else stacked("phase")
        return Gaps(stacked("h"), stacked("u"), phase, stacked("gap"))

    def __len__(self) -> int:
        return len(self.h)

    def part(self, rows: slice | Tensor) -> Gaps:
        """Some of the gaps: a slice, places or a mask."""
        phase = None if self.phase is None else self.phase[rows]
        return Gaps(self.h[rows], self.u[rows], phase, self.dt[rows])

    def double(self) -> Gaps:
        """In float64."""
        phase = None if self.phase is None else self.phase.double()
        return Gaps(self.h.double(), self.u.double(), phase, self.dt.double())


@dataclass(frozen=True)
class Judge:
    """A field's weights in float32, and the tolerance that errors are measured in."""

    w: FieldWeights
    rtol: float
    atol: float

    @staticmethod
    def of(cell: Cell) -> Judge:
        """The cell's field and tolerance."""
        return Judge(in_precision(cell.field.weights(), torch.float32), cell.config.rtol, cell.config.atol)

    def errors(self, gaps: Gaps, after: Tensor, expected: Tensor) -> Errors:
        """RMS_i((h − h_ref)_i / (atol + rtol·max(|h₀|, |h_ref|)_i)) of each gap, and the plain RMS."""
        difference = after.double() - expected
        allowed = self.atol + self.rtol * torch.maximum(gaps.h.double().abs(), expected.abs())
        scaled = torch.sqrt(torch.mean((difference / allowed) ** 2, dim=-1))
        return Errors(scaled.numpy(), torch.sqrt(torch.mean(difference**2, dim=-1)).numpy())


@dataclass(frozen=True)
class Solver:
    """A method with a fixed number of steps.

    flow: (h, u, phase, dt, w, steps=, rtol=, atol=) -> (h', err). evaluations: of the field, by steps. longest_step:
    in model units, from λ_max and the Lipschitz bound of the rest of the field.
    """

    name: str
    flow: Callable[..., tuple[Tensor, Tensor]]
    evaluations: Callable[[int], int]
    longest_step: Callable[[float, float], float]

    def cross(self, gaps: Gaps, judge: Judge, steps: int, halvings: int = 0) -> tuple[Tensor, Floats]:
        """h after each gap and its evaluations [n]; every gap, or piece that is stable, is halved `halvings` times."""
        w = judge.w
        longest = steps * self.longest_step(*rates(w))
        calls = torch.clamp(torch.ceil(gaps.dt[:, 0].double() / longest - 1e-9), min=1).long() * 2**halvings
        pieces, after = gaps.dt / calls[:, None], gaps.h.clone()
        for call in range(int(calls.max())):
            still = calls > call
            part, dt = gaps.part(still), pieces[still]
            phase = part.phase
            if phase is not None and w.frequencies is not None:
                phase = rotate(phase, dt * call * w.frequencies)
            options = {"steps": steps, "rtol": judge.rtol, "atol": judge.atol}
            after[still], _ = self.flow(after[still], part.u, phase, dt, w, **options)
        return after, (calls * self.evaluations(steps)).double().numpy()


def rates(w: FieldWeights) -> tuple[float, float]:
    """λ_max, and the Lipschitz bound 1.1·‖A_h‖·‖B‖ of the rest of the field, per model unit."""
    norms = [float(torch.linalg.matrix_norm(m.double(), ord=2)) for m in (w.hidden, w.output)]
    return float(w.decay.max()), SILU_SLOPE * norms[0] * norms[1]


def runge_kutta(method: str) -> Solver:
    """A tableau as `ode_flow` unrolls it."""
    table = tableau(method)

    def longest_step(leak: float, rest: float) -> float:
        return table.real_bound / (leak + rest)

    return Solver(method, partial(unrolled_flow, method=method), table.evaluations, longest_step)


def exponential() -> Solver:
    """ETD-RK2 with embedded ETD1: the leak is exact and sets no bound, the rest is held to that of Heun's method."""
    return Solver("etd-rk21", exponential_flow, lambda steps: 2 * steps, lambda _, rest: 2.0 / rest)


def exponential_flow(
    h: Tensor,
    u: Tensor,
    phase: Tensor | None,
    dt: Tensor,
    w: FieldWeights,
    *,
    steps: int,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """As `unrolled_flow`, by the exponential Runge-Kutta method ETD2RK of Cox & Matthews (2002), equations 20 to 22.

    With f = −λh + N(h, s), steps of δ, z = −λδ, φ₁ = (e^z − 1)/z and φ₂ = (φ₁ − 1)/z:
        a  = e^z·h + δ·φ₁·N(h, s)                     ETD1, the embedded first order
        h' = a + δ·φ₂·(N(a, s + δ) − N(h, s))
    err is the scaled norm of h' − a, as for the Runge-Kutta pairs.
    """
    size = dt / steps
    z = -w.decay * size
    decayed, phi1, phi2 = torch.exp(z), *_phis(z)
    start, errors = h, []
    for n in range(steps):
        now, then = (_rest_input(u, phase, size * k, w) for k in (n, n + 1))
        before = _rest(h, now, w)
        first = decayed * h + size * phi1 * before
        change = size * phi2 * (_rest(first, then, w) - before)
        after = first + change
        ratio = change / (atol + rtol * torch.maximum(torch.abs(h), torch.abs(after)))
        errors.append(torch.sqrt(torch.mean(ratio * ratio, dim=-1, keepdim=True)))
        h = after
    return torch.where(dt > 0, h, start), torch.amax(torch.cat(errors, dim=-1), dim=-1, keepdim=True)


def reference(gaps: Gaps, w: FieldWeights) -> Tensor:
    """h after each gap in float64 by torchdiffeq's dopri5, rtol 1e-9, atol 1e-11; gaps of like length together."""
    wide, exact = gaps.double(), in_precision(w, torch.float64)
    after = torch.empty_like(wide.h)
    for rows in torch.split(torch.argsort(gaps.dt[:, 0]), _TOGETHER):
        of = wide.part(rows)
        after[rows] = integrate(of.h, of.u, of.phase, of.dt, exact, rtol=1e-9, atol=1e-11)
    return after


def in_precision(w: FieldWeights, dtype: torch.dtype) -> FieldWeights:
    """Detached weights of another precision."""
    return FieldWeights(*(None if t is None else t.detach().to(dtype) for t in w))  # type: ignore[arg-type]


def _phis(z: Tensor) -> tuple[Tensor, Tensor]:
    """φ₁ and φ₂ of z ≤ 0; by their series near 0."""
    near = torch.abs(z) < _SERIES
    safe = torch.where(near, torch.ones_like(z), z)
    phi1 = torch.where(near, 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5))), torch.expm1(safe) / safe)
    series2 = 0.5 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * (1 + z / 6))))
    return phi1, torch.where(near, series2, (torch.expm1(safe) / safe - 1) / safe)


def _rest_input(u: Tensor, phase: Tensor | None, after: Tensor, w: FieldWeights) -> Tensor:
    """The part of A·[h, u, φ] that does not depend on h, `after` [n, 1] units from the start."""
    fixed = drive(u, w)
    if phase is None or w.time is None or w.frequencies is None:
        return fixed
    return fixed + F.linear(rotate(phase, after * w.frequencies), w.time)


def _rest(h: Tensor, fixed: Tensor, w: FieldWeights) -> Tensor:
    """N, the field without its leak."""
    return torch.tanh(F.linear(F.silu(F.linear(h, w.hidden) + fixed), w.output))
