"""A short causal convolution along time, channel by channel, as state-space models put before their recurrence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odestream.models.baselines.stack import Rows, last_rows


class ShortConv(nn.Module):
    """SiLU(Σ_i w_i ⊙ x_{t−i} + b) over the last `taps` observations; its state is the last taps − 1 of them."""

    def __init__(self, channels: int, taps: int, bias: bool) -> None:
        super().__init__()
        limit = 1 / math.sqrt(taps)
        self.weight = nn.Parameter(torch.empty(taps, channels).uniform_(-limit, limit))  # oldest first
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    @property
    def shape(self) -> tuple[int, int]:
        """Of its state."""
        return self.weight.shape[0] - 1, self.weight.shape[1]

    def step(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C], past [B, taps − 1, C] -> the value [B, C] and the past after it."""
        window = torch.cat([past, x.unsqueeze(1)], dim=1)
        return self._ended(torch.sum(window * self.weight, dim=1)), window.narrow(1, 1, past.shape[1])

    def sweep(self, x: Tensor, past: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """x [B, T, C] -> the values [B, T, C] and the past after each stream's last valid row."""
        window, length = torch.cat([past, x], dim=1), x.shape[1]
        shifted = torch.stack([window[:, i : i + length] for i in range(len(self.weight))], dim=-2)
        return self._ended(torch.sum(shifted * self.weight, dim=-2)), last_rows(window, rows.lengths, past.shape[1])

    def _ended(self, total: Tensor) -> Tensor:
        return F.silu(total if self.bias is None else total + self.bias)
