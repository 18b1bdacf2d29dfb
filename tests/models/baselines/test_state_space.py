"""Delta rule and state-space models against their equations in numpy and the exact flow by matrix exponentials."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import expm
from torch import Tensor

from odestream.models.baselines.diagonal_ssm import DiagonalMixer, DiagonalSsmSizes, legs_spectrum
from odestream.models.baselines.gated_deltanet import DeltaMixer, GatedDeltaNetSizes
from odestream.models.baselines.linoss import LinossSizes, OscillatorMixer
from odestream.models.baselines.scan import diagonal, prefixes
from odestream.models.baselines.selective_ssm import SelectiveMixer, SelectiveSsmSizes
from tests.helpers.baselines import stepped_mixer

Floats = NDArray[np.float64]
LENGTH, WIDTH = 25, 8


@pytest.fixture
def rows() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(LENGTH, WIDTH, dtype=torch.float64)


def array(parameter: Tensor) -> Floats:
    return parameter.detach().double().numpy()


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def silu(x: Floats) -> Floats:
    return x * sigmoid(x)


def convolved(x: Floats, weight: Floats, bias: Floats | float = 0.0) -> Floats:
    """SiLU of a causal convolution, channel by channel."""
    columns = [np.convolve(x[:, c], weight[::-1, c])[: len(x)] for c in range(x.shape[1])]
    return silu(np.stack(columns, axis=1) + bias)


def test_the_gated_delta_rule_is_that_of_the_paper(rows: Tensor) -> None:
    mixer = DeltaMixer(GatedDeltaNetSizes(WIDTH, heads=2, keys=3, values=5)).double()
    found, state = stepped_mixer(mixer, rows, torch.ones(LENGTH, 1))
    x = rows.numpy()
    mixed = convolved(x @ array(mixer.project.weight).T, array(mixer.conv.weight))
    q, k, v = (part.reshape(LENGTH, 2, -1) for part in np.split(mixed, [6, 12], axis=1))
    q, k = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (q, k))
    beta = sigmoid(x @ array(mixer.strength.weight).T)
    alpha = np.exp(
        -np.exp(array(mixer.log_rate)) * np.log1p(np.exp(x @ array(mixer.decay.weight).T + array(mixer.offset)))
    )
    s, y = np.zeros((2, 5, 3)), np.zeros((LENGTH, 2, 5))
    for t in range(LENGTH):
        for h in range(2):
            turned = np.eye(3) - beta[t, h] * np.outer(k[t, h], k[t, h])
            s[h] = alpha[t, h] * s[h] @ turned + beta[t, h] * np.outer(v[t, h], k[t, h])
            y[t, h] = s[h] @ q[t, h] / np.sqrt(3)
    y /= np.sqrt((y**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = (y.reshape(LENGTH, -1) * silu(x @ array(mixer.gate.weight).T)) @ array(mixer.out.weight).T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state["m"][0].numpy(), s.transpose(0, 2, 1), rtol=1e-9, atol=1e-12)


def test_the_selective_recurrence_is_the_sum_over_its_past(rows: Tensor) -> None:
    mixer = SelectiveMixer(SelectiveSsmSizes(WIDTH, states=4)).double()
    found, state = stepped_mixer(mixer, rows, torch.ones(LENGTH, 1))
    inner, gate = np.split(rows.numpy() @ array(mixer.project.weight).T, 2, axis=1)
    u = convolved(inner, array(mixer.conv.weight), array(mixer.conv.bias))
    rank, b, c = np.split(u @ array(mixer.select.weight).T, [1, 5], axis=1)
    delta = np.log1p(np.exp(rank @ array(mixer.delta.weight).T + array(mixer.delta.bias)))
    clock = np.cumsum(delta, axis=0)
    a = -np.exp(array(mixer.log_rate))
    assert np.array_equal(a.round(5), np.tile([-1.0, -2.0, -3.0, -4.0], (2 * WIDTH, 1)))
    y, s = np.zeros_like(u), np.zeros_like(a)
    for t in range(LENGTH):
        faded = np.exp(a * (clock[t] - clock[: t + 1])[..., None])
        s = (faded * (delta[: t + 1] * u[: t + 1])[..., None] * b[: t + 1, None]).sum(axis=0)
        y[t] = s @ c[t] + array(mixer.skip) * u[t]
    np.testing.assert_allclose(found.numpy(), (y * silu(gate)) @ array(mixer.out.weight).T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state["s"][0].numpy(), s, rtol=1e-9, atol=1e-12)


def test_a_diagonal_model_follows_its_differential_equation_exactly(rows: Tensor) -> None:
    """Regular times: x is held for a step, and the flow over it is a matrix exponential of a real system."""
    mixer = DiagonalMixer(DiagonalSsmSizes(WIDTH, states=3)).double()
    _, state = stepped_mixer(mixer, rows, torch.ones(LENGTH, 1))
    step = np.exp(array(mixer.log_step))
    for n in range(3):
        decay, turn = np.exp(array(mixer.log_decay))[n], array(mixer.frequency)[n]
        b = np.stack([array(mixer.b_re.weight)[n], array(mixer.b_im.weight)[n]])
        s = np.zeros(2)
        for x in rows.numpy():
            system = np.zeros((3, 3))
            system[:2, :2] = [[-decay, -turn], [turn, -decay]]
            system[:2, 2] = b @ x
            s = (expm(step[n] * system) @ [*s, 1.0])[:2]
        np.testing.assert_allclose([state["re"][0, n].item(), state["im"][0, n].item()], s, rtol=1e-8, atol=1e-10)


def test_over_an_irregular_gap_a_diagonal_state_decays_and_turns_by_the_gap() -> None:
    mixer = DiagonalMixer(DiagonalSsmSizes(WIDTH, states=3)).double()
    start = {"re": torch.tensor([[1.0, 0.5, -2.0]]).double(), "im": torch.tensor([[0.0, 1.0, 0.3]]).double()}
    with torch.no_grad():
        _, after = mixer.step(torch.zeros(1, WIDTH).double(), torch.tensor([[7.3]]).double(), start)
    rate = -np.exp(array(mixer.log_decay)) + 1j * array(mixer.frequency)
    expected = np.exp(rate * np.exp(array(mixer.log_step)) * 7.3) * (start["re"] + 1j * start["im"]).numpy()
    np.testing.assert_allclose((after["re"] + 1j * after["im"]).numpy(), expected, rtol=1e-6)


def test_the_spectrum_is_that_of_the_normal_part_of_hippo_legs() -> None:
    n = 12
    root = np.sqrt(2 * np.arange(n) + 1)
    hippo = np.array([[-root[i] * root[j] if i > j else -(i + 1.0) * (i == j) for j in range(n)] for i in range(n)])
    values = np.linalg.eigvals(hippo + 0.5 * np.outer(root, root))
    decay, turn = legs_spectrum(n // 2)
    np.testing.assert_allclose(np.sort(values.imag[values.imag > 0]), turn, rtol=1e-9)
    np.testing.assert_allclose(-values.real, 0.5, rtol=1e-6)
    assert np.array_equal(decay, np.full(n // 2, 0.5))


def test_oscillators_take_the_implicit_euler_step(rows: Tensor) -> None:
    """Regular times: the step is the solution of (z' − z)/Δ = −A·y' + B·x, (y' − y)/Δ = z'."""
    mixer = OscillatorMixer(LinossSizes(WIDTH, states=4)).double()
    with torch.no_grad():
        mixer.stiffness.sub_(0.3)  # one or more of the stiffnesses is then clipped to zero
    _, state = stepped_mixer(mixer, rows, torch.ones(LENGTH, 1))
    a, step = np.maximum(array(mixer.stiffness), 0), sigmoid(array(mixer.log_step))
    z, y = np.zeros(4), np.zeros(4)
    for x in rows.numpy():
        force = array(mixer.drive.weight) @ x
        for n in range(4):
            system = np.array([[1.0, step[n] * a[n]], [-step[n], 1.0]])
            z[n], y[n] = np.linalg.solve(system, [z[n] + step[n] * force[n], y[n]])
    np.testing.assert_allclose(state["z"][0].numpy(), z, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(state["y"][0].numpy(), y, rtol=1e-8, atol=1e-10)


def test_oscillators_are_stable_over_any_gap() -> None:
    mixer = OscillatorMixer(LinossSizes(WIDTH, states=4)).double()
    state = {"z": torch.ones(1, 4).double(), "y": torch.ones(1, 4).double()}
    a, step = np.maximum(array(mixer.stiffness), 0), sigmoid(array(mixer.log_step))
    energy = 1 + a
    with torch.no_grad():
        for gap in (0.01, 1.0, 30.0, 1e4):
            _, state = mixer.step(torch.zeros(1, WIDTH).double(), torch.tensor([[gap]]).double(), state)
            now = state["z"][0].numpy() ** 2 + a * state["y"][0].numpy() ** 2
            np.testing.assert_allclose(now, energy / (1 + (step * gap) ** 2 * a), rtol=1e-6)  # implicit Euler's damping
            energy = now


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_a_scan_is_the_recurrence(length: int) -> None:
    torch.manual_seed(1)
    a, b = torch.rand(2, length, 3).double(), torch.randn(2, length, 3).double()
    _, found = prefixes((a, b), diagonal)
    s = torch.zeros(2, 3).double()
    for t in range(length):
        s = a[:, t] * s + b[:, t]
        torch.testing.assert_close(found[:, t], s, rtol=1e-12, atol=1e-12)
