"""Recurrent rivals against torch's own GRU over a whole sequence, torchdiffeq, and closed forms in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

from odestream.models.baselines import Baseline, Frame, make
from odestream.models.baselines.ode_rnn import OdeRnnSizes
from odestream.models.config import CellConfig
from tests.helpers.baselines import doubled, random_baseline
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_inputs

LENGTH, BATCH = 12, 2
CONFIG: CellConfig = tiny_config("classify", frequencies=(), averages=())


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    """Everything observed, at irregular times."""
    return {**doubled(random_inputs(CONFIG, LENGTH, BATCH, seed=1)), "mask": torch.ones(LENGTH, BATCH, 2).double()}


def standardised(x: Tensor) -> Tensor:
    return (x - torch.tensor(CONFIG.centre)) / torch.tensor(CONFIG.scale)


def hidden(model: Baseline, inputs: dict[str, Tensor]) -> Tensor:
    """h [T, B, D] by the step."""
    state, found = model.initial_state(BATCH), []
    with torch.no_grad():
        for t in range(LENGTH):
            _, state = model.step({name: value[t] for name, value in inputs.items()}, state)
            found.append(state["h"])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["gru", "gru-dt"])
def test_a_gru_is_that_of_torch_over_the_sequence(name: str, inputs: dict[str, Tensor]) -> None:
    model: Any = random_baseline(name, CONFIG).double()
    columns = [standardised(inputs["x"]), inputs["mask"]] + ([torch.log1p(inputs["dt"])] if name == "gru-dt" else [])
    signal = torch.cat(columns, dim=-1)
    whole = nn.GRU(signal.shape[-1], 16).double()
    own = model.cell.state_dict()
    whole.load_state_dict({f"{key}_l0": value for key, value in own.items()})
    with torch.no_grad():
        expected, _ = whole(signal)
    torch.testing.assert_close(hidden(model, inputs), expected, rtol=1e-11, atol=1e-12)


def test_gru_d_decays_values_to_the_mean_and_the_state_to_zero(inputs: dict[str, Tensor]) -> None:
    model: Any = random_baseline("gru-d", CONFIG).double()
    with torch.no_grad():
        model.value_rate.fill_(0.7)
        model.hidden_decay.weight.abs_()
    inputs["mask"][3:6, :, 0] = 0.0
    found = hidden(model, inputs)
    value, mask, dt = (inputs[key].numpy() for key in ("x", "mask", "dt"))
    value = standardised(torch.from_numpy(value)).numpy()
    last, age, h = np.zeros((BATCH, 2)), np.zeros((BATCH, 2)), torch.zeros(BATCH, 16).double()
    offset, weight, bias = (p.detach().numpy() for p in (model.value_offset, *model.hidden_decay.parameters()))
    for t in range(LENGTH):
        age = age + dt[t]
        shrunk = np.exp(-np.maximum(0, 0.7 * age + offset)) * last  # towards the mean of standardised values, zero
        filled = mask[t] * value[t] + (1 - mask[t]) * shrunk
        decayed = h * torch.from_numpy(np.exp(-np.maximum(0, age @ weight.T + bias)))
        signal = np.concatenate([filled, mask[t] * value[t], mask[t], np.log1p(dt[t])], axis=1)
        with torch.no_grad():
            h = model.cell(torch.from_numpy(signal), decayed)
        last, age = np.where(mask[t] > 0, value[t], last), np.where(mask[t] > 0, 0.0, age)
        torch.testing.assert_close(found[t], h, rtol=1e-9, atol=1e-11)


def test_an_ode_rnn_flows_as_dopri5_does_and_then_jumps(inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    model: Any = make("ode-rnn", Frame.of(CONFIG), OdeRnnSizes(16, steps=64)).double()
    signal = torch.cat([standardised(inputs["x"]), inputs["mask"], torch.log1p(inputs["dt"])], dim=-1)
    found, h = hidden(model, inputs), torch.zeros(BATCH, 16).double()
    with torch.no_grad():
        for t in range(LENGTH):
            rows = []
            for row in range(BATCH):
                end = float(inputs["dt"][t, row])
                ticks = torch.tensor([0.0, end]).double()
                flowed = (
                    h[row]
                    if end == 0
                    else odeint(lambda _, s: model.field(s), h[row], ticks, rtol=1e-10, atol=1e-12)[-1]
                )
                rows.append(flowed)
            h = model.cell(signal[t], torch.stack(rows))
            torch.testing.assert_close(found[t], h, rtol=1e-7, atol=1e-8)


def test_cfc_interpolates_between_two_states_by_a_sigmoid_of_time(inputs: dict[str, Tensor]) -> None:
    model: Any = random_baseline("cfc", CONFIG).double()
    found, h = hidden(model, inputs).numpy(), np.zeros((BATCH, 16))

    def layer(name: str, z: Any) -> Any:
        weight, bias = (p.detach().numpy() for p in getattr(model, name).parameters())
        return z @ weight.T + bias

    value = standardised(inputs["x"]).numpy()
    for t in range(LENGTH):
        time = inputs["dt"][t].numpy()
        signal = np.concatenate([value[t], np.ones((BATCH, 2)), np.log1p(time), h], axis=1)
        inner = 1.7159 * np.tanh(0.666 * layer("backbone", signal))
        share = 1 / (1 + np.exp(-layer("rate", inner) * time - layer("offset", inner)))
        h = (1 - share) * np.tanh(layer("early", inner)) + share * np.tanh(layer("late", inner))
        np.testing.assert_allclose(found[t], h, rtol=1e-9, atol=1e-11)


def test_a_silent_stretch_counts_as_elapsed_time(inputs: dict[str, Tensor]) -> None:
    """Queries between two observations are the same as one longer gap."""
    model = random_baseline("gru-dt", CONFIG).double()
    inputs["mask"][4:7] = 0.0
    merged = {name: torch.cat([value[:4], value[7:]]) for name, value in inputs.items()}
    merged["dt"][4] = inputs["dt"][4:8].sum(dim=0)
    found = hidden(model, inputs)
    state = model.initial_state(BATCH)
    with torch.no_grad():
        for t in range(LENGTH - 3):
            _, state = model.step({name: value[t] for name, value in merged.items()}, state)
    torch.testing.assert_close(state["h"], found[-1], rtol=1e-11, atol=1e-12)
