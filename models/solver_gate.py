"""The solver gate: a model must not have learnt its own solver's error.

A field that was trained too coarsely fits the task only together with the coarse solver's error, and solving it better
makes it worse. A checkpoint passes if its validation metric with the finest bucket and under dopri5 is no worse than
at the deployed number of solver steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from odestream.models.cell import Cell
from odestream.models.config import BUCKETS
from odestream.models.flow import Integrator, integrate
from odestream.runtime.contract.tableau import longest_gap

TOLERANCE = 0.01
"""Largest relative excess: what another seed changes (0.1427 to 0.1443 on the weekly CO2 record), and far above what
rounding and the tolerance of dopri5 do."""
LEAST = 1e-3
"""Excess that is never held against a model, in units of the metric (a channel's scale, a nat): a hundredth of an
almost perfect score is nothing that anyone could notice."""

Measure = Callable[[int | None, Integrator | None], float]
"""(solver steps, integrator) -> the validation metric, less is better; one of the two is None."""

dopri5: Integrator = partial(integrate, method="dopri5", rtol=1e-5, atol=1e-6)  # as exact as float32 rewards


def solver_gate(cell: Cell, metric: str, longest: float, measure: Measure) -> dict[str, Any]:
    """The metric by solver steps and under dopri5, and whether it passes; None where it cannot be judged.

    metric: its name. longest: the longest gap, in model units, of the calls that `measure` makes: step counts that do
    not cross it stably are left out (None), since no runtime uses them for it.
    """
    deployed, stiffness = cell.config.steps, cell.field.stiffness()

    def at(steps: int) -> float | None:
        stable = longest <= longest_gap(steps, stiffness, cell.config.method) * (1 + 1e-6)  # dt is float32
        return _finite(measure(steps, None)) if stable else None

    def under_dopri5() -> float | None:
        try:
            return _finite(measure(None, dopri5))
        except AssertionError:  # how torchdiffeq says that its step size underflows; a finished training is kept
            return None

    by_steps, exact = {str(n): at(n) for n in sorted({*BUCKETS, deployed})}, under_dopri5()
    return {
        "metric": metric,
        "deployed_steps": deployed,
        "by_steps": by_steps,
        "dopri5": exact,
        "tolerance": TOLERANCE,
        "passed": passes(by_steps[str(deployed)], by_steps[str(BUCKETS[-1])], exact),
    }


def passes(deployed: float | None, finest: float | None, exact: float | None) -> bool | None:
    """Whether neither of the better solutions is worse than the deployed one; None where one is not known."""
    if deployed is None or finest is None or exact is None:
        return None
    return max(finest, exact) <= deployed + max(TOLERANCE * abs(deployed), LEAST)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
