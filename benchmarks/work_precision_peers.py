"""Other people's solvers on the same gaps: torchdiffeq, diffrax and torchode, each as its users run it.

A peer has settings, from the loosest: tolerances 2⁻ᵏ times the stated ones, or numbers of fixed steps. All integrate
dh/ds = dt·f(s, h) for s from 0 to 1 in float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odestream.models.config import BUCKETS
from odestream.models.field import FieldWeights, derivative, drive, rotate
from work_precision_points import Floats, steps_text
from work_precision_solvers import Gaps, in_precision

TIGHTENINGS = (0, 1, 2, 3, 4, 5, 6)
COUPLED = 64
OPTIONAL = ("diffrax", "torchode")
_MAX_STEPS = 4096
_DIFFRAX = {"Bosh3": 3, "Tsit5": 6}  # evaluations of a step beyond its first stage, which the last step gave
_FIELD_ROUNDING = 1e-11
_STARTS = 2  # evaluations before the first step: the first stage, and one to choose the first step's size

Solve = Callable[[Gaps, int], tuple[Tensor, Floats]]
Call = Callable[[int], object]


@dataclass(frozen=True)
class Peer:
    """Somebody else's solver on one field.

    settings: from the loosest; says: one of them in words. solve: (gaps, setting) -> h [n, D] and evaluations [n] of
    each gap. call: (gaps, setting) -> what crosses the i-th `together` gaps when it is called, for timing.
    tolerances: whether settings are tolerances. fast: whether a call takes less than a millisecond.
    """

    name: str
    settings: tuple[int, ...]
    says: Callable[[int], str]
    solve: Solve
    call: Callable[[Gaps, int], Call]
    together: int = 1
    tolerances: bool = True
    fast: bool = False


def missing() -> list[str]:
    """Optional packages that are not installed."""
    return [name for name in OPTIONAL if importlib.util.find_spec(name) is None]


def versions() -> dict[str, str]:
    """Of the installed packages that are compared with."""
    packages = ("torchdiffeq", "diffrax", "jax", "torchode")
    return {name: metadata.version(name) for name in packages if importlib.util.find_spec(name) is not None}


def peers(w: FieldWeights, rtol: float, atol: float, settings: Sequence[int] = TIGHTENINGS) -> list[Peer]:
    """The installed peers on the field of `w` (float32)."""
    tolerances = partial(_scaled, rtol, atol)
    found = [_torchdiffeq(w, tolerances, settings, 1), _torchdiffeq(w, tolerances, settings, COUPLED), _fixed_rk4(w)]
    absent = missing()
    if "diffrax" not in absent:
        found += [_diffrax(w, tolerances, settings, name, together) for name in _DIFFRAX for together in (1, COUPLED)]
    if "torchode" not in absent:
        found.append(_torchode(w, tolerances, settings))
    return found


def diffrax_agreement(gaps: Gaps, w: FieldWeights) -> float | None:
    """Largest difference between the field in JAX and in torch, float64, at three times; None without diffrax.

    Raises ValueError where it is more than rounding: the peers would then solve another problem.
    """
    if "diffrax" in missing():
        return None
    from work_precision_diffrax import derivative_in_float64

    wide, exact, worst = gaps.double(), in_precision(w, torch.float64), 0.0
    for place, s in enumerate((0.0, 0.3, 1.0)):
        part = wide.part(slice(place, place + 1))
        ours = Rescaled(part, exact)(torch.tensor(s, dtype=torch.float64), part.h)[0]
        row = (part.h[0], drive(part.u, exact)[0], None if part.phase is None else part.phase[0], part.dt[0])
        worst = max(worst, float(np.abs(derivative_in_float64(row, exact, s) - ours.numpy()).max()))
    if worst > _FIELD_ROUNDING:
        raise ValueError(f"the field in JAX differs from torch's by {worst:.1e}; write it as models/field.py does")
    return worst


class Rescaled:
    """dh/ds of some gaps, for solvers in torch; counts its evaluations."""

    def __init__(self, gaps: Gaps, w: FieldWeights) -> None:
        self.count = 0
        self._gaps, self._w, self._fixed = gaps, w, drive(gaps.u, w)

    def __call__(self, s: Tensor, h: Tensor) -> Tensor:
        """At s, one for all gaps or one for each."""
        self.count += 1
        gaps, w, fixed = self._gaps, self._w, self._fixed
        if gaps.phase is not None and w.time is not None and w.frequencies is not None:
            angle = s.reshape(-1, 1) * gaps.dt * w.frequencies
            fixed = fixed + torch.nn.functional.linear(rotate(gaps.phase, angle), w.time)
        return gaps.dt * derivative(h, fixed, w)


def _scaled(rtol: float, atol: float, tightening: int) -> tuple[float, float]:
    return rtol * 2.0**-tightening, atol * 2.0**-tightening


def _tolerance_text(tightening: int) -> str:
    return "stated tolerance" if tightening == 0 else f"tolerance / {2**tightening}"


Tolerances = Callable[[int], tuple[float, float]]


def _torchdiffeq(w: FieldWeights, tolerances: Tolerances, settings: Sequence[int], together: int) -> Peer:
    from torchdiffeq import odeint

    ends = torch.tensor([0.0, 1.0])

    def cross(gaps: Gaps, setting: int) -> tuple[Tensor, int]:
        rtol, atol = tolerances(setting)
        field = Rescaled(gaps, w)
        try:
            return odeint(field, gaps.h, ends, rtol=rtol, atol=atol, method="dopri5")[-1], field.count
        except AssertionError:  # how it says that its step size underflows
            return torch.full_like(gaps.h, torch.nan), field.count

    name = "torchdiffeq dopri5, one by one" if together == 1 else f"torchdiffeq dopri5, {together} coupled"
    return _in_batches(name, cross, settings, together)


def _in_batches(
    name: str, cross: Callable[[Gaps, int], tuple[Tensor, int]], settings: Sequence[int], together: int
) -> Peer:
    """A peer whose rows share every evaluation."""

    def solve(gaps: Gaps, setting: int) -> tuple[Tensor, Floats]:
        after, evaluations = [], []
        for start in range(0, len(gaps), together):
            part = gaps.part(slice(start, start + together))
            h, count = cross(part, setting)
            after.append(h)
            evaluations += [float(count)] * len(part)
        return torch.cat(after), np.array(evaluations)

    def call(gaps: Gaps, setting: int) -> Call:
        return lambda i: cross(gaps.part(slice(i * together, (i + 1) * together)), setting)

    return Peer(name, tuple(settings), _tolerance_text, solve, call, together)


def _fixed_rk4(w: FieldWeights) -> Peer:
    from torchdiffeq import odeint

    def cross(gaps: Gaps, steps: int) -> tuple[Tensor, int]:
        field = Rescaled(gaps, w)
        h = odeint(field, gaps.h, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 1.0 / steps})[-1]
        return h, field.count

    def solve(gaps: Gaps, steps: int) -> tuple[Tensor, Floats]:
        h, count = cross(gaps, steps)  # with a fixed number of steps, rows in a batch do not meet
        return h, np.full(len(gaps), float(count))

    def call(gaps: Gaps, steps: int) -> Call:
        return lambda i: cross(gaps.part(slice(i, i + 1)), steps)

    return Peer("torchdiffeq rk4, fixed steps", BUCKETS, steps_text, solve, call, tolerances=False)


def _torchode(w: FieldWeights, tolerances: Tolerances, settings: Sequence[int]) -> Peer:
    """Each row adapts alone, but all rows of a batch are evaluated until the last is done."""
    import torchode

    def cross(gaps: Gaps, setting: int) -> tuple[Tensor, Tensor]:
        rtol, atol = tolerances(setting)
        n = len(gaps)
        term = torchode.ODETerm(Rescaled(gaps, w))
        controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
        solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller, max_steps=_MAX_STEPS)
        problem = torchode.InitialValueProblem(gaps.h, torch.zeros(n), torch.ones(n))
        solution = solver.solve(problem)
        return solution.ys[:, -1], 6 * solution.stats["n_steps"] + _STARTS

    def solve(gaps: Gaps, setting: int) -> tuple[Tensor, Floats]:
        h, evaluations = cross(gaps, setting)
        return h, evaluations.double().numpy()

    def call(gaps: Gaps, setting: int) -> Call:
        return lambda i: cross(gaps.part(slice(i * COUPLED, (i + 1) * COUPLED)), setting)

    return Peer(f"torchode dopri5, {COUPLED} rows", tuple(settings), _tolerance_text, solve, call, COUPLED)


def _diffrax(w: FieldWeights, tolerances: Tolerances, settings: Sequence[int], name: str, together: int) -> Peer:
    from work_precision_diffrax import array_of, solver

    weights, run = array_of(w), solver(name, vectorised=together > 1, max_steps=_MAX_STEPS)

    def rows(gaps: Gaps, start: int) -> tuple[Any, ...]:
        part = gaps.part(slice(start, start + together))
        many = array_of((part.h, drive(part.u, w), part.phase, part.dt))
        return many if together > 1 else tuple(None if a is None else a[0] for a in many)

    def solve(gaps: Gaps, setting: int) -> tuple[Tensor, Floats]:
        after, evaluations = [], []
        for start in range(0, len(gaps), together):
            given = rows(gaps, start)
            h, steps = run(given, weights, *tolerances(setting))
            after.append(np.atleast_2d(np.asarray(h)))
            evaluations.append(_DIFFRAX[name] * np.atleast_1d(np.asarray(steps)) + _STARTS)
        return torch.from_numpy(np.concatenate(after)), np.concatenate(evaluations).astype(np.float64)

    def call(gaps: Gaps, setting: int) -> Call:
        given = [rows(gaps, start) for start in range(0, len(gaps), together)]
        rtol, atol = tolerances(setting)
        return lambda i: run(given[i], weights, rtol, atol)[0].block_until_ready()

    label = f"diffrax {name}, jitted, " + ("one by one" if together == 1 else f"{together} vectorised")
    return Peer(label, tuple(settings), _tolerance_text, solve, call, together, fast=True)
