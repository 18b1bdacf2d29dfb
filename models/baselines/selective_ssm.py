"""Selective state-space model (Mamba): a diagonal recurrence whose step, input and output depend on the input.

    s_t = exp(Δ_t·A)·s_{t−1} + Δ_t·B_t·x_t,   y_t = C_tᵀ·s_t + D ⊙ x_t,   Δ_t = softplus(W_Δ·x_t + b)

Gu, Dao: Mamba, linear-time sequence modeling with selective state spaces (2023), algorithm 2 and section 3.4: the input
goes through a short convolution and SiLU, the output is gated by SiLU(z); A = −(1 … N) at first. Time between
observations reaches Δ through the signal, as any other input does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.baselines.config import StackSizes
from odestream.models.baselines.initial import inverse_softplus, linear, log_uniform
from odestream.models.baselines.scan import diagonal, prefixes
from odestream.models.baselines.short_conv import ShortConv
from odestream.models.baselines.stack import Mixer, Rows, Stacked, at_count
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


@dataclass(frozen=True)
class SelectiveSsmSizes(StackSizes):
    """expansion: channels, in widths. states: N of each channel. taps: of the short convolution."""

    expansion: int = 2
    states: int = 16
    taps: int = 4


class SelectiveSsm(Stacked):
    """Blocks of a selective state-space model; they have no feed-forward part."""

    sizes_type = SelectiveSsmSizes

    def mixer(self, sizes: SelectiveSsmSizes) -> Mixer:
        """A selective state-space model."""
        return SelectiveMixer(sizes)


class SelectiveMixer(Mixer):
    """State: s [C, N] of C channels, and past [taps − 1, C] of the convolution."""

    def __init__(self, sizes: SelectiveSsmSizes) -> None:
        super().__init__()
        self.channels, self.states = sizes.expansion * sizes.width, sizes.states
        self.rank = math.ceil(sizes.width / 16)
        self.project = linear(sizes.width, 2 * self.channels, bias=False)
        self.conv = ShortConv(self.channels, sizes.taps, bias=True)
        self.select = linear(self.channels, self.rank + 2 * sizes.states, bias=False)
        self.delta = linear(self.rank, self.channels)
        with torch.no_grad():
            self.delta.bias.copy_(inverse_softplus(log_uniform(self.channels, 1e-3, 1e-1)))
        self.log_rate = nn.Parameter(torch.log(torch.arange(1.0, sizes.states + 1)).repeat(self.channels, 1))
        self.skip = nn.Parameter(torch.ones(self.channels))
        self.out = linear(self.channels, sizes.width, bias=False)

    def members(self) -> tuple[StateSpec, ...]:
        """Recurrence and convolution."""
        return StateSpec("s", (self.channels, self.states)), StateSpec("past", self.conv.shape)

    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """One update of every channel's states."""
        inner, gate = self._projected(x)
        u, past = self.conv.step(inner, state["past"])
        decay, drive, reading = self._selected(u)
        s = decay * state["s"] + drive
        return self._ended(s, reading, u, gate), {"s": s, "past": past}

    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All rows by a scan."""
        inner, gate = self._projected(rows.x)
        u, past = self.conv.sweep(inner, state["past"], rows)
        decay, drive, reading = self._selected(u)
        faded, added = prefixes((decay, drive), diagonal)
        s = faded * state["s"].unsqueeze(1) + added
        return self._ended(s, reading, u, gate), {"s": at_count(s, state["s"], rows.lengths), "past": past}

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = self.project(x)
        return both.narrow(-1, 0, self.channels), both.narrow(-1, self.channels, self.channels)

    def _selected(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """exp(ΔA) and ΔBu [..., C, N], and C [..., N]."""
        parts, n = self.select(u), self.states
        delta = F.softplus(self.delta(parts.narrow(-1, 0, self.rank))).unsqueeze(-1)
        drive = delta * u.unsqueeze(-1) * parts.narrow(-1, self.rank, n).unsqueeze(-2)
        return torch.exp(-delta * torch.exp(self.log_rate)), drive, parts.narrow(-1, self.rank + n, n)

    def _ended(self, s: Tensor, reading: Tensor, u: Tensor, gate: Tensor) -> Tensor:
        y = torch.matmul(s, reading.unsqueeze(-1)).squeeze(-1) + self.skip * u
        return self.out(y * F.silu(gate))  # type: ignore[no-any-return]
