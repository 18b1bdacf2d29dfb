"""The flow between observations: the field integrated over this row's own gap.

`ode_flow` is the deployed one: an explicit Runge-Kutta method unrolled over a fixed number of steps, one function
for every tableau. `integrate` hands the same field to torchdiffeq, as reference and for training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function
from torchdiffeq import odeint, odeint_adjoint

from odestream.models.field import FieldWeights, derivative, drive, rotate
from odestream.runtime.contract.tableau import ButcherTableau, tableau


def ode_flow(
    h: Tensor,
    u: Tensor,
    phase: Tensor | None,
    dt: Tensor,
    w: FieldWeights,
    *,
    method: str,
    steps: int,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """Flow h [B, D] over dt [B, 1] model units with `steps` steps of `method`.

    u [B, D]: drive; phase [B, 2K]: sin and cos at the start, None without time features.
    Returns h' [B, D] and err [B, 1]: the largest embedded error estimate of the steps, in units of the tolerance,
    max_n RMS_i(e_i / (atol + rtol·max(|h_n|, |h_n+1|)_i)); zero for a method without an estimate. Rows with dt = 0
    keep every bit of h.

    It is torch-overridable, which is how an exporter makes it one node of a graph.
    """
    tensors = tuple(t for t in (h, u, phase, dt, *w) if t is not None)
    if has_torch_function(tensors):
        options: dict[str, Any] = {"method": method, "steps": steps, "rtol": rtol, "atol": atol}
        return handle_torch_function(ode_flow, tensors, h, u, phase, dt, w, **options)
    return unrolled_flow(h, u, phase, dt, w, method=method, steps=steps, rtol=rtol, atol=atol)


def unrolled_flow(
    h: Tensor,
    u: Tensor,
    phase: Tensor | None,
    dt: Tensor,
    w: FieldWeights,
    *,
    method: str,
    steps: int,
    rtol: float,
    atol: float,
) -> tuple[Tensor, Tensor]:
    """The body of `ode_flow`."""
    table = tableau(method)
    fixed = _fixed_parts(u, phase, dt, w, table, steps)
    size = dt * (1.0 / steps)
    start, errors = h, []
    stages = [derivative(h, fixed[0][0], w)]
    for n in range(steps):
        for i in range(1, table.stages):
            stages.append(derivative(h + size * _weighted(table.a[i], stages), fixed[n][i], w))
        after = h + size * _weighted(table.b, stages)
        if table.error is not None:
            allowed = atol + rtol * torch.maximum(torch.abs(h), torch.abs(after))
            ratio = size * _weighted(table.error, stages) / allowed
            errors.append(torch.sqrt(torch.mean(ratio * ratio, dim=-1, keepdim=True)))
        h = after
        if n + 1 < steps:
            stages = [stages[-1] if table.fsal else derivative(h, fixed[n + 1][0], w)]
    error = torch.amax(torch.cat(errors, dim=-1), dim=-1, keepdim=True) if errors else 0.0 * dt
    return torch.where(dt > 0, h, start), error


def integrate(
    h: Tensor,
    u: Tensor,
    phase: Tensor | None,
    dt: Tensor,
    w: FieldWeights,
    *,
    method: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-8,
    adjoint: bool = False,
    **options: Any,
) -> Tensor:
    """The same flow by torchdiffeq's `odeint`, or `odeint_adjoint` (constant memory in solver steps).

    Every row flows over its own dt, since s runs from 0 to 1 and dt is a factor of the field; the adaptive step
    size is shared by the batch. Shapes as in `ode_flow`; returns h' [B, D].
    """
    field = _Rescaled(u, phase, dt, w)
    s = torch.linspace(0.0, 1.0, 2, dtype=h.dtype, device=h.device)
    if adjoint:
        parameters = tuple(t for t in (u, phase, dt, *w) if t is not None and t.requires_grad)
        path = odeint_adjoint(field, h, s, method=method, rtol=rtol, atol=atol, adjoint_params=parameters, **options)
    else:
        path = odeint(field, h, s, method=method, rtol=rtol, atol=atol, **options)
    after: Tensor = path[-1]
    return torch.where(dt > 0, after, h)


class _Rescaled(nn.Module):
    """dh/ds = dt·f(s, h) for s from 0 to 1, with absolute time inside."""

    def __init__(self, u: Tensor, phase: Tensor | None, dt: Tensor, w: FieldWeights) -> None:
        super().__init__()
        # Tuples, so that tensors of the graph are not taken for this module's own parameters.
        self.held = (u, phase, dt, w)

    def forward(self, s: Tensor, h: Tensor) -> Tensor:
        u, phase, dt, w = self.held
        fixed = drive(u, w)
        if phase is not None and w.time is not None and w.frequencies is not None:
            fixed = fixed + nn.functional.linear(rotate(phase, s * dt * w.frequencies), w.time)
        return dt * derivative(h, fixed, w)


def _fixed_parts(
    u: Tensor, phase: Tensor | None, dt: Tensor, w: FieldWeights, table: ButcherTableau, steps: int
) -> list[list[Tensor]]:
    """What does not depend on h, for every stage of every step: one product for all stage times together."""
    constant = drive(u, w)
    if phase is None or w.time is None or w.frequencies is None:
        return [[constant] * table.stages] * steps
    times = sorted({(n + c) / steps for n in range(steps) for c in table.c})
    places = w.frequencies.new_tensor([float(s) for s in times]).unsqueeze(-1) * w.frequencies
    moved = rotate(phase.unsqueeze(-2), dt.unsqueeze(-1) * places)
    parts = nn.functional.linear(moved, w.time) + constant.unsqueeze(-2)
    by_time = dict(zip(times, torch.unbind(parts, dim=-2), strict=True))
    return [[by_time[(n + c) / steps] for c in table.c] for n in range(steps)]


def _weighted(weights: Any, stages: list[Tensor]) -> Tensor:
    """Σ weights_i · stages_i without the zero terms."""
    terms = [float(weight) * k for weight, k in zip(weights, stages, strict=True) if weight != 0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
