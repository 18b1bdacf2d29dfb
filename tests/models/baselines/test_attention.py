"""Attention against a loop over queries and complex rotations, in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from odestream.models.baselines import BASELINES
from odestream.models.baselines.attention import ROTARY_BASE, Attention
from odestream.models.baselines.full_attention import FullAttentionSizes, cache_bytes
from odestream.models.baselines.linear_attention import LinearAttentionSizes, LinearMixer
from odestream.models.baselines.sliding_window import SlidingWindowSizes
from odestream.models.baselines.strided_sparse import StridedSparseSizes
from tests.helpers.baselines import stepped_mixer

Floats = NDArray[np.float64]
LENGTH, WIDTH, HEADS = 30, 16, 2
SIZES = {
    "sliding-window": (SlidingWindowSizes(WIDTH, heads=HEADS, window=5), set(range(5))),
    "strided-sparse": (StridedSparseSizes(WIDTH, heads=HEADS, stride=3, reach=4), {0, 1, 2, 3, 6, 9, 12}),
    "full-attention": (FullAttentionSizes(WIDTH, heads=HEADS, length=64), set(range(64))),
}


def attended(x: Floats, distances: set[int], mixer: Attention) -> Floats:
    """One query and one head at a time; pairs of a key as complex numbers, turned by the angle of its position."""
    q, k, v = (x @ mixer.project.weight.detach().numpy().T[:, i * WIDTH : (i + 1) * WIDTH] for i in range(3))
    size, found = WIDTH // HEADS, np.zeros_like(x)
    angles = ROTARY_BASE ** (-np.arange(size // 2) / (size // 2))
    for head in range(HEADS):
        own = slice(head * size, (head + 1) * size)
        turned = []
        for part in (q[:, own], k[:, own]):
            pairs = part[:, : size // 2] + 1j * part[:, size // 2 :]
            turned.append(pairs * np.exp(1j * np.arange(len(x))[:, None] * angles))
        for i in range(len(x)):
            seen = [j for j in range(i + 1) if i - j in distances]
            logits = np.array([(turned[0][i].conj() * turned[1][j]).sum().real for j in seen]) / np.sqrt(size)
            weights = np.exp(logits - logits.max())
            found[i, own] = (weights / weights.sum()) @ v[seen][:, own]
    return found @ mixer.out.weight.detach().numpy().T


@pytest.mark.parametrize("name", SIZES)
def test_attention_looks_back_to_its_distances_and_no_others(name: str) -> None:
    torch.manual_seed(0)
    sizes, distances = SIZES[name]
    mixer = BASELINES[name].mixer(None, sizes).double()  # type: ignore[attr-defined]
    x = torch.randn(LENGTH, WIDTH, dtype=torch.float64)
    found, state = stepped_mixer(mixer, x, torch.ones(LENGTH, 1))
    np.testing.assert_allclose(
        found.numpy(), attended(x.numpy(), distances, mixer), atol=1e-5
    )  # its angles are float32
    assert state["k"].shape == (1, max(distances), WIDTH)
    assert state["n"].item() == min(LENGTH, max(distances))


def test_a_sliding_window_is_blind_beyond_what_its_layers_reach() -> None:
    torch.manual_seed(0)
    mixer = BASELINES["sliding-window"].mixer(None, SIZES["sliding-window"][0]).double()  # type: ignore[attr-defined]
    x = torch.randn(LENGTH, WIDTH, dtype=torch.float64)
    changed = x.clone()
    changed[10] += 1
    one, other = (stepped_mixer(mixer, rows, torch.ones(LENGTH, 1))[0] for rows in (x, changed))
    differs = (one != other).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [10, 11, 12, 13, 14]


def test_a_cache_grows_to_the_stated_length_and_no_further() -> None:
    sizes = FullAttentionSizes(64, layers=3, length=100)
    assert cache_bytes(sizes, 10) == 10 * 3 * 2 * 64 * 4
    assert cache_bytes(sizes, 1000) == cache_bytes(sizes, 100)


def test_linear_attention_is_the_quotient_of_its_sums() -> None:
    torch.manual_seed(0)
    mixer = LinearMixer(LinearAttentionSizes(WIDTH, heads=HEADS, keys=3, values=5)).double()
    x = torch.randn(LENGTH, WIDTH, dtype=torch.float64)
    found, _ = stepped_mixer(mixer, x, torch.ones(LENGTH, 1))
    q, k, v = (x.numpy() @ part.weight.detach().numpy().T for part in (mixer.query, mixer.key, mixer.value))
    q, k = (np.where(part > 0, part + 1, np.exp(part)).reshape(LENGTH, HEADS, 3) for part in (q, k))
    y = np.zeros((LENGTH, HEADS, 5))
    for i in range(LENGTH):
        for head in range(HEADS):
            weights = np.array([q[i, head] @ k[j, head] for j in range(i + 1)])
            y[i, head] = weights / weights.sum() @ v.reshape(LENGTH, HEADS, 5)[: i + 1, head]
    expected = y.reshape(LENGTH, -1) @ mixer.out.weight.detach().numpy().T
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)
