"""The flow between observations: the field integrated over this row's own gap.

`ode_flow` is the deployed one: an explicit Runge-Kutta method unrolled over a fixed number of steps, one function
for every tableau. `integrate` hands the same field to torchdiffeq, as reference and for training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from odestream.models.field import FieldWeights, derivative, drive, rotate
from odestream.runtime.contract.tableau import ButcherTableau, tableau
from odestream.runtime.errors import InputError

Integrator = Callable[[Tensor, Tensor, Tensor | None, Tensor, FieldWeights], Tensor]
"""(h, u, phase, dt, weights) -> h': what may stand in for the unrolled solver while a cell trains."""


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
    table, row = tableau(method), _coefficients(method)
    fixed = _fixed_parts(u, phase, dt, w, table, steps)
    size = dt * (1.0 / steps)
    start, errors = h, []
    stages = [derivative(h, fixed[0][0], w)]
    for n in range(steps):
        for i in range(1, table.stages):
            stages.append(derivative(h + size * _weighted(row.a[i], stages), fixed[n][i], w))
        after = h + size * _weighted(row.b, stages)
        if row.error:
            allowed = atol + rtol * torch.maximum(torch.abs(h), torch.abs(after))
            ratio = size * _weighted(row.error, stages) / allowed
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
    if h.numel() == 0:
        return h  # an adaptive step size needs something to be adapted to
    from torchdiffeq import odeint, odeint_adjoint  # brings scipy along, half a second that no other way needs

    s = torch.linspace(0.0, 1.0, 2, dtype=h.dtype, device=h.device)
    options = {"method": method, "rtol": rtol, "atol": atol, **options}

    def solve_adjoint(h: Tensor, u: Tensor, phase: Tensor | None, dt: Tensor, *weights: Tensor | None) -> Tensor:
        parameters = tuple(t for t in (u, phase, dt, *weights) if t is not None and t.requires_grad)
        field = _Rescaled(u, phase, dt, FieldWeights(*weights))  # type: ignore[arg-type]
        return odeint_adjoint(field, h, s, adjoint_params=parameters, **options)[-1]  # type: ignore[no-any-return]

    if adjoint:
        after: Tensor = _Isolated.apply(solve_adjoint, h, u, phase, dt, *w)  # type: ignore[no-untyped-call]
    else:
        after = odeint(_Rescaled(u, phase, dt, w), h, s, **options)[-1]
    return torch.where(dt > 0, after, h)


def integrator(name: str) -> Integrator | None:
    """The integrator that `--solver` names: `odeint:METHOD` or `odeint_adjoint:METHOD` of torchdiffeq.

    None for the name of a tableau, which the cell unrolls itself. InputError lists what is known.
    """
    package, colon, method = name.partition(":")
    if not colon:
        tableau(name)
        return None
    if package not in ("odeint", "odeint_adjoint") or method not in _TORCHDIFFEQ:
        raise InputError(
            f"unknown solver {name!r}; choose a tableau such as bosh32, or odeint: or odeint_adjoint: "
            f"followed by one of {', '.join(_TORCHDIFFEQ)}"
        )
    fixed = None if method in _ADAPTIVE else {"step_size": 0.25}
    return partial(integrate, method=method, rtol=1e-4, atol=1e-5, adjoint=package == "odeint_adjoint", options=fixed)


_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
_FIXED = ("euler", "midpoint", "heun3", "rk4")
_TORCHDIFFEQ = (*_ADAPTIVE, *_FIXED)


class _Isolated(torch.autograd.Function):
    """A function of tensors, differentiated by itself: its backward pass sees its inputs as leaves.

    The adjoint method differentiates the field again and again, by its parameters and by the drive u. Where u is the
    outcome of earlier flows by the same parameters, each of these passes would run on into those flows.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        needed = ctx.needs_input_grad[1:]
        ctx.leaves = [
            None if t is None else t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)
        ]
        with torch.enable_grad():
            ctx.result = function(*ctx.leaves)
        result: Tensor = ctx.result.detach()
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [leaf for leaf in ctx.leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(ctx.result, wanted, gradients, allow_unused=True))
        return None, *(next(found) if leaf is not None and leaf.requires_grad else None for leaf in ctx.leaves)


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
    times, places_of = _stage_times(table.name, steps)
    angles = w.frequencies.new_tensor(times).unsqueeze(-1) * w.frequencies
    moved = rotate(phase.unsqueeze(-2), dt.unsqueeze(-1) * angles)
    parts = nn.functional.linear(moved, w.time) + constant.unsqueeze(-2)
    by_time = torch.unbind(parts, dim=-2)
    return [[by_time[place] for place in places] for places in places_of]


# Rows of a tableau as (stage, weight) pairs without the zeros. Exact fractions are turned into floats once a method,
# not once a call: that took a fifth of a step's time.
_Row = tuple[tuple[int, float], ...]


class _Coefficients(NamedTuple):
    """A tableau's a, b and error weights (empty without an estimate)."""

    a: tuple[_Row, ...]
    b: _Row
    error: _Row


@cache
def _coefficients(method: str) -> _Coefficients:
    def row(weights: Sequence[Fraction]) -> _Row:
        return tuple((i, float(weight)) for i, weight in enumerate(weights) if weight != 0)

    table = tableau(method)
    return _Coefficients(tuple(row(weights) for weights in table.a), row(table.b), row(table.error or ()))


@cache
def _stage_times(method: str, steps: int) -> tuple[list[float], list[list[int]]]:
    """The distinct times of all stages on 0 … 1, and the place among them of every step's stages."""
    c = tableau(method).c
    times = sorted({(n + x) / steps for n in range(steps) for x in c})
    return [float(s) for s in times], [[times.index((n + x) / steps) for x in c] for n in range(steps)]


def _weighted(row: _Row, stages: Sequence[Tensor]) -> Tensor:
    """Σ weight_i · stage_i."""
    terms = [weight * stages[i] for i, weight in row]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
