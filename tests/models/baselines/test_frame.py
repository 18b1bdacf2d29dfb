"""What holds for every rival: its parallel run equals its steps, queries change nothing, it sees what a cell sees."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from odestream.models.baselines import BASELINES, Baseline, Frame, footprint, make
from odestream.models.baselines.stack import Stacked
from odestream.models.cell import Cell
from odestream.models.config import preset
from odestream.models.model import make_model
from odestream.models.observing import look
from odestream.runtime.errors import InputError
from tests.helpers.baselines import doubled, random_baseline
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_inputs

TASKS = ("forecast", "classify", "tokens")
LENGTH, BATCH = 40, 3


def stepped(model: Baseline, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    state, ys = model.initial_state(BATCH), []
    for t in range(LENGTH):
        outputs, state = model.step({name: value[t] for name, value in inputs.items()}, state)
        ys.append(outputs["y"])
    return torch.stack(ys), state


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", BASELINES)
def test_a_parallel_run_in_pieces_equals_the_steps_one_by_one(name: str, task: str) -> None:
    config = tiny_config(task)
    model = random_baseline(name, config).double()
    inputs = doubled(random_inputs(config, LENGTH, BATCH, seed=1))
    inputs["mask"][5:9, 0] = 0.0  # a silence in one stream alone
    expected, last = stepped(model, inputs)
    state, ys = model.initial_state(BATCH), []
    for start, stop in ((0, 17), (17, 18), (18, LENGTH)):
        run = model({name: value[start:stop] for name, value in inputs.items()}, state)
        state = run.state
        ys.append(run.y)
    torch.testing.assert_close(torch.cat(ys), expected, rtol=1e-11, atol=1e-11)
    assert state.keys() == last.keys()
    for member, value in last.items():
        torch.testing.assert_close(state[member], value, rtol=1e-11, atol=1e-11, msg=member)


@pytest.mark.parametrize("name", [name for name, kind in BASELINES.items() if issubclass(kind, Stacked)])
def test_gradients_of_the_parallel_run_are_those_of_the_steps(name: str) -> None:
    config = tiny_config("classify")
    model = random_baseline(name, config).double()
    inputs = doubled(random_inputs(config, LENGTH, BATCH, seed=2))
    weights = [p for p in model.parameters() if p.requires_grad]
    grads = [
        torch.autograd.grad(y.square().sum(), weights, allow_unused=True)
        for y in (stepped(model, inputs)[0], model(inputs).y)
    ]
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BASELINES)
def test_a_query_lets_time_pass_and_changes_nothing_else(name: str) -> None:
    config = tiny_config("forecast")
    model = random_baseline(name, config)
    inputs = random_inputs(config, LENGTH, BATCH, seed=3)
    with torch.no_grad():
        _, state = stepped(model, inputs)
        query = {
            **{k: v[-1] for k, v in inputs.items()},
            "mask": torch.zeros(BATCH, 2),
            "dt": torch.full((BATCH, 1), 0.3),
        }
        _, after = model.step(query, state)
        _, still = model.step({**query, "dt": torch.zeros(BATCH, 1)}, state)
    changed = {member for member in state if not torch.equal(state[member], after[member])}
    assert changed == {"ua", "norm"} | ({"xa"} if name == "gru-d" else set())
    assert torch.equal(after["norm"][..., 0], state["norm"][..., 0])
    assert all(torch.equal(still[member], state[member]) for member in state)


@pytest.mark.parametrize("name", BASELINES)
def test_two_queries_forecast_what_one_over_both_gaps_forecasts(name: str) -> None:
    config = tiny_config("forecast", frequencies=())
    model = random_baseline(name, config).double()
    inputs = doubled(random_inputs(config, LENGTH, BATCH, seed=4))
    _, state = stepped(model, inputs)
    query = {"x": inputs["x"][0], "mask": torch.zeros(BATCH, 2).double()}
    whole, _ = model.step({**query, "dt": torch.full((BATCH, 1), 0.7, dtype=torch.float64)}, state)
    _, between = model.step({**query, "dt": torch.full((BATCH, 1), 0.3, dtype=torch.float64)}, state)
    parts, _ = model.step({**query, "dt": torch.full((BATCH, 1), 0.4, dtype=torch.float64)}, between)
    torch.testing.assert_close(parts["y"], whole["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_a_rival_sees_the_features_that_a_cell_sees(task: str) -> None:
    config = tiny_config(task)
    cell, model = Cell(config), random_baseline("gru", config)
    inputs = random_inputs(config, LENGTH, BATCH)
    ours, theirs = (look(m, inputs, m.initial_state(BATCH)) for m in (cell, model))
    assert torch.equal(ours.observed, theirs.observed)
    if task == "tokens":
        assert torch.equal(
            theirs.features[ours.observed.squeeze(-1)], model.embedding(inputs["x"])[ours.observed.squeeze(-1)]
        )  # type: ignore[misc]
    else:
        assert torch.equal(ours.features, theirs.features)
    assert model.spec().inputs == cell.spec().inputs
    assert model.spec().output("y") == cell.spec().output("y")


@pytest.mark.parametrize("name", BASELINES)
def test_a_row_of_a_batch_does_not_depend_on_its_mates(name: str) -> None:
    config = tiny_config("forecast")
    model = random_baseline(name, config).double()
    inputs = doubled(random_inputs(config, LENGTH, BATCH, seed=5))
    together = model(inputs)
    alone = model({key: value[:, 1:2] for key, value in inputs.items()})
    torch.testing.assert_close(alone.y, together.y[:, 1:2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_only_the_plain_gru_is_blind_to_time(name: str) -> None:
    config = tiny_config("classify", frequencies=(), averages=())
    model = random_baseline(name, config).double()
    inputs = doubled(random_inputs(config, LENGTH, BATCH, seed=6))
    slower = {**inputs, "dt": 3 * inputs["dt"]}
    same = torch.allclose(model(inputs).y, model(slower).y, rtol=1e-9, atol=1e-9)
    assert same == (name == "gru")


@pytest.mark.parametrize("name", BASELINES)
def test_a_rival_is_matched_to_the_number_of_parameters_of_a_cell(name: str) -> None:
    config = tiny_config("forecast", sizes=preset("nano"))
    model, ours = make_model(name, config), footprint(Cell(config)).parameters
    found = footprint(model)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parameters == pytest.approx(ours, rel=0.03)
    assert found.state_bytes == 4 * sum(v.numel() for v in model.initial_state(1).values())


def test_sizes_that_cannot_be_are_refused() -> None:
    frame = Frame.of(tiny_config("forecast"))
    with pytest.raises(InputError, match="width is 0"):
        BASELINES["gru"].sizes_type(width=0)
    kind = BASELINES["sliding-window"].sizes_type
    with pytest.raises(InputError, match="multiple of twice the heads"):
        make("sliding-window", frame, dataclasses.replace(kind(), heads=3))
    with pytest.raises(InputError, match="reach of two"):
        make("sliding-window", frame, dataclasses.replace(kind(), window=1))
