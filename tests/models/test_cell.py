"""The step's contract: purity, missing channels, queries, batches, and the unroll's equality with it."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odestream.models.cell import Cell, State
from odestream.models.config import PRESETS, STORES, CellConfig
from odestream.models.unroll import unroll
from odestream.runtime.contract.tableau import calls_needed
from odestream.runtime.errors import InputError
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs

TASKS = ("forecast", "classify", "tokens")
ABLATIONS = [(store,) for store in STORES] + [("working", "episodic")]


def run(cell: Cell, length: int = 12, batch: int = 3, seed: int = 0) -> tuple[State, torch.Tensor]:
    state, ys = cell.initial_state(batch), []
    inputs = random_inputs(cell.config, length, batch, seed)
    with torch.no_grad():
        for t in range(length):
            outputs, state = cell.step({k: v[t] for k, v in inputs.items()}, state)
            ys.append(outputs["y"])
    return state, torch.stack(ys)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("task", TASKS)
def test_step_gives_and_takes_what_its_spec_says(task: str) -> None:
    cell = random_cell(tiny_config(task))
    spec = cell.spec()
    spec.validate()
    inputs = {k: v[0] for k, v in random_inputs(cell.config, 1, 3).items()}
    outputs, state = cell.step(inputs, cell.initial_state(3))
    assert {t.name: t.shape for t in spec.inputs} == {k: tuple(v.shape[1:]) for k, v in inputs.items()}
    assert {t.name: t.shape for t in spec.outputs} == {k: tuple(v.shape[1:]) for k, v in outputs.items()}
    assert {m.name: m.shape for m in spec.state} == {k: tuple(v.shape[1:]) for k, v in state.items()}
    assert [m.name for m in spec.state] == list(cell.initial_state(1))
    assert all(v.dtype == torch.float32 for v in (*outputs.values(), *state.values()))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stores", [STORES, *ABLATIONS])
def test_unroll_equals_the_steps_one_by_one(task: str, stores: tuple[str, ...]) -> None:
    cell = random_cell(tiny_config(task, stores=stores))
    inputs = random_inputs(cell.config, 12, 3)
    whole = unroll(cell, inputs, cell.initial_state(3), keep=("h",))
    state, ys = run(cell)
    torch.testing.assert_close(whole.y, ys, rtol=1e-5, atol=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(whole.state[name], value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole.kept["h"][-1], state["h"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_query_at_once_keeps_every_bit_of_the_state(task: str) -> None:
    cell = random_cell(tiny_config(task))
    state, _ = run(cell)
    state["h"][0, 0] = -0.0
    state["u"][0, 0] = -0.0
    if "norm" in state:
        state["norm"][0, 0, 0] = -0.0  # the last value; times since are never negative
    query = {k: v[0] for k, v in random_inputs(cell.config, 1, 3).items()}
    query = {**query, "mask": 0 * query["mask"], "dt": 0 * query["dt"]}
    _, after = cell.step(query, state)
    assert [name for name in state if not same_bits(state[name], after[name])] == []


@pytest.mark.parametrize("task", TASKS)
def test_a_query_lets_time_pass_and_changes_nothing_else(task: str) -> None:
    cell = random_cell(tiny_config(task))
    state, _ = run(cell)
    query = {k: v[0] for k, v in random_inputs(cell.config, 1, 3).items()}
    query = {**query, "mask": 0 * query["mask"], "dt": torch.full((3, 1), 0.7)}
    if task != "tokens":
        query["x"] = torch.full_like(query["x"], float("nan"))  # what a missing channel holds must not matter
    outputs, after = cell.step(query, state)
    moved = {name for name in state if not same_bits(state[name], after[name])}
    assert moved == {"h", "ua", "wa", "ea", "m"} | ({"norm"} if "norm" in state else set())
    rate = torch.nn.functional.softplus(cell.memory.log_decay_rate)
    torch.testing.assert_close(after["m"], state["m"] * torch.exp(-rate * 0.7), rtol=1e-6, atol=0)
    torch.testing.assert_close(after["ea"], state["ea"] + 0.7)
    if "norm" in state:
        after["norm"][..., 1] -= 0.7
        torch.testing.assert_close(after["norm"], state["norm"], rtol=0, atol=1e-6)
    assert torch.isfinite(outputs["y"]).all()


@pytest.mark.parametrize("task", TASKS)
def test_the_state_handed_in_is_not_changed(task: str) -> None:
    cell = random_cell(tiny_config(task))
    state, _ = run(cell)
    copy = {k: v.clone() for k, v in state.items()}
    cell.step({k: v[0] for k, v in random_inputs(cell.config, 1, 3).items()}, state)
    assert all(same_bits(state[name], copy[name]) for name in state)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_rows_is_its_rows_alone(task: str) -> None:
    cell = random_cell(tiny_config(task))
    inputs = random_inputs(cell.config, 15, 4)
    together = unroll(cell, inputs, cell.initial_state(4))
    for row in range(4):
        alone = unroll(cell, {k: v[:, row : row + 1] for k, v in inputs.items()}, cell.initial_state(1))
        torch.testing.assert_close(together.y[:, row : row + 1], alone.y, rtol=1e-5, atol=1e-5)


def test_a_forecast_is_made_before_the_observation_is_used() -> None:
    cell = random_cell(tiny_config())
    state, _ = run(cell)
    now = {k: v[0] for k, v in random_inputs(cell.config, 1, 3, holes=0.0).items()}
    forecasts = [
        cell.step({**now, "x": x, "mask": m}, state)[0]["y"]
        for x, m in ((now["x"], now["mask"]), (now["x"] + 9, now["mask"] * 0))
    ]
    assert torch.equal(forecasts[0], forecasts[1])


def test_a_split_gap_with_queries_between_gives_the_same_step() -> None:
    """Only the solver's own error remains: many steps of dopri54 leave 1e-5."""
    cell = random_cell(tiny_config(method="dopri54", steps=16, frequencies=()))
    state, _ = run(cell)
    now = {k: v[0] for k, v in random_inputs(cell.config, 1, 3, holes=0.0).items()}
    now["mask"], now["dt"] = torch.ones_like(now["mask"]), torch.full((3, 1), 1.2)
    whole, after_whole = cell.step(now, state)
    halfway = cell.step({**now, "mask": 0 * now["mask"], "dt": now["dt"] / 3}, state)[1]
    split, after_split = cell.step({**now, "dt": now["dt"] * 2 / 3}, halfway)
    torch.testing.assert_close(split["y"], whole["y"], rtol=1e-5, atol=1e-4)
    for name, value in after_whole.items():
        torch.testing.assert_close(
            after_split[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )


@given(st.floats(0, 200), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_hidden_state_stays_bounded_for_every_gap_inside_the_stability_bound(gap: float, seed: int) -> None:
    cell = random_cell(tiny_config("classify", frequencies=()), seed)
    calls = calls_needed(gap, cell.config.steps, cell.field.stiffness(), cell.config.method)
    state = cell.initial_state(1)
    state["h"] = torch.randn(1, cell.config.sizes.hidden)
    limit = max(float(state["h"].abs().max()), 1.0 / float(cell.field.weights().decay.detach().min()))
    query = {"x": torch.zeros(1, 2), "mask": torch.zeros(1, 2), "dt": torch.full((1, 1), gap / calls)}
    with torch.no_grad():
        for _ in range(min(calls, 40)):
            _, state = cell.step(query, state)
    assert state["h"].abs().max() <= 1.05 * limit


def test_trained_with_few_slots_deployed_with_many() -> None:
    few = random_cell(tiny_config("classify"))
    many = Cell(dataclasses.replace(few.config, sizes=dataclasses.replace(few.config.sizes, slots=9)))
    many.load_state_dict(few.state_dict())
    assert many.spec().state_bytes > few.spec().state_bytes
    _, y_few = run(few, length=3)
    _, y_many = run(many, length=3)
    torch.testing.assert_close(y_few, y_many, rtol=1e-3, atol=1e-3)


def test_presets_have_the_sizes_that_the_documentation_names() -> None:
    def config(name: str) -> CellConfig:
        return CellConfig("forecast", 1, PRESETS[name], (1.0,), (0.0,), averages=(1.0,), frequencies=(1.0,))

    nano = Cell(config("nano"))
    assert 50_000 < sum(p.numel() for p in nano.parameters()) < 130_000
    assert 16 * 1024 < nano.spec().state_bytes < 18 * 1024
    assert [PRESETS[n].hidden for n in ("nano", "small", "base")] == [64, 128, 256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "rk5"}, "unknown solver method"),
        ({"scale": (1.0,)}, "give one of each a channel"),
        ({"scale": (1.0, 0.0)}, "above 0"),
        ({"rtol": float("nan")}, "above 0"),
        ({"averages": ()}, "time constant"),
        ({"steps": 0}, "at least one step"),
        ({"stores": ("tape",)}, "one store or more"),
        ({"stores": ()}, "one store or more"),
        ({"task": "classify", "outputs": 1}, "two"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tiny_config(**changes)


def test_configuration_survives_json() -> None:
    config = tiny_config()
    assert CellConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="train again"):
        CellConfig.from_dict({**config.to_dict(), "flavour": 1})
