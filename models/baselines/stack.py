"""Residual blocks over a sequence: the common body of Transformers and state-space models.

    x ← x + mixer(RMSNorm(x)),   x ← x + W₂·SiLU(W₁·RMSNorm(x)) where the architecture has that part,   h = RMSNorm(x)

A mixer is what tells the architectures apart: it has a step and a parallel sweep. Calls without an observation never
reach it: for a sweep the observed rows of each stream are moved together, to its front, and the results put back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.baselines.config import BaselineConfig, FedSizes, StackSizes
from odestream.models.baselines.frame import Baseline, Swept, Told
from odestream.models.baselines.initial import linear
from odestream.models.cell import State
from odestream.runtime.contract.spec import StateSpec


class Mixer(nn.Module, ABC):
    """What a block does along time. Its members are named without the layer's number, which the stack appends."""

    @abstractmethod
    def members(self) -> tuple[StateSpec, ...]:
        """State of one layer."""

    @abstractmethod
    def step(self, x: Tensor, gap: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """x [B, D] and the state before it -> y [B, D] and the state after it.

        gap [B, 1]: time since the observation before, in typical gaps.
        """

    @abstractmethod
    def sweep(self, rows: Rows, state: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """All rows at once: y [B, T, D] and the state after each stream's last valid row."""


class Rows(NamedTuple):
    """Observed rows of each stream at its front: x [B, T, D], gap [B, T, 1], valid [B, T, 1], lengths [B] of these."""

    x: Tensor
    gap: Tensor
    valid: Tensor
    lengths: Tensor


class Stacked(Baseline):
    """Blocks of one kind of mixer; a subclass says which."""

    sizes_type = StackSizes

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__(config)
        sizes: Any = config.sizes
        self.encode = linear(self.signal_width, sizes.width)
        self.mixers = nn.ModuleList(self.mixer(sizes) for _ in range(sizes.layers))
        self.norms = nn.ModuleList(RmsNorm(sizes.width) for _ in range(sizes.layers))
        fed = sizes.layers if isinstance(sizes, FedSizes) else 0
        self.feeds = nn.ModuleList(FeedForward(sizes.width, sizes.expansion * sizes.width) for _ in range(fed))
        self.final = RmsNorm(sizes.width)

    @abstractmethod
    def mixer(self, sizes: Any) -> Mixer:
        """A new mixer; sizes are of the subclass's own type."""

    def members(self) -> tuple[StateSpec, ...]:
        """Every layer's state: NAME0, NAME1, …"""
        return tuple(
            StateSpec(f"{m.name}{i}", m.shape, m.initial)
            for i, mixer in enumerate(self._mixers())
            for m in mixer.members()
        )

    def advance(self, told: Told, state: State) -> State:
        """One observation through all blocks."""
        x, gap, new = self.encode(told.signal), told.elapsed / self.config.frame.typical_gap, State()
        for i, mixer in enumerate(self._mixers()):
            y, after = mixer.step(self.norms[i](x), gap, _layer(mixer, i, state))
            x = self._fed(i, x + y)
            new.update({f"{name}{i}": value for name, value in after.items()})
        return {"h": self.final(x), **new}

    def sweep(self, told: Told, state: State) -> Swept:
        """All observations through all blocks, each block for all times at once."""
        observed = told.observed.squeeze(-1).transpose(0, 1)
        order = torch.argsort((~observed).long(), dim=1, stable=True).unsqueeze(-1)
        count = observed.long().sum(dim=1)
        gap = torch.gather(told.elapsed.transpose(0, 1), 1, order) / self.config.frame.typical_gap
        valid = (torch.arange(observed.shape[1]) < count.unsqueeze(-1)).unsqueeze(-1)
        x = self.encode(told.signal).transpose(0, 1)
        x, new = torch.gather(x, 1, order.expand(-1, -1, x.shape[-1])), State()
        for i, mixer in enumerate(self._mixers()):
            rows = Rows(self.norms[i](x), gap, valid, count)
            y, after = mixer.sweep(rows, _layer(mixer, i, state))
            x = self._fed(i, x + y)
            new.update({f"{name}{i}": value for name, value in after.items()})
        h = torch.cat([state["h"].unsqueeze(1), self.final(x)], dim=1)
        latest = torch.cumsum(observed.long(), dim=1).unsqueeze(-1)
        h = torch.gather(h, 1, latest.expand(-1, -1, h.shape[-1])).transpose(0, 1)
        return Swept({"h": h}, {"h": h[-1], **new})

    def _fed(self, i: int, x: Tensor) -> Tensor:
        return x + self.feeds[i](x) if len(self.feeds) else x

    def _mixers(self) -> list[Mixer]:
        return [mixer for mixer in self.mixers if isinstance(mixer, Mixer)]


class RmsNorm(nn.Module):
    """x / √(mean x² + ε) · g (Zhang & Sennrich 2019), written in operations that every engine has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return x * torch.rsqrt(torch.mean(x * x, dim=-1, keepdim=True) + 1e-6) * self.gain


class FeedForward(nn.Module):
    """W₂·SiLU(W₁·RMSNorm(x))."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = RmsNorm(width), linear(width, inner), linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        result: Tensor = self.outer(F.silu(self.inner(self.norm(x))))
        return result


def last_rows(rows: Tensor, count: Tensor, length: int) -> Tensor:
    """Of [B, length + T, …], where T rows follow `length` older ones: the `length` rows up to each stream's count."""
    places = count.unsqueeze(-1) + torch.arange(length)
    return rows[torch.arange(len(rows)).unsqueeze(-1), places]


def at_count(rows: Tensor, initial: Tensor, count: Tensor) -> Tensor:
    """Of states after each row [B, T, …]: the one after each stream's last valid row, `initial` [B, …] without any."""
    return torch.cat([initial.unsqueeze(1), rows], dim=1)[torch.arange(len(rows)), count]


def _layer(mixer: Mixer, i: int, state: State) -> State:
    """A layer's own members, without its number."""
    return {m.name: state[f"{m.name}{i}"] for m in mixer.members()}
