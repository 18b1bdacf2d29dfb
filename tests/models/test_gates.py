"""Gates and surprise."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.models.gates import Gates, forget_factor, hard_sigmoid, write_gate
from odestream.models.surprise import RESIDUAL_LIMIT, SURPRISE_START, bounded, score
from tests.helpers.problems import tiny_config


def test_hard_sigmoid_reaches_exactly_zero_and_one() -> None:
    values = hard_sigmoid(torch.tensor([-20.0, -2.5, 0.0, 2.5, 20.0]))
    assert values[0] == 0
    assert values[1] == 0
    assert values[3] == 1
    assert values[4] == 1
    torch.testing.assert_close(values[2], torch.tensor(0.5))


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_favoured_store_takes_the_whole_strength_and_none_takes_more(seed: int) -> None:
    torch.manual_seed(seed)
    config = tiny_config("classify")
    gates = Gates(config)
    gates.write.weight.data.normal_()
    features = torch.randn(50, config.feature_width)
    write = write_gate(features, gates.weights()).write
    inner = torch.nn.functional.silu(gates.inner(torch.cat([features, features**2], -1)))
    strength = hard_sigmoid(gates.write(inner)[:, :1])
    torch.testing.assert_close(write.amax(-1, keepdim=True), strength)
    assert (write >= 0).all()


def test_exploration_writes_at_least_half_where_it_is_asked_for() -> None:
    config = tiny_config("classify")
    gates = Gates(config)
    gates.write.bias.data[0] = -20.0
    features, asked = torch.randn(6, config.feature_width), torch.tensor([[0.0], [1.0]] * 3)
    write = write_gate(features, gates.weights(), asked).write
    assert torch.equal(write.amax(-1), 0.5 * asked[:, 0])


def test_jitter_moves_the_strength_and_leaves_the_logit_that_a_budget_weighs() -> None:
    config = tiny_config("classify")
    gates = Gates(config)
    features, jitter = torch.randn(6, config.feature_width), torch.tensor([[-9.0], [0.0], [0.5], [1.0], [2.0], [9.0]])
    plain, moved = write_gate(features, gates.weights()), write_gate(features, gates.weights(), jitter=jitter)
    assert torch.equal(plain.logit, moved.logit)
    torch.testing.assert_close(moved.write.amax(-1, keepdim=True), hard_sigmoid(plain.logit + jitter))
    assert moved.write[0].max() == 0
    assert moved.write[-1].max() == 1


def test_surprise_statistics_converge_to_the_streams_mean_and_variance() -> None:
    make = torch.Generator().manual_seed(0)
    state, zetas = torch.tensor([SURPRISE_START]).repeat(256, 1), []
    for _ in range(600):
        amount = 2.0 + 0.5 * torch.randn(256, 1, generator=make)
        zeta, state = score(amount, torch.ones(256, 1, dtype=torch.bool), state)
        zetas.append(zeta)
    assert abs(state[:, 0].mean() - 2.0) < 0.05
    assert abs(state[:, 1].mean() - 0.25) < 0.02
    late = torch.cat(zetas[300:])
    assert abs(late.mean()) < 0.05
    assert 0.9 < late.std() < 1.2


def test_the_first_observation_counts_as_seen_and_moves_nothing() -> None:
    start, yes = torch.tensor([SURPRISE_START]), torch.tensor([[True]])
    zeta, state = score(torch.tensor([[50.0]]), yes, start)
    assert zeta.item() == 0
    assert torch.equal(state, torch.tensor([[0.3, 0.3, 1.0]]))
    zeta, state = score(torch.tensor([[50.0]]), yes, state)
    assert zeta.item() == 4.0
    assert state[0, 0] > 0.3
    zeta, same = score(torch.tensor([[50.0]]), ~yes, state)
    assert zeta.item() == 0
    assert torch.equal(same, state)


def test_a_bounded_residual_is_itself_when_small_and_stays_within_its_limit() -> None:
    residual = torch.tensor([-1e30, -3.0, -1e-3, 0.0, 0.1, 1e18])
    held = bounded(residual)
    torch.testing.assert_close(held[2:5], residual[2:5], rtol=1e-3, atol=0)
    assert held.abs().max() <= RESIDUAL_LIMIT
    assert torch.equal(held.sign(), residual.sign())


def test_the_forget_gate_starts_at_exactly_one_and_can_learn_to_forget() -> None:
    config = tiny_config("classify")
    gates = Gates(config)
    features = torch.randn(64, config.feature_width)
    keep = write_gate(features, gates.weights()).keep
    assert torch.equal(keep, torch.ones_like(keep))
    keep.sum().backward()
    assert gates.forget.bias.grad is not None
    assert gates.forget.bias.grad.item() > 0


def test_the_forget_factor_has_the_same_bits_with_and_without_a_gradient() -> None:
    logits = torch.linspace(-30, 30, 10_001)
    assert torch.equal(forget_factor(logits.clone().requires_grad_()), forget_factor(logits))
