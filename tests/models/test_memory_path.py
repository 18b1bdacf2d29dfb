"""The memory path of a whole sequence at once against its steps one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odestream.models.cell import Cell, Expected
from odestream.models.config import STORES
from odestream.models.gates import hard_sigmoid, openness
from odestream.models.hybrid import access, content
from odestream.models.memory_path import recall_path
from odestream.models.observing import look
from odestream.models.unroll import unroll
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs

LENGTH, BATCH = 40, 3


def one_by_one(cell: Cell, inputs: dict[str, Tensor], hidden: Tensor, opened: Tensor | None) -> Tensor:
    """Answers of the memories step by step, with a hidden state that is given instead of flown."""
    w, start = cell.weights().memory, cell.initial_state(BATCH)
    seen, memories, calm = look(cell, inputs, start), start, torch.zeros(BATCH, 1)
    ys = []
    for t in range(LENGTH):
        said = content(seen.features[t], w, cell.config, None, opened)
        got = access(said, hidden[t], seen.observed[t], calm, inputs["dt"][t], memories, w, cell.config)
        memories = got.memories
        ys.append(cell.answer(Expected(hidden[t], calm, hidden[t], None), hidden[t], got.reads))
    return torch.stack(ys)


@pytest.mark.parametrize("task", ["classify", "tokens"])
@pytest.mark.parametrize("stores", [STORES, *((store,) for store in STORES)])
def test_all_at_once_equals_one_by_one(task: str, stores: tuple[str, ...]) -> None:
    cell = random_cell(tiny_config(task, stores=stores, episodic_sink="episodic" in stores))
    inputs, hidden = random_inputs(cell.config, LENGTH, BATCH), torch.randn(LENGTH, BATCH, cell.config.sizes.hidden)
    opened = torch.rand(BATCH, len(stores))
    expected = one_by_one(cell, inputs, hidden, opened)
    assert expected.abs().max() > 0.1
    got = recall_path(cell, inputs, range(LENGTH), hidden=hidden, opened=opened)
    torch.testing.assert_close(got.y, expected, rtol=1e-4, atol=2e-6)
    asked = [3, 17, 39]
    some = recall_path(cell, inputs, asked, hidden=hidden[asked], opened=opened)
    torch.testing.assert_close(some.y, expected[asked], rtol=1e-4, atol=2e-6)


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=8)
def test_gradients_are_those_of_the_steps_one_by_one(seed: int, sink: bool) -> None:
    cell = random_cell(tiny_config("classify", surprise_gate=True, episodic_sink=sink), seed)
    inputs, hidden = random_inputs(cell.config, LENGTH, BATCH, seed), torch.zeros(LENGTH, BATCH, 6)
    parameters = list(cell.memory.parameters())
    expected = torch.autograd.grad(one_by_one(cell, inputs, hidden, None).square().sum(), parameters, allow_unused=True)
    got = torch.autograd.grad(recall_path(cell, inputs, range(LENGTH)).y.square().sum(), parameters, allow_unused=True)
    for g, e in zip(got, expected, strict=True):
        assert (g is None) == (e is None)
        if g is not None and e is not None:
            torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-4)


def test_closed_reads_return_nothing_and_leave_what_is_stored_as_it_is() -> None:
    cell = random_cell(tiny_config("classify"))
    inputs = random_inputs(cell.config, LENGTH, BATCH)
    full, closed = (
        unroll(cell, inputs, cell.initial_state(BATCH), opened=factor * torch.ones(BATCH, 3)) for factor in (1.0, 0.0)
    )
    plain = unroll(cell, inputs, cell.initial_state(BATCH))
    torch.testing.assert_close(full.y, plain.y, rtol=0, atol=0)
    assert (closed.y - plain.y).abs().max() > 0.01
    for name in ("wk", "wv", "ws", "m", "ek", "ev", "es"):
        torch.testing.assert_close(closed.state[name], plain.state[name], rtol=0, atol=0)


def test_openness_presses_on_a_gate_beyond_the_point_where_its_strength_is_zero() -> None:
    logit = torch.tensor([-3.0, 0.0, 3.0], requires_grad=True)
    (strength_slope,) = torch.autograd.grad(hard_sigmoid(logit).sum(), logit)
    (slope,) = torch.autograd.grad(openness(logit).sum(), logit)
    assert strength_slope[0] == 0
    assert slope[0] > 0.1
    assert slope[2] < 0.01
    zero = torch.tensor([-torch.log(torch.tensor(11.0))])
    assert hard_sigmoid(zero).item() == pytest.approx(0.0, abs=1e-6)
    assert openness(zero).item() == pytest.approx(0.5)
