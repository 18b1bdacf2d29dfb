"""Diagonal state-space model (S5): complex decays, fixed in time, over the true gaps.

    s_t = exp(Λ·Δ·τ_t)·s_{t−1} + Λ⁻¹(exp(Λ·Δ) − 1)·B·x_t,   y_t = 2·Re(C·s_t) + D ⊙ x_t

Smith, Warrington, Linderman: Simplified state space layers for sequence modeling (2023), equations 3 to 6 with
conjugate symmetry and zero-order hold, and Λ from HiPPO-LegS, appendix B.1. τ is the gap before the observation in
typical gaps; the paper scales Δ by it (section 6.3). There the input too is held over τ; here an observation always
weighs as if held over one typical gap, since a stream's first one has no gap and would otherwise be lost. For regular
times both are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.baselines.config import StackSizes
from odestream.models.baselines.initial import linear, log_uniform
from odestream.models.baselines.scan import prefixes, rotation
from odestream.models.baselines.stack import Mixer, Rows, Stacked, at_count
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


@dataclass(frozen=True)
class DiagonalSsmSizes(StackSizes):
    """states: N, complex ones, each of which stands for a conjugate pair."""

    states: int = 64


class DiagonalSsm(Stacked):
    """Blocks of a diagonal state-space model; its gated output stands in for a feed-forward part."""

    sizes_type = DiagonalSsmSizes

    def mixer(self, sizes: DiagonalSsmSizes) -> Mixer:
        """A diagonal state-space model."""
        return DiagonalMixer(sizes)


class DiagonalMixer(Mixer):
    """State: re and im [N]."""

    def __init__(self, sizes: DiagonalSsmSizes) -> None:
        super().__init__()
        n, width = sizes.states, sizes.width
        decay, frequency = legs_spectrum(n)
        self.log_decay = nn.Parameter(torch.log(torch.from_numpy(decay).float()))
        self.frequency = nn.Parameter(torch.from_numpy(frequency).float())
        self.log_step = nn.Parameter(torch.log(log_uniform(n, 1e-3, 1e-1)))
        self.b_re, self.b_im = (linear(width, n, bias=False) for _ in range(2))
        self.c_re, self.c_im = (linear(n, width, bias=False) for _ in range(2))
        self.skip = nn.Parameter(torch.randn(width))
        self.gate = linear(width, width)

    def members(self) -> tuple[StateSpec, ...]:
        """Real and imaginary parts."""
        return tuple(StateSpec(name, self.frequency.shape) for name in ("re", "im"))

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Decay and turn over the gap, then take in x."""
        a, ai = self._over(gap)
        b, bi = self._driven(x)
        re, im = a * state["re"] - ai * state["im"] + b, a * state["im"] + ai * state["re"] + bi
        return self._ended(re, im, x), {"re": re, "im": im}

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All rows by a scan."""
        a, ai, b, bi = prefixes((*self._over(rows.gap), *self._driven(rows.x)), rotation)
        past, past_i = state["re"].unsqueeze(1), state["im"].unsqueeze(1)
        re, im = a * past - ai * past_i + b, a * past_i + ai * past + bi
        after = {name: at_count(path, state[name], rows.lengths) for name, path in (("re", re), ("im", im))}
        return self._ended(re, im, rows.x), after

    def _over(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """exp(ΛΔτ), real and imaginary part [..., N]."""
        time = torch.exp(self.log_step) * gap
        size, angle = torch.exp(-torch.exp(self.log_decay) * time), self.frequency * time
        return size * torch.cos(angle), size * torch.sin(angle)

    def _driven(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Λ⁻¹(exp(ΛΔ) − 1)·B·x, real and imaginary part [..., N]."""
        one, one_i = self._over(torch.ones_like(self.frequency))
        decay = torch.exp(self.log_decay)
        square = decay * decay + self.frequency * self.frequency
        # (one − 1 + i·one_i) / (−decay + i·frequency)
        weight = ((1 - one) * decay + one_i * self.frequency) / square
        weight_i = ((1 - one) * self.frequency - one_i * decay) / square
        u, ui = self.b_re(x), self.b_im(x)
        return weight * u - weight_i * ui, weight * ui + weight_i * u

    def _ended(self, re: Tensor, im: Tensor, x: Tensor) -> Tensor:
        """2·Re(Cs) + Dx, then GELU and the gate of the paper's layer."""
        y = F.gelu(2 * (self.c_re(re) - self.c_im(im)) + self.skip * x)
        return y * torch.sigmoid(self.gate(y))


@cache
def legs_spectrum(states: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """−Re and Im of the eigenvalues, Im > 0, of the normal part of a HiPPO-LegS matrix of twice as many rows.

    A_nk = −√(2n+1)·√(2k+1) below the diagonal and −(n+1) on it; A + ½·P·Pᵀ with P_n = √(2n+1) is −½·I plus a skew
    matrix (Gu et al. 2022, on the parameterization and initialization of diagonal state space models).
    """
    root = np.sqrt(2 * np.arange(2 * states) + 1)
    product = np.outer(root, root)
    skew = -np.tril(product, -1) + 0.5 * product
    np.fill_diagonal(skew, 0.0)
    values = np.linalg.eigvalsh(-1j * skew)
    return np.full(states, 0.5), np.sort(values[values > 0])
