"""What is asked of the flow: consistency and penalties against float64 and closed forms, and the schedule of steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from odestream.models.cell import Cell
from odestream.models.checkpoint import Settings
from odestream.models.config import BUCKETS
from odestream.models.field import derivative, drive, rotate
from odestream.models.sequences import longest_call
from odestream.models.training.coarsening import chances, draw_bucket, stable_buckets
from odestream.models.training.regularity import Flows, Solving, consistency, jacobian
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell


def flows_for(cell: Cell, count: int = 12, longest: float = 1.0, seed: int = 0) -> Flows:
    make = torch.Generator().manual_seed(seed)
    width, k = cell.config.sizes.hidden, len(cell.config.frequencies)
    angle = 6.28 * torch.rand(count, k, generator=make)
    h, u = (torch.randn(count, width, generator=make) for _ in range(2))
    dt = longest * torch.rand(count, 1, generator=make)
    return Flows(h, u, torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1), dt, np.arange(count), count)


def penalty_of(solving: Solving, cell: Cell, flows: Flows, steps: int) -> float:
    return float(solving.penalty(cell, flows, steps, np.random.default_rng(0)).detach())


def decaying_cell(rates: Tensor) -> Cell:
    """A cell whose field is dh/dt = −λ ⊙ h."""
    cell = Cell(tiny_config())
    with torch.no_grad():
        cell.field.output.zero_()
        cell.field.log_decay.copy_(torch.log(torch.expm1(rates)))
    return cell


@torch.no_grad()
def bogacki_shampine(cell: Cell, flows: Flows, steps: int) -> Tensor:
    """The textbook method in float64, one step after the other, with the field asked at absolute moments."""
    wide = Cell(cell.config).double()
    wide.load_state_dict(cell.state_dict())
    w = wide.field.weights()
    h, u, phase, dt = (t.double() for t in flows[:4] if isinstance(t, Tensor))
    size = dt / steps
    assert w.time is not None
    assert w.frequencies is not None

    def f(moment: Tensor, h: Tensor) -> Tensor:
        fixed = drive(u, w) + rotate(phase, moment * w.frequencies) @ w.time.T  # type: ignore[operator, union-attr]
        return derivative(h, fixed, w)

    for n in range(steps):
        at = n * size
        k1 = f(at, h)
        k2 = f(at + size / 2, h + size / 2 * k1)
        k3 = f(at + size * 3 / 4, h + size * 3 / 4 * k2)
        h = h + size * (2 * k1 + 3 * k2 + 4 * k3) / 9
    return h


@pytest.mark.parametrize("steps", [1, 2])
def test_consistency_is_the_mean_log_distance_of_n_and_2n_steps_of_the_textbook_method(steps: int) -> None:
    cell = random_cell(tiny_config())
    flows, c = flows_for(cell), cell.config
    coarse, fine = bogacki_shampine(cell, flows, steps), bogacki_shampine(cell, flows, 2 * steps)
    ratio = (coarse - fine) / (c.atol + c.rtol * torch.maximum(coarse.abs(), fine.abs()))
    expected = (0.5 * torch.log1p(ratio.square().mean(dim=-1))).mean()
    assert float(expected) > 0.05
    assert float(consistency(cell, flows, steps).detach()) == pytest.approx(float(expected), rel=1e-3)


def test_consistency_is_nothing_for_a_field_that_one_step_solves() -> None:
    cell = decaying_cell(torch.full((6,), 0.01))
    flows = flows_for(cell, longest=0.1)
    loss = consistency(cell, flows, 1)
    loss.backward()  # type: ignore[no-untyped-call]
    assert 0 <= float(loss.detach()) < 1e-6
    still = consistency(cell, flows._replace(dt=torch.zeros_like(flows.dt)), 1)
    still.backward()  # type: ignore[no-untyped-call]
    assert float(still.detach()) == 0.0
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in cell.parameters())


def test_consistency_of_a_wild_flow_grows_as_a_logarithm_with_a_bounded_gradient() -> None:
    cell = decaying_cell(torch.full((6,), 3.5))
    flows = flows_for(cell, longest=0.7)
    losses = [float(consistency(cell, flows._replace(h=scale * flows.h), 1).detach()) for scale in (1.0, 1e20)]
    assert 3.0 < losses[0] < losses[1] < 10.0
    strict = Cell(dataclasses.replace(cell.config, rtol=1e-9, atol=1e-9))
    strict.load_state_dict(cell.state_dict())
    loss = consistency(strict, flows, 1)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient = strict.field.log_decay.grad
    assert gradient is not None
    assert float(loss.detach()) > 10.0
    assert float(gradient.abs().max()) < 10.0


def test_flows_beyond_the_stability_bound_are_asked_up_to_it() -> None:
    cell = random_cell(tiny_config())
    far = flows_for(cell)._replace(dt=torch.full((12, 1), 50.0))
    at = far._replace(dt=torch.full((12, 1), longest_call(cell.config, 2)))
    asked = [penalty_of(Solving(consistency=1.0), cell, f, 2) for f in (far, at)]
    assert asked[0] == asked[1] > 0


def test_the_kinetic_penalty_of_a_decay_is_its_mean_square_speed() -> None:
    rates = torch.linspace(0.2, 2.0, 6)
    cell, gap = decaying_cell(rates), 0.8
    one = flows_for(cell, 1)
    count = 4000
    many = Flows(
        one.h.expand(count, -1),
        one.u.expand(count, -1),
        one.phase.expand(count, -1) if one.phase is not None else None,
        torch.full((count, 1), gap),
        np.arange(count),
        count,
    )
    exact = ((rates * one.h) ** 2 * (1 - torch.exp(-2 * rates * gap)) / (2 * rates * gap)).mean()
    found = penalty_of(Solving(kinetic=0.5), cell, many, 8)
    assert found == pytest.approx(0.5 * float(exact), rel=0.02)  # random moments: 1 % is one deviation


def test_the_jacobian_penalty_of_a_decay_is_its_mean_square_rate() -> None:
    rates = torch.linspace(0.2, 2.0, 6)
    found = penalty_of(Solving(jacobian=2.0), decaying_cell(rates), flows_for(Cell(tiny_config())), 4)
    assert found == pytest.approx(2.0 * float((rates**2).mean()), rel=1e-5)


def test_the_jacobian_estimate_has_the_frobenius_norm_as_its_mean() -> None:
    make = torch.Generator().manual_seed(0)
    matrix, h = torch.randn(5, 5, generator=make), torch.randn(1, 5, generator=make)
    h = h.expand(20_000, -1).clone().requires_grad_()
    signs = 2.0 * torch.randint(0, 2, h.shape, generator=make) - 1.0
    exact = torch.autograd.functional.jacobian(lambda row: torch.tanh(row @ matrix), h[0]).square().sum() / 5  # type: ignore[no-untyped-call]
    assert float(jacobian(torch.tanh(h @ matrix), h, signs, len(h)).detach()) == pytest.approx(float(exact), rel=0.03)


def test_shares_of_two_processes_add_up_to_the_penalty_and_its_gradient_of_one() -> None:
    cell = random_cell(tiny_config())
    solving, flows = Solving(None, 1.0, 0.3, 0.2), flows_for(cell)

    def judged(mine: slice) -> tuple[float, Tensor]:
        cell.zero_grad()
        assert flows.phase is not None
        part = Flows(flows.h[mine], flows.u[mine], flows.phase[mine], flows.dt[mine], flows.place[mine], flows.total)
        loss = solving.penalty(cell, part, 2, np.random.default_rng(7))
        loss.backward()  # type: ignore[no-untyped-call]
        assert cell.field.hidden.grad is not None
        return float(loss.detach()), cell.field.hidden.grad.clone()

    (whole, gradient), one, two = (judged(s) for s in (slice(None), slice(0, 12, 2), slice(1, 12, 2)))
    assert one[0] + two[0] == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(one[1] + two[1], gradient, rtol=1e-4, atol=1e-6)
    assert float(gradient.abs().max()) > 1e-4


def test_nothing_but_consistency_is_asked_unless_told() -> None:
    solving = Solving.of(Settings())
    assert solving.integrator is None
    assert solving.consistency > 0
    assert solving.kinetic == solving.jacobian == 0
    cell = random_cell(tiny_config())
    assert penalty_of(Solving(), cell, flows_for(cell), 1) == 0.0


def test_steps_are_drawn_from_fine_to_coarse_and_are_cheap_on_average() -> None:
    training = [chances(len(BUCKETS), progress) for progress in np.linspace(0, 1, 101)]
    steps = np.array(BUCKETS)
    means = [float(p @ steps) for p in training]
    assert all(math.isclose(p.sum(), 1.0) for p in training)
    assert all(np.all(np.diff(p) <= 0) for p in training)
    assert np.all(np.diff(means) < 0)
    assert means[0] > 1.9
    assert means[-1] == 1.0
    assert np.mean(means) < 1.4
    assert np.mean([p[-1] for p in training]) < 0.005
    random = np.random.default_rng(0)
    drawn = [draw_bucket(BUCKETS, 0.0, random) for _ in range(4000)]
    shares = np.array([drawn.count(n) for n in BUCKETS]) / len(drawn)
    np.testing.assert_allclose(shares, training[0], atol=0.03)
    assert {draw_bucket(BUCKETS, 1.0, random) for _ in range(100)} == {1}


def test_only_buckets_that_are_stable_are_drawn_from() -> None:
    assert stable_buckets(1) == BUCKETS
    assert stable_buckets(3) == (4, 8, 16)
    assert stable_buckets(40) == (40,)
