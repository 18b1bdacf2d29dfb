"""The order of every method and of every error estimate, within 0.1 of theory, against closed forms in float64.

Each problem is written as weights of the cell's own field, so what converges is the flow that is deployed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from odestream.models.field import FieldWeights
from odestream.models.flow import unrolled_flow
from odestream.runtime.contract.tableau import TABLEAUS
from tests.helpers.problems import pure_decay, saturated_oscillation, tanh_of_drift, tanh_of_drift_time

ESTIMATED = [name for name, table in TABLEAUS.items() if table.error is not None]

STEPS = 32  # fine enough for the leading term to be alone, coarse enough for order five to stay above rounding


class Problem(NamedTuple):
    """One component from `start` over `time`; `end` is exact. phase: (sin, cos) at the start, for time features."""

    w: FieldWeights
    start: float
    time: float
    end: float
    phase: tuple[float, float] | None = None


def leak() -> Problem:
    """dh/dt = −1.5·h."""
    return Problem(pure_decay(torch.tensor([1.5], dtype=torch.float64)), 0.8, 1.2, 0.8 * math.exp(-1.5 * 1.2))


def quadrature() -> Problem:
    """dh/dt = g(t); the integral by 40-point Gauss-Legendre, exact to rounding for this g."""
    omega, turn, time = 1.3, 1.0, 4.0
    w = saturated_oscillation(omega, torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    angle = omega * (nodes + 1) * time / 2 + turn
    inner = np.stack([np.sin(angle), np.cos(angle)])
    values = np.tanh(w.output.numpy() @ (inner / (1 + np.exp(-inner))))[0]
    end = float(weights @ values * time / 2)
    return Problem(w, 0.0, time, end, (math.sin(turn), math.cos(turn)))


def nonlinear() -> Problem:
    """dh/dt = tanh(−1.5·h), so that sinh(1.5·h) falls as exp(−1.5·t)."""
    end = math.asinh(math.sinh(1.5 * 0.9) * math.exp(-1.5 * 1.6)) / 1.5
    return Problem(tanh_of_drift(-1.5, 0.0), 0.9, 1.6, end, (0.0, 1.0))


def nonlinear_moving() -> Problem:
    """dh/dt = tanh(−1.5·h + 2.2·t): from z to z', chosen, in the time that the closed form says."""
    slope, drift, z, after = -1.5, 2.2, -2.0, 0.7
    time = tanh_of_drift_time(slope, drift, after) - tanh_of_drift_time(slope, drift, z)
    return Problem(tanh_of_drift(slope, drift), z / slope, time, (after - drift * time) / slope, (0.0, 1.0))


PROBLEMS = [leak, quadrature, nonlinear, nonlinear_moving]


def solved(problem: Problem, method: str, steps: int, time: float) -> tuple[float, float]:
    """h after `time`, and the error estimate in plain units: the tolerance is 1."""

    def row(*values: float) -> Tensor:
        return torch.tensor([values], dtype=torch.float64)

    phase = None if problem.phase is None else row(*problem.phase)
    options = {"method": method, "steps": steps, "rtol": 1e-300, "atol": 1.0}
    h, err = unrolled_flow(row(problem.start), row(0.0), phase, row(time), problem.w, **options)  # type: ignore[arg-type]
    return h.item(), err.item()


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("method", TABLEAUS)
def test_every_method_converges_at_its_order(method: str, make: Callable[[], Problem]) -> None:
    problem, order = make(), TABLEAUS[method].order
    errors = [abs(solved(problem, method, n, problem.time)[0] - problem.end) for n in (STEPS, 2 * STEPS)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("method", ESTIMATED)
def test_every_error_estimate_falls_one_order_faster_than_its_embedded_method(
    method: str, make: Callable[[], Problem]
) -> None:
    problem, p = make(), TABLEAUS[method].error_order
    errs = [solved(problem, method, 1, problem.time / n)[1] for n in (2 * STEPS, 4 * STEPS)]
    assert math.log2(errs[0] / errs[1]) == pytest.approx(p + 1, abs=0.1)
