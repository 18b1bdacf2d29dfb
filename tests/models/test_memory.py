"""The three memories against plain numpy loops and the properties they promise."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.models import memory


def test_delta_rule_is_the_outer_product_update_written_out() -> None:
    rng = np.random.default_rng(0)
    m, key = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3, 4))
    value, strength, keep = rng.normal(size=(2, 3, 5)), np.array([[0.3], [0.9]]), np.array([[0.5], [1.0]])
    key /= np.linalg.norm(key, axis=-1, keepdims=True)
    expected = np.empty_like(m)
    for b in range(2):
        for n in range(3):
            kept = keep[b, 0] * m[b, n]
            expected[b, n] = kept + strength[b, 0] * np.outer(key[b, n], value[b, n] - key[b, n] @ kept)
    got = memory.matrix_write(*(torch.from_numpy(a) for a in (m, key, value, strength, keep)))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_a_full_strength_write_is_read_back_exactly_and_orthogonal_keys_keep_their_values() -> None:
    m = torch.zeros(1, 1, 4, 3, dtype=torch.float64)
    keys, values = torch.eye(4, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    for key, value in zip(keys, values, strict=True):
        m = memory.matrix_write(m, key[None, None], value[None, None], one, one)
    m = memory.matrix_write(
        m, keys[None, None, 2], 7 * values[None, None, 2], one, one
    )  # rewritten: the last value wins
    read = torch.stack([memory.matrix_read(m, key[None, None])[0] for key in keys])
    values[2] *= 7
    torch.testing.assert_close(read, values, rtol=1e-12, atol=1e-12)


@given(st.floats(0, 50), st.floats(0, 50), st.floats(1e-6, 3))
@settings(deadline=None)
def test_matrix_decay_over_two_gaps_is_the_decay_over_their_sum(first: float, second: float, rate: float) -> None:
    m, r = torch.randn(1, 1, 2, 2), torch.tensor([rate])
    split = memory.matrix_decay(memory.matrix_decay(m, r, torch.tensor([[first]])), r, torch.tensor([[second]]))
    whole = memory.matrix_decay(m, r, torch.tensor([[first + second]]))
    # exp turns the exponent's rounding into that many ulp of the result, besides its own.
    ulp = 4 + 2 * rate * (first + second)
    torch.testing.assert_close(split, whole, rtol=ulp * 2**-23, atol=1e-37)


def test_the_strongest_events_stay_whatever_their_order() -> None:
    rng = np.random.default_rng(1)
    strengths = rng.permutation(np.linspace(0.05, 0.95, 12)).astype(np.float32)
    es, ev = torch.zeros(1, 4), torch.zeros(1, 4, 1)
    for i, s in enumerate(strengths):
        strength = torch.tensor([[float(s)]])
        chosen = memory.weakest_slot(es, strength)
        assert chosen.sum() <= 1
        es, ev = memory.replace_slot(es, chosen, strength), memory.replace_slot(ev, chosen, torch.tensor([[float(i)]]))
    assert sorted(ev[0, :, 0].int().tolist()) == sorted(np.argsort(strengths)[-4:].tolist())
    assert sorted(es[0].tolist()) == sorted(strengths)[-4:]


def test_ties_take_the_first_slot_and_an_equal_event_takes_none() -> None:
    assert memory.weakest_slot(torch.zeros(1, 5), torch.tensor([[0.1]])).int().tolist() == [[1, 0, 0, 0, 0]]
    assert not memory.weakest_slot(torch.full((1, 5), 0.1), torch.tensor([[0.1]])).any()


def test_a_read_of_empty_slots_is_zero_and_empty_slots_do_not_dilute() -> None:
    query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    values, sharp = torch.tensor([[[5.0], [0.0], [0.0]]]), torch.tensor([8.0])
    assert torch.equal(memory.attend(query, keys, values, torch.zeros(1, 3), sharp, None), torch.zeros(1, 1))
    for strength in (1.0, 1e-12):
        read = memory.attend(query, keys, values, torch.tensor([[strength, 0.0, 0.0]]), sharp, None)
        torch.testing.assert_close(read, torch.tensor([[5.0]]), rtol=1e-5, atol=0)


@given(st.integers(0, 1000), st.floats(-1, 1.5), st.floats(0.1, 80))
@settings(deadline=None)
def test_a_sink_is_one_more_entry_of_the_softmax_with_nothing_to_give(seed: int, sink: float, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    query, keys = rng.normal(size=(2, 3)), rng.normal(size=(2, 4, 3))
    query /= np.linalg.norm(query, axis=-1, keepdims=True)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    values, strengths = rng.normal(size=(2, 4, 5)), rng.uniform(0.1, 1, (2, 4)) * rng.integers(0, 2, (2, 4))
    strengths[1] = 0
    expected = np.zeros((2, 5))
    if strengths[0].any():
        logits = sharpness * keys[0] @ query[0] + np.log(strengths[0] / strengths[0].max() + memory.LOG_FLOOR)
        terms = np.exp(np.append(logits, sharpness * sink) - max(logits.max(), sharpness * sink))
        expected[0] = terms[:4] @ values[0] / terms.sum()
    tensors = (torch.from_numpy(a) for a in (query, keys, values, strengths, np.array([sharpness])))
    read = memory.attend(*tensors, None, torch.tensor([sink], dtype=torch.float64))
    np.testing.assert_allclose(read.numpy(), expected, rtol=1e-11, atol=1e-13)
    assert not read[1].any()


def test_a_sink_far_below_every_key_takes_nothing_and_one_above_leaves_nothing() -> None:
    torch.manual_seed(0)
    query, sharp = memory.unit(torch.randn(3, 4)), torch.tensor([8.0])
    slots = memory.unit(torch.randn(3, 5, 4)), torch.randn(3, 5, 2), torch.rand(3, 5) + 0.1
    plain = memory.attend(query, *slots, sharp, None)
    for sink in (-1e4, -torch.inf):
        assert torch.equal(memory.attend(query, *slots, sharp, None, torch.tensor([sink])), plain)
    assert memory.attend(query, *slots, sharp, None, torch.tensor([5.0])).abs().max() < 1e-10


def test_slots_can_be_added_without_changing_what_is_read() -> None:
    torch.manual_seed(0)
    query, sharp = memory.unit(torch.randn(3, 4)), torch.tensor([8.0])
    keys, values, strengths = memory.unit(torch.randn(3, 5, 4)), torch.randn(3, 5, 2), torch.rand(3, 5) + 0.1
    few = memory.attend(query, keys, values, strengths, sharp, None)
    pad = [torch.cat([a, torch.zeros(3, 20, *a.shape[2:])], dim=1) for a in (keys, values, strengths)]
    torch.testing.assert_close(memory.attend(query, *pad, sharp, None), few, rtol=0, atol=3e-5)  # 20 slots at ε


def test_the_window_holds_the_last_observations_and_skips_rows_that_saw_nothing() -> None:
    window, expected = torch.zeros(2, 3, 1), [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    for t in range(1, 7):
        observed = [True, t % 2 == 0]
        window = memory.shift_in(window, torch.full((2, 1), float(t)), torch.tensor(observed).unsqueeze(-1))
        expected = [[*row[1:], float(t)] if seen else row for row, seen in zip(expected, observed, strict=True)]
        assert window[:, :, 0].tolist() == expected


def test_ages_count_small_steps_up_to_their_limit() -> None:
    ages, dt = torch.zeros(1, 1), torch.tensor([[0.01]])
    for _ in range(5000):
        ages = memory.age(ages, dt, 40.0)
    assert ages.item() == 40.0
    assert memory.age(torch.tensor([[39.0]]), dt, 40.0).item() > 39.0
