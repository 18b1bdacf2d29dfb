"""Running statistics against exact exponential averages in float64."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from odestream.models import normalise
from odestream.models.normalise import Running, Scaling


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
