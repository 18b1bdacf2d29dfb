"""Running statistics against exact exponential averages in float64."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from odestream.models import normalise
from odestream.models.baselines import Frame, make
from odestream.models.baselines.config import BaselineConfig
from odestream.models.cell import Cell
from odestream.models.config import CellConfig
from odestream.models.normalise import Running, Scaling
from odestream.models.observing import look
from tests.helpers.problems import tiny_config
from tests.helpers.sequences import random_cell, random_inputs


@given(st.floats(0, 60))
def test_decayed_keeps_its_digits_in_float32(z: float) -> None:
    z32 = torch.tensor(z)
    got, exact = normalise.decayed(z32).item(), -math.expm1(-z32.item())
    assert abs(got - exact) <= 1e-6 * exact


def test_averages_and_last_value_follow_a_record_of_350_ppm_with_holes() -> None:
    torch.manual_seed(0)
    taus, centre = (1.0, 20.0), 340.0
    scaling = Scaling(torch.tensor([centre]), torch.tensor([2.0]), torch.tensor(taus))
    running = normalise.unpack(torch.zeros(1, 1, 5))
    average, last, since = [0.0, 0.0], None, 0.0
    for t in range(500):
        x, dt, seen = 350 + math.sin(t / 9), 0.003 + 0.1 * (t % 3), t % 4 != 1
        running = normalise.elapse(running, torch.tensor([[dt]]), 1000.0)
        running = normalise.observe(running, torch.tensor([[x]]), torch.tensor([[float(seen)]]), scaling)
        since += dt
        if seen:
            for j, tau in enumerate(taus):
                average[j] = x if last is None else average[j] - math.expm1(-since / tau) * (x - average[j])
            last, since = x, 0.0
    assert last is not None
    assert abs(running.last.item() + centre - last) < 1e-4
    assert abs(running.elapsed.item() - since) < 1e-6
    for j in range(2):
        assert abs(running.averages[0, 0, j].item() + centre - average[j]) < 1e-4


def test_pack_is_the_inverse_of_unpack() -> None:
    norm = torch.randn(2, 3, 6)
    assert torch.equal(normalise.pack(normalise.unpack(norm)), norm)


def test_missing_channels_and_first_observations_show_nothing_but_their_mask() -> None:
    scaling = Scaling(torch.zeros(2), torch.ones(2), torch.ones(1))
    before = Running(torch.tensor([[5.0, 0.0]]), torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, 1))
    x = torch.tensor([[1e30, 7.0]])
    hidden = normalise.running_features(before, x, torch.tensor([[0.0, 1.0]]), scaling)
    assert hidden.tolist() == [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]


def test_a_new_stream_of_a_stationary_record_is_expected_at_the_centre_and_its_long_average_stays_there() -> None:
    cell = Cell(tiny_config(stationary=True, averages=(1.0, 1e4))).eval()
    first = {"x": torch.tensor([[353.0, -1.0]]), "mask": torch.ones(1, 2), "dt": torch.zeros(1, 1)}
    inputs = {**first, "phase": torch.zeros(1, 4)}
    with torch.no_grad():
        outputs, state = cell.step(inputs, cell.initial_state(1))
        seen = cell.observe(inputs, cell.initial_state(1)).features
        for _ in range(50):
            _, state = cell.step({**inputs, "dt": torch.full((1, 1), 0.1)}, state)
    assert outputs["y"][0, :2].tolist() == [350.0, -2.0]
    torch.testing.assert_close(seen[0, :2], torch.tensor([2.0, 2.0]))  # (x − centre)/scale, as if compared with it
    averages = normalise.unpack(state["norm"]).averages[0]
    torch.testing.assert_close(averages[:, 0], torch.tensor([3.0, 1.0]), rtol=0.01, atol=0)
    assert averages[:, 1].abs().max() < 0.002


def test_a_stationary_record_hears_where_it_is_and_any_other_only_how_it_moves() -> None:
    for stationary in (False, True):
        cell = random_cell(tiny_config(stationary=stationary, averages=(1.0, 1e4), centre=(0.0, 0.0)))
        inputs, state = random_inputs(cell.config, 8, 2), cell.initial_state(2)
        here, there = (look(cell, {**inputs, "x": inputs["x"] + by}, state).features for by in (0.0, 4.0))
        assert torch.allclose(here, there, atol=1e-4) != stationary


def test_what_is_not_stationary_is_written_down_as_before_there_was_such_a_thing() -> None:
    plain, config = tiny_config(), tiny_config(stationary=True)
    assert "stationary" not in plain.to_dict()
    assert CellConfig.from_dict(config.to_dict()) == config
    for own in (plain, config):
        rival = make("gru", Frame.of(own))
        written = rival.config.to_dict()
        assert BaselineConfig.from_dict(written, rival.sizes_type) == rival.config
        assert ("stationary" in written["frame"]) == own.stationary  # type: ignore[operator]
