"""The unrolled solver against closed forms, float64 and torchdiffeq."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odestream.models.field import FieldWeights, derivative, rotate
from odestream.models.flow import integrate, ode_flow
from odestream.runtime.contract.tableau import TABLEAUS
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell

OPTIONS = {"rtol": 1e-3, "atol": 1e-4}


def field_and_state(batch: int = 5) -> tuple[FieldWeights, Tensor, Tensor, Tensor, Tensor]:
    cell = random_cell(tiny_config()).double()
    d, k = cell.config.sizes.hidden, len(cell.config.frequencies)
    angle = torch.rand(batch, k, dtype=torch.float64) * 6
    phase = torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1)
    h, u = torch.randn(batch, d, dtype=torch.float64), torch.randn(batch, d, dtype=torch.float64)
    return cell.field.weights(), h, u, phase, torch.rand(batch, 1, dtype=torch.float64) * 2


@pytest.mark.parametrize("method", TABLEAUS)
def test_unrolled_flow_approaches_torchdiffeqs_dopri5(method: str) -> None:
    w, h, u, phase, dt = field_and_state()
    reference = integrate(h, u, phase, dt, w, rtol=1e-11, atol=1e-12)
    flowed, _ = ode_flow(h, u, phase, dt, w, method=method, steps=64, **OPTIONS)
    order = TABLEAUS[method].order
    torch.testing.assert_close(flowed, reference, rtol=0, atol=20.0 * 2.0**order / 64**order)


def test_midpoint_takes_the_same_steps_as_torchdiffeqs() -> None:
    w, h, u, phase, dt = field_and_state()
    theirs = integrate(h, u, phase, dt, w, method="midpoint", options={"step_size": 0.25})
    ours, _ = ode_flow(h, u, phase, dt, w, method="midpoint", steps=4, **OPTIONS)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_adjoint_gradients_equal_back_propagation() -> None:
    w, h, u, phase, dt = field_and_state()
    wanted = {"u": u.requires_grad_(), "h": h.requires_grad_()}
    gradients: list[tuple[Tensor, ...]] = []
    for adjoint in (False, True):
        out = integrate(h, u, phase, dt, w, rtol=1e-10, atol=1e-10, adjoint=adjoint)
        gradients.append(torch.autograd.grad(out.square().sum(), [*wanted.values(), w.hidden, w.decay, w.output]))
    for back_propagated, adjoint_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(adjoint_gradient, back_propagated, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["heun21", "bosh32", "dopri54"])
def test_error_estimate_is_the_embedded_difference_of_the_worst_step(method: str) -> None:
    w, h, u, phase, dt = field_and_state()
    _, err = ode_flow(h, u, phase, dt, w, method=method, steps=3, **OPTIONS)
    whole, worst = h, torch.zeros(len(h), 1, dtype=h.dtype)
    for n in range(3):  # one step a call, and the embedded solution by running the lower-order weights as a method
        moved = rotate(phase, dt * w.frequencies * n / 3) if w.frequencies is not None else phase
        after, one = ode_flow(whole, u, moved, dt / 3, w, method=method, steps=1, **OPTIONS)
        worst, whole = torch.maximum(worst, one), after
    torch.testing.assert_close(err, worst, rtol=1e-9, atol=1e-12)


def test_a_method_without_an_estimate_reports_zero() -> None:
    w, h, u, phase, dt = field_and_state()
    _, err = ode_flow(h, u, phase, dt, w, method="rk4", steps=2, **OPTIONS)
    assert torch.equal(err, torch.zeros_like(dt))


def test_no_time_keeps_every_bit_even_minus_zero() -> None:
    w, h, u, phase, dt = field_and_state()
    h[0, 0] = -0.0
    flowed, _ = ode_flow(h, u, phase, 0 * dt, w, method="bosh32", steps=2, **OPTIONS)
    assert torch.equal(flowed.view(torch.int64), h.view(torch.int64))


@given(st.floats(0.01, 3.0), st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_a_flow_over_two_parts_of_a_gap_is_the_flow_over_the_gap(gap: float, share: float) -> None:
    w, h, u, phase, _ = field_and_state(2)
    assert w.frequencies is not None
    dt = torch.full((2, 1), gap, dtype=torch.float64)
    whole = integrate(h, u, phase, dt, w, rtol=1e-10, atol=1e-12)
    half, _ = ode_flow(h, u, phase, dt * share, w, method="dopri54", steps=32, **OPTIONS)
    moved = rotate(phase, dt * share * w.frequencies)
    parts, _ = ode_flow(half, u, moved, dt * (1 - share), w, method="dopri54", steps=32, **OPTIONS)
    torch.testing.assert_close(parts, whole, rtol=1e-7, atol=1e-7)


def test_rotation_keeps_float32_phases_of_far_times_exact() -> None:
    """Sine and cosine of an angle of 1e6 rad, moved on by 3 rad, against float64."""
    start, step = 1e6, 3.0
    phase = torch.tensor([[math.sin(start), math.cos(start)]], dtype=torch.float32)
    moved = rotate(phase, torch.tensor([[step]]))
    torch.testing.assert_close(
        moved.double(), torch.tensor([[math.sin(start + step), math.cos(start + step)]]).double(), rtol=0, atol=2e-7
    )


def test_stiffness_bounds_the_jacobians_spectral_radius() -> None:
    cell = random_cell(tiny_config()).double()
    w, bound = cell.field.weights(), cell.field.stiffness()
    for seed in range(20):
        torch.manual_seed(seed)
        h = torch.randn(cell.config.sizes.hidden, dtype=torch.float64)
        fixed = torch.randn(cell.config.sizes.field, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda h, fixed=fixed: derivative(h, fixed, w), h)
        assert torch.linalg.eigvals(jacobian).abs().max() <= bound
