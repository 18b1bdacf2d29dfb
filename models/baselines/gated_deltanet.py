"""Gated DeltaNet: an associative matrix under the gated delta rule, the rival to beat on recall.

    S_t = α_t·S_{t−1}(I − β_t·k_t·k_tᵀ) + β_t·v_t·k_tᵀ,   y_t = W_o·(RMSNorm(S_t·q_t/√d) ⊙ SiLU(W_g·x_t))

Yang, Kautz, Hatamizadeh: Gated delta networks, improving Mamba2 with delta rule (2024), equation 10 and figure 1: q,
k, v through short convolutions and SiLU, q and k of length one, β = σ(W_β·x), α = exp(−exp(a)·softplus(W_α·x + b)) as
in Mamba2. The sweep solves one triangular system (Yang et al.: Parallelizing linear transformers with the delta rule
over sequence length, 2024, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models import memory
from odestream.models.baselines.config import FedSizes
from odestream.models.baselines.initial import inverse_softplus, linear, log_uniform
from odestream.models.baselines.short_conv import ShortConv
from odestream.models.baselines.stack import Mixer, RmsNorm, Rows, Stacked
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


@dataclass(frozen=True)
class GatedDeltaNetSizes(FedSizes):
    """heads: H. keys, values: dk and dv of each. taps: of the short convolutions."""

    heads: int = 1
    keys: int = 32
    values: int = 32
    taps: int = 4


class GatedDeltaNet(Stacked):
    """Blocks of the gated delta rule."""

    sizes_type = GatedDeltaNetSizes

    def mixer(self, sizes: GatedDeltaNetSizes) -> Mixer:
        """The gated delta rule."""
        return DeltaMixer(sizes)


class DeltaMixer(Mixer):
    """State: m [H, dk, dv], which is Sᵀ, and past [taps − 1, …] of the convolutions."""

    def __init__(self, sizes: GatedDeltaNetSizes) -> None:
        super().__init__()
        self.heads, self.keys, self.values = sizes.heads, sizes.keys, sizes.values
        self.widths = [sizes.heads * n for n in (sizes.keys, sizes.keys, sizes.values)]
        self.project = linear(sizes.width, sum(self.widths), bias=False)
        self.conv = ShortConv(sum(self.widths), sizes.taps, bias=False)
        self.strength = linear(sizes.width, sizes.heads, bias=False)
        self.decay = linear(sizes.width, sizes.heads, bias=False)
        self.log_rate = nn.Parameter(torch.log(torch.empty(sizes.heads).uniform_(1, 16)))
        self.offset = nn.Parameter(inverse_softplus(log_uniform(sizes.heads, 1e-3, 1e-1)))
        self.gate = linear(sizes.width, self.widths[2], bias=False)
        self.norm = RmsNorm(sizes.values)
        self.out = linear(self.widths[2], sizes.width, bias=False)

    def members(self) -> tuple[StateSpec, ...]:
        """Matrix and convolutions."""
        return StateSpec("m", (self.heads, self.keys, self.values)), StateSpec("past", self.conv.shape)

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Write, then read."""
        mixed, past = self.conv.step(self.project(x), state["past"])
        query, key, value = self._heads(mixed)
        beta, alpha = torch.sigmoid(self.strength(x)), torch.exp(self._log_decay(x))
        m = memory.matrix_write(state["m"], key, value, beta, alpha)
        read = torch.unflatten(memory.matrix_read(m, query), -1, (self.heads, -1))
        return self._gated(read, x), {"m": m, "past": past}

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All rows at once: what each write adds beside its key solves a unit lower triangular system."""
        mixed, past = self.conv.sweep(self.project(rows.x), state["past"], rows)
        query, key, value = (part.transpose(1, 2) for part in self._heads(mixed))
        beta = torch.where(rows.valid, torch.sigmoid(self.strength(rows.x)), 0.0).transpose(1, 2).unsqueeze(-1)
        log_decay = torch.where(rows.valid, self._log_decay(rows.x), 0.0).transpose(1, 2)
        since = torch.cumsum(log_decay, dim=-1)
        fading = torch.exp((since.unsqueeze(-1) - since.unsqueeze(-2)).tril())
        faded = torch.exp(since).unsqueeze(-1)
        system = beta * fading * torch.matmul(key, key.transpose(-1, -2))
        wanted = beta * (value - faded * torch.matmul(key, state["m"]))
        added = torch.linalg.solve_triangular(system.tril(-1), wanted, upper=False, unitriangular=True)
        likeness = (fading * torch.matmul(query, key.transpose(-1, -2))).tril()
        read = torch.matmul(likeness, added) + faded * torch.matmul(query, state["m"])
        left = torch.exp(since[..., -1:] - since).unsqueeze(-1)
        m = faded[..., -1:, :] * state["m"] + torch.matmul((left * key).transpose(-1, -2), added)
        return self._gated(read.transpose(1, 2), rows.x), {"m": m, "past": past}

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q/√dk and k of length one, and v; [..., H, d] each."""
        ends = [0, self.widths[0], sum(self.widths[:2])]
        parts = (mixed.narrow(-1, start, width) for start, width in zip(ends, self.widths, strict=True))
        query, key, value = (torch.unflatten(part, -1, (self.heads, -1)) for part in parts)
        return memory.unit(query) * self.keys**-0.5, memory.unit(key), value

    def _log_decay(self, x: Tensor) -> Tensor:
        """log α [..., H]."""
        return -torch.exp(self.log_rate) * F.softplus(self.decay(x) + self.offset)

    def _gated(self, read: Tensor, x: Tensor) -> Tensor:
        """[..., H, dv] -> [..., D]."""
        return self.out(torch.flatten(self.norm(read), -2) * F.silu(self.gate(x)))  # type: ignore[no-any-return]
