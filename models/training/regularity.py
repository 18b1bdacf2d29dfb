"""What is asked of the flow itself, beside the task: that few solver steps suffice.

All terms are means over a sample of the flows of a chunk, so that shares of several processes add up. States are held
constant: what is penalised is the field, not how observations are encoded.

Measured on the weekly CO2 record, true error of one step over a week, in units of the tolerance: 0.07 without
consistency, 0.05 at a weight of 0.001, 0.02 at 0.003 and no less at 0.01; what the forecasts lose is not to be told
from what another seed changes. Kinetic and Jacobian penalties are off unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.field import FieldWeights, derivative, drive, rotate
from odestream.models.flow import Integrator, integrator, ode_flow
from odestream.models.sequences import longest_call
from odestream.models.training.lanes import Rows


class Flows(NamedTuple):
    """A sample of flows: h, u [Q, D], phase [Q, 2K] or None, dt [Q, 1] model units.

    place [Q]: of each flow among the `total` flows of all processes.
    """

    h: Tensor
    u: Tensor
    phase: Tensor | None
    dt: Tensor
    place: Rows
    total: int


@dataclass(frozen=True)
class Solving:
    """How flows are solved in training, and the weights of what is asked of them.

    integrator: stands in for the unrolled solver. consistency, kinetic, jacobian: weights of the functions so called.
    """

    integrator: Integrator | None = None
    consistency: float = 0.0
    kinetic: float = 0.0
    jacobian: float = 0.0

    @staticmethod
    def of(settings: Settings) -> Solving:
        """As the options say."""
        return Solving(integrator(settings.solver), settings.consistency, settings.kinetic, settings.jacobian)

    def penalty(self, cell: Cell, flows: Flows, steps: int, random: np.random.Generator) -> Tensor:
        """The weighted sum, for a chunk of `steps` solver steps; every process must call it with the same `random`."""
        flows = flows._replace(dt=torch.clamp(flows.dt, max=longest_call(cell.config, steps)))
        total = torch.zeros(())
        if self.consistency > 0:
            total = total + self.consistency * consistency(cell, flows, steps)
        if self.kinetic > 0 or self.jacobian > 0:
            h, fixed, w = _midway(cell, flows, steps, random)
            f = derivative(h, fixed, w)
            total = total + self.kinetic * kinetic(f, flows.total)
            if self.jacobian > 0:
                signs = 2.0 * random.integers(0, 2, (flows.total, h.shape[-1]))[flows.place] - 1.0
                total = total + self.jacobian * jacobian(f, h, torch.from_numpy(signs).to(h), flows.total)
        return total


def consistency(cell: Cell, flows: Flows, steps: int) -> Tensor:
    """Mean over flows of ½·log(1 + r²), r the distance between `steps` and twice as many solver steps.

    r = RMS_i((h_N − h_2N)_i / (atol + rtol·max(|h_N|, |h_2N|)_i)), in units of the tolerance: a distance below it
    costs next to nothing, and one far above it grows as its logarithm, so that no single flow decides a step. The
    tolerances are held constant: larger states are no way out.
    """
    c, w = cell.config, cell.field.weights()
    coarse, fine = (
        ode_flow(*flows[:4], w, method=c.method, steps=n, rtol=c.rtol, atol=c.atol)[0] for n in (steps, 2 * steps)
    )
    allowed = c.atol + c.rtol * torch.maximum(torch.abs(coarse), torch.abs(fine)).detach()
    squared = torch.mean(((coarse - fine) / allowed) ** 2, dim=-1)
    return torch.sum(0.5 * torch.log1p(squared)) / flows.total


def kinetic(f: Tensor, total: int) -> Tensor:
    """Mean square of the field, f [Q, D] at a random moment of each flow: an unbiased estimate of its mean over time.

    Finlay et al., How to train your neural ODE (2020), equation 7, divided by time and by the number of components.
    """
    return torch.sum(torch.mean(f * f, dim=-1)) / total


def jacobian(f: Tensor, h: Tensor, signs: Tensor, total: int) -> Tensor:
    """Mean over flows of ‖∂f/∂h‖²_F / D, by Hutchinson's estimate E‖εᵀ·∂f/∂h‖² with `signs` ε [Q, D] of ±1.

    f [Q, D] must have been computed from h [Q, D]. Finlay et al. (2020), equation 9, with signs for normal numbers,
    which is exact where the Jacobian is diagonal.
    """
    (product,) = torch.autograd.grad(torch.sum(f * signs), h, create_graph=True)
    return torch.sum(torch.mean(product * product, dim=-1)) / total


def _midway(cell: Cell, flows: Flows, steps: int, random: np.random.Generator) -> tuple[Tensor, Tensor, FieldWeights]:
    """Each flow at a random moment of its own: h [Q, D], and the part of the field that does not depend on it."""
    c, w = cell.config, cell.field.weights()
    part = torch.from_numpy(random.random((flows.total, 1))[flows.place]).to(flows.dt) * flows.dt
    h, _ = ode_flow(*flows[:3], part, w, method=c.method, steps=steps, rtol=c.rtol, atol=c.atol)
    fixed = drive(flows.u, w)
    if flows.phase is not None and w.time is not None and w.frequencies is not None:
        fixed = fixed + F.linear(rotate(flows.phase, part * w.frequencies), w.time)
    return h, fixed, w
